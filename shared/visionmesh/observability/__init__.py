"""Logs, metrics, tracing and health: what an operator sees of a process."""
