"""Ports on 127.0.0.1 that stay ours while their server is away."""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"

# Ports from here up to where the kernel starts to give out ports to clients.
LOWEST_PORT = 15_000
# The lowest of what IANA set aside for clients; Linux starts lower and says where.
IANA_EPHEMERAL_START = 49_152
LINUX_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

ATTEMPTS = 200


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections of the one before in TIME_WAIT don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port() -> int:
    """A free port below the range that clients connect from.

    A client that keeps trying to reach a dead server on a port of that range is sooner or later given that
    very port, connects to itself, and the server cannot come back.
    """
    choices = random.SystemRandom().sample(range(LOWEST_PORT, _ephemeral_start()), ATTEMPTS)
    for port in choices:
        if is_free(port):
            return port
    raise OSError(f"none of {ATTEMPTS} ports tried on {LOOPBACK} is free")


def _ephemeral_start() -> int:
    try:
        start = int(LINUX_EPHEMERAL_RANGE.read_text().split()[0])
    except OSError:
        return IANA_EPHEMERAL_START
    # A host whose clients may use nearly every port leaves us no better choice than that of others.
    return start if start >= LOWEST_PORT + ATTEMPTS else IANA_EPHEMERAL_START
