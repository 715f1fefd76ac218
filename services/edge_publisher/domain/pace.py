"""How often something may happen, told by timestamps alone."""

from __future__ import annotations

from typing import Final

# Bluetooth hands over in bunches what was measured at an even pace: this many at once are one bunch.
_BUNCH: Final = 4


class Pace:
    """At most one in `interval_ns` on average, a bunch of four at once (the generic cell rate algorithm)."""

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._due_ns: int | None = None

    def allows(self, now_ns: int) -> bool:
        """Whether one may happen now; it then counts."""
        due = now_ns if self._due_ns is None else max(self._due_ns, now_ns)
        if due - now_ns > (_BUNCH - 1) * self._interval_ns:
            return False
        self._due_ns = due + self._interval_ns
        return True
