"""Waiting for a server that is away: for as long as it takes, but never past a stop."""

from __future__ import annotations

import random
from collections.abc import Callable
from threading import Event
from typing import Final, TypeVar

from visionmesh.errors import Unavailable

T = TypeVar("T")

# The first wait is short, for most outages are a restart; the longest keeps recovery prompt.
_FIRST_SECONDS: Final = 0.1
_LONGEST_SECONDS: Final = 5.0


class Stopped(BaseException):
    """The worker was asked to stop while it waited; the batch is left to whoever comes next.

    Not an `Exception`, as `asyncio.CancelledError` is not: no handler may take it for a step's failure.
    """


def until_available(work: Callable[[], T], stop: Event, on_wait: Callable[[Unavailable], None]) -> T:
    """Calls `work` until it no longer raises `Unavailable`; raises `Stopped` when `stop` is set first.

    Waits with full jitter and exponential growth between tries, so that replicas don't come back in step
    (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015).
    """
    ceiling = _FIRST_SECONDS
    while True:
        try:
            return work()
        except Unavailable as error:
            on_wait(error)
            if stop.wait(random.uniform(ceiling / 2, ceiling)):
                raise Stopped from error
            ceiling = min(ceiling * 2, _LONGEST_SECONDS)
