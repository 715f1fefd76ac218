"""Work that is done for one caller at a time, such as drawing and PDFs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from visionmesh.errors import Rejected

# A drawing or a PDF may take seconds: who came later would give up before the answer.
_MOST_WAITING: Final = 8


class Turn:
    """Who waits for it holds a connection, neither a file nor a thread."""

    def __init__(self) -> None:
        self._one = asyncio.Semaphore(1)
        self._inside = 0

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """In the order of calling. Raises `Rejected("too_many_waiting")` when 8 wait already."""
        if self._inside > _MOST_WAITING:
            raise Rejected("too_many_waiting", f"{_MOST_WAITING} callers wait already; try again in a while.")
        self._inside += 1
        try:
            async with self._one:
                yield
        finally:
            self._inside -= 1
