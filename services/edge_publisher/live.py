"""Live readings for whoever listens; who is too slow is dropped and not waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from edge_publisher.queue import Stored
from visionmesh.observability import metrics

log = structlog.get_logger()

# A client may be so many readings behind: some seconds of a device at full rate.
_BEHIND: Final = 2000

_CLIENTS: Final = 50

# RFC 6455, 7.4.1, and its registry: the server ends the connection because of what it is asked to bear.
_TRY_AGAIN_LATER: Final = 1013

_CLOSE_SECONDS: Final = 1.0


# By identity: two clients may ask for the same.
@dataclass(frozen=True, slots=True, eq=False)
class _Client:
    """sensors: those that it wants, all of them when there are none."""

    sensors: frozenset[str]
    readings: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(_BEHIND))
    too_slow: asyncio.Event = field(default_factory=asyncio.Event)


class Live:
    """Used from one event loop, but for `publish`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: set[_Client] = set()

    def open(self) -> None:
        """Called from the event loop, before anything is published."""
        self._loop = asyncio.get_running_loop()

    def publish(self, stored: Sequence[Stored]) -> None:
        """Called from the thread that writes. Costs nothing while nobody listens."""
        if self._clients and self._loop is not None:
            # A loop that is closed has nobody who listens.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._spread, stored)

    async def serve(self, websocket: WebSocket, sensors: frozenset[str]) -> None:
        """One client, until it goes or is dropped."""
        await websocket.accept()
        if len(self._clients) >= _CLIENTS:
            await websocket.close(_TRY_AGAIN_LATER, "too many clients")
            return
        client = _Client(sensors)
        self._clients.add(client)
        metrics.EDGE_LIVE_CLIENTS.set(len(self._clients))
        try:
            async with anyio.create_task_group() as jobs:

                async def until_first(end: Callable[[], Awaitable[object]]) -> None:
                    await end()
                    jobs.cancel_scope.cancel()

                jobs.start_soon(until_first, partial(_send, websocket, client))
                jobs.start_soon(until_first, partial(_until_gone, websocket))
                jobs.start_soon(until_first, client.too_slow.wait)
        finally:
            self._clients.discard(client)
            metrics.EDGE_LIVE_CLIENTS.set(len(self._clients))
        if client.too_slow.is_set():
            metrics.EDGE_LIVE_DROPPED.inc()
            log.info("live_client_dropped", behind=_BEHIND)
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await websocket.close(_TRY_AGAIN_LATER, "too slow")

    def _spread(self, stored: Sequence[Stored]) -> None:
        for client in self._clients:
            for each in stored:
                if client.sensors and each.sensor not in client.sensors:
                    continue
                try:
                    client.readings.put_nowait(each.value)
                except asyncio.QueueFull:
                    client.too_slow.set()
                    break


async def _send(websocket: WebSocket, client: _Client) -> None:
    # Starlette's two words for a client that has gone.
    with suppress(WebSocketDisconnect, RuntimeError):
        while True:
            await websocket.send_text((await client.readings.get()).decode())


async def _until_gone(websocket: WebSocket) -> None:
    """What a client says is not listened to, only that it goes."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
