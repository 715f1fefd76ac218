"""What the pictures of all requests to a process may take in memory, and how long one may take to come.

A limit on each body alone is none on memory: twenty callers who are slow would take what a container has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fastapi import Request

from visionmesh.errors import Rejected
from visionmesh.http import picture_of

# Two of the largest pictures: beside them a child has its ceiling, and both have to fit into a container.
WAITING_BYTES: Final = 128 * 1024 * 1024

# 64 MiB at 9 Mbit/s; so long nobody keeps room from others with a picture that does not come.
RECEIVE_SECONDS: Final = 60.0


class Room:
    """For the bodies of requests, counted before they are received. A lone one always has room.

    For one event loop.
    """

    def __init__(self, most: int, largest: int) -> None:
        """most: bytes of all together. largest: what one counts that does not announce its length."""
        self._most = most
        self._largest = largest
        self._taken = 0

    @contextmanager
    def taken_by(self, request: Request) -> Iterator[bool]:
        """Whether there is room for its body, which is kept for it until the end of the context."""
        announced = request.headers.get("content-length", "")
        size = int(announced) if announced.isdecimal() else self._largest
        if self._taken and self._taken + size > self._most:
            yield False
            return
        self._taken += size
        try:
            yield True
        finally:
            self._taken -= size

    @contextmanager
    def kept_for(self, request: Request) -> Iterator[None]:
        """As `taken_by`. Raises `Rejected("too_many_waiting")` where there is no room."""
        with self.taken_by(request) as there_is_room:
            if not there_is_room:
                raise Rejected(
                    "too_many_waiting", "Too many pictures are coming in already; try again in a while."
                )
            yield


async def received(request: Request, seconds: float = RECEIVE_SECONDS) -> bytes:
    """What `picture_of` finds in a request. Raises `Rejected("upload_stalled")` as well."""
    try:
        async with asyncio.timeout(seconds):
            return await picture_of(request)
    except TimeoutError:
        raise Rejected("upload_stalled", "The picture did not come in time.") from None
