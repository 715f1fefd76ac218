"""Readings of sensors -> rows."""
