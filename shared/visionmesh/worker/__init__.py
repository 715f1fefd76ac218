"""The loop that every service runs, and the types between it and a step."""
