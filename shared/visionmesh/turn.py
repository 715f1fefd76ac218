"""Work that is done for a few callers at a time, such as drawing, PDFs and pictures at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from visionmesh.errors import Rejected

# A drawing or a PDF may take seconds: who came later would give up before the answer.
_MOST_WAITING: Final = 8


# Of callers of a worker's own route, as many as ocr-worker lets wait. The last of more would not be patient.
CALLERS_WAITING: Final = 32


class Turn:
    """Who waits for it holds a connection, neither a file nor a thread. For one event loop."""

    def __init__(self, at_once: int = 1, most_waiting: int = _MOST_WAITING) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._most_waiting = most_waiting
        self._most = at_once + most_waiting
        self._inside = 0

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """In the order of calling. Raises `Rejected("too_many_waiting")` when so many wait already."""
        if self._inside >= self._most:
            raise Rejected(
                "too_many_waiting", f"{self._most_waiting} callers wait already; try again in a while."
            )
        self._inside += 1
        try:
            async with self._places:
                yield
        finally:
            self._inside -= 1
