"""`Cache` in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from threading import Lock


class MemoryCache:
    """`Cache` without a server, for many threads at once.

    available: False makes it know nothing and take nothing until it is True again. full: takes nothing new.
    walks: how often all keys were looked at. values: what it holds.
    """

    def __init__(self) -> None:
        self.available = True
        self.full = False
        self.walks = 0
        self.values: dict[str, bytes] = {}
        self._lock = Lock()

    def get_many(self, keys: Sequence[str], *, length: int) -> list[bytes | None]:
        with self._lock:
            found = [self.values.get(key) if self.available else None for key in keys]
        return [value if value is not None and len(value) == length else None for value in found]

    def put_many(self, values: Mapping[str, bytes]) -> None:
        with self._lock:
            if self.available and not self.full:
                self.values.update(values)

    def forget(self, endings: Collection[str]) -> bool:
        with self._lock:
            self.walks += 1
            if self.available:
                for key in [key for key in self.values if key.rpartition(":")[2] in endings]:
                    del self.values[key]
            return self.available
