"""Doubles of the servers, in memory: the same ports and the same behaviour, without anything running.

They are product code: each passes the very suite that its real counterpart passes.
"""
