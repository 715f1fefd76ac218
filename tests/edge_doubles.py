"""Sensors that a test plays, and an edge-publisher around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import waiting
from edge_publisher.devices.protocol import DeviceState, Reading
from edge_publisher.publisher import Sink
from edge_publisher.queue import ReadingQueue
from edge_publisher.service import StoreAndForward

DEADLINE_SECONDS = 60.0

eventually = partial(waiting.eventually, seconds=DEADLINE_SECONDS)


def reading(number: int, sensor: str = "tfluna", device_id: str = "pi-1", **values: Any) -> Reading:
    at = datetime.now(UTC)
    return Reading(device_id, sensor, values or {"distance_cm": float(number)}, at, number)


class PlayedDevice:
    """A `Device` that gives what `play` hands it, from any thread."""

    def __init__(self, sensor: str = "tfluna", device_id: str = "pi-1") -> None:
        self.device_id = device_id
        self.sensor = sensor
        self.state = DeviceState(sensor, "played", connected=True)
        self.reads: Callable[[], Mapping[str, Any]] = lambda: {"distance_cm": 1.5}
        self.read_waits: asyncio.Event | None = None
        self.reading_now = 0
        self.most_at_once = 0
        self.is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readings: asyncio.Queue[Reading | Exception | None] = asyncio.Queue()

    def play(self, *readings: Reading | Exception | None) -> None:
        eventually(lambda: self._loop is not None, "somebody who reads")
        assert self._loop is not None
        for each in readings:
            self._loop.call_soon_threadsafe(self._readings.put_nowait, each)

    async def readings(self) -> AsyncIterator[Reading]:
        self._loop = asyncio.get_running_loop()
        while (each := await self._readings.get()) is not None:
            if isinstance(each, Exception):
                raise each
            yield each

    async def read(self) -> Reading:
        self.reading_now += 1
        self.most_at_once = max(self.most_at_once, self.reading_now)
        try:
            if self.read_waits is not None:
                await self.read_waits.wait()
            await asyncio.sleep(0)
            return reading(1, self.sensor, self.device_id, **self.reads())
        finally:
            self.reading_now -= 1

    async def close(self) -> None:
        self.is_closed = True
        self._readings.put_nowait(None)


@contextmanager
def forwarding(
    path: Path, sinks: Sequence[Sink], *, max_bytes: int = 1 << 30, commit_seconds: float = 0.005
) -> Iterator[StoreAndForward]:
    """A `StoreAndForward` that runs in a thread."""
    queue = ReadingQueue(path, sinks=[sink.name for sink in sinks], max_bytes=max_bytes)
    forward = StoreAndForward(queue, sinks, commit_seconds=commit_seconds)
    thread = Thread(target=forward.run)
    thread.start()
    try:
        yield forward
    finally:
        forward.stop()
        forward.sources_closed()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()
