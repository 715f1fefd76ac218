"""Threads for work that takes long, and what they are at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Pool:
    """`size` threads. busy: those at work. waiting: calls that have none yet."""

    def __init__(self, size: int, name: str, changed: Callable[[Pool], None]) -> None:
        """changed: called whenever busy or waiting has changed, in any thread."""
        self.size: Final = size
        self.busy = 0
        self.waiting = 0
        self._changed = changed
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(size, thread_name_prefix=name)
        changed(self)

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`function` in a thread; raises what it raises. Who no longer waits for it does not stop it."""

        def work() -> R:
            self._count(busy=1, waiting=-1)
            try:
                return function(*args, **kwargs)
            finally:
                self._count(busy=-1)

        self._count(waiting=1)
        done = self._threads.submit(work)
        # A call that is cancelled while it waits never comes to `work`.
        done.add_done_callback(lambda each: self._count(waiting=-1) if each.cancelled() else None)
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """Lets what runs finish, without waiting for it."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _count(self, *, busy: int = 0, waiting: int = 0) -> None:
        with self._lock:
            self.busy += busy
            self.waiting += waiting
        self._changed(self)
