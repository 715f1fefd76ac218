"""Processes and servers are killed, and what comes home is counted."""
