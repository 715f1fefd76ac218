"""Pictures to the ingest endpoint, one after the other, for as long as it takes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import httpx
import structlog

from edge_publisher.devices.protocol import DeviceState
from visionmesh.api_keys import client_headers

log = structlog.get_logger()

# Pictures that wait while the mesh is away; then the oldest is dropped, and counted.
_WAITING: Final = 32

_TIMEOUT: Final = httpx.Timeout(10.0, write=60.0)
_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 30.0

# Answers that another attempt may change: the client was too slow, or came too soon or too often, or its key
# has yet to be let in.
_AGAIN: Final = frozenset((401, 403, 408, 425, 429))


class Uploader:
    """Uploads what it is offered, in the background. Counts `uploads` and `uploads_dropped` in the state."""

    def __init__(
        self,
        url: str,
        state: DeviceState,
        *,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """key: an API key with the scope `upload`, where the mesh asks for one."""
        self._state = state
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._client = httpx.AsyncClient(
            base_url=url, headers=client_headers(key), timeout=_TIMEOUT, transport=transport
        )
        state.count("uploads", 0)
        state.count("uploads_dropped", 0)

    def offer(self, image_id: str, jpeg: bytes) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._keep_uploading(), name="upload")
        if len(self._waiting) >= _WAITING:
            dropped, _ = self._waiting.popleft()
            self._drop(dropped, "the mesh was away for too long")
        self._waiting.append((image_id, jpeg))
        self._arrived.set()

    async def close(self) -> None:
        """What was not uploaded yet is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._client.aclose()

    async def _keep_uploading(self) -> None:
        delay = _FIRST_DELAY_SECONDS
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            first = self._waiting[0]
            try:
                refused = await self._upload(*first)
            except Exception as error:
                log.warning(
                    "upload_delayed",
                    image_id=first[0],
                    reason=str(error) or type(error).__name__,
                    exc_info=not isinstance(error, httpx.HTTPError),
                )
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
                continue
            delay = _FIRST_DELAY_SECONDS
            # It may have been dropped meanwhile.
            if self._waiting and self._waiting[0] is first:
                self._waiting.popleft()
            if refused is None:
                self._state.count("uploads")
            else:
                self._drop(first[0], refused)

    async def _upload(self, image_id: str, jpeg: bytes) -> str | None:
        """Why the mesh refuses the picture, or None. Raises HTTPError when it may be tried again.

        The same picture under the same id twice is no error there, so that an answer that got lost is none.
        """
        response = await self._client.post(
            "/upload", data={"image_id": image_id}, files={"file": (f"{image_id}.jpg", jpeg, "image/jpeg")}
        )
        if response.is_server_error or response.status_code in _AGAIN:
            # Its own words would have the address in them, with the password where there is one.
            raise httpx.HTTPError(f"the mesh answers {response.status_code}")
        return None if response.is_success else f"{response.status_code}: {response.text[:200]}"

    def _drop(self, image_id: str, reason: str) -> None:
        self._state.count("uploads_dropped")
        log.error("upload_dropped", image_id=image_id, reason=reason)
