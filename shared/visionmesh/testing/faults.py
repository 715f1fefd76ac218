"""Failures on demand, for the doubles."""

from __future__ import annotations

from visionmesh.errors import Unavailable


class Faults:
    """A double that can be away.

    available: False makes every call raise `Unavailable` until it is True again.
    """

    def __init__(self, server: str) -> None:
        self.available = True
        self._server = server
        self._failures = 0

    def fail_next(self, calls: int) -> None:
        """Makes the next `calls` calls raise `Unavailable`."""
        self._failures = calls

    def _answer(self) -> None:
        """Called by the double at the start of every call."""
        if not self.available:
            raise Unavailable(self._server, "is away")
        if self._failures > 0:
            self._failures -= 1
            raise Unavailable(self._server, "failed once")
