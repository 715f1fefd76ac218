"""Sensors in, readings out: what runs on the machine that the sensors hang on."""
