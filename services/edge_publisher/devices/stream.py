"""A sensor that measures by itself: its link, kept alive, and its decoder, behind the protocol of devices."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog

from edge_publisher.devices.link import Link, LinkLost
from edge_publisher.devices.protocol import DeviceState, Measured, Reading
from edge_publisher.domain.decoder import Decoder
from visionmesh.contracts import SensorValues
from visionmesh.errors import Unavailable

log = structlog.get_logger()

# After a loss. The first attempt comes soon, since most losses are a plug that is put back; later ones are
# rare enough to cost nothing while a sensor is away for a week.
_FIRST_DELAY_SECONDS: Final = 0.25
_LONGEST_DELAY_SECONDS: Final = 5.0

# A link that is open and gives nothing is no better than none: a wire that broke behind the adapter.
_SILENCE_SECONDS: Final = 5.0

# `read` takes a reading that is no older, and waits for one no longer.
_FRESH_SECONDS: Final = 0.5
_PATIENCE_SECONDS: Final = 2.0

# Measurements that arrive in one piece were made one after the other since the piece before, unless that is
# longer ago than this.
_PIECE_NS: Final = 250_000_000


class StreamDevice:
    """A `Device` that hands on what its link gives. It connects when it is first asked for anything.

    decoder: makes a new one for every connection.
    allows: whether a measurement of this time (monotonic, ns) is taken; what is not counts as `too_soon`.
    closed: called once, when the device has let go of its link; may wait, and runs in a thread.
    """

    def __init__(
        self,
        device_id: str,
        sensor: str,
        link: Link,
        decoder: Callable[[], Decoder[SensorValues]],
        *,
        allows: Callable[[int], bool] | None = None,
        closed: Callable[[], None] | None = None,
        silence_seconds: float = _SILENCE_SECONDS,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self.device_id: Final = device_id
        self.sensor: Final = sensor
        self.state: Final = DeviceState(sensor, link.source)
        self._link = link
        self._new_decoder = decoder
        self._allows = allows
        self._closed = closed
        self._silence_seconds = silence_seconds
        self._patience_seconds = patience_seconds
        self._measured = Measured(self.state)
        self._next: asyncio.Future[Reading] | None = None
        self._last: Reading | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._has_reader = False

    async def readings(self) -> AsyncIterator[Reading]:
        self._has_reader = True
        self._start()
        async for reading in self._measured.readings():
            yield reading

    async def read(self) -> Reading:
        self._start()
        last = self._last
        if last is not None and time.monotonic_ns() - last.monotonic_ns <= _FRESH_SECONDS * 1e9:
            return last
        if self._next is None or self._next.done():
            self._next = asyncio.get_running_loop().create_future()
        # Of all who wait, none may take the others' reading along when it gives up.
        done, _ = await asyncio.wait({self._next}, timeout=0 if self._ended else self._patience_seconds)
        if not done or self._next.cancelled():
            reason = self.state.last_error or f"no reading within {self._patience_seconds:g} s"
            raise Unavailable(self.sensor, f"The sensor gives no readings: {reason}.")
        return self._next.result()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._end()
        closed, self._closed = self._closed, None
        if closed is not None:
            await asyncio.to_thread(closed)

    def _start(self) -> None:
        if self._task is None and not self._ended:
            self._task = asyncio.get_running_loop().create_task(self._keep_alive(), name=self.sensor)

    def _end(self) -> None:
        self._ended = True
        self.state.connected = False
        self._measured.end()
        if self._next is not None:
            self._next.cancel()

    async def _keep_alive(self) -> None:
        delay = _FIRST_DELAY_SECONDS
        while True:
            connection = _Connection(self, self._new_decoder())
            try:
                await self._run(connection)
                self._end()
                return
            except LinkLost as error:
                self.state.lost(str(error))
            except OSError as error:
                self.state.lost(error.strerror or str(error))
            except Exception as error:
                # A driver's bug, or a library's: the sensor is as lost as by a broken wire.
                reason = f"{type(error).__name__}: {error}"
                if reason != self.state.last_error:
                    log.exception("device_failed", sensor=self.sensor)
                self.state.lost(reason)
            if connection.readings:
                delay = _FIRST_DELAY_SECONDS
            # Many devices that lost the same hub don't come back in step.
            await asyncio.sleep(delay * random.uniform(0.75, 1.25))
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    async def _run(self, connection: _Connection) -> None:
        """The link, until it ends or was open for too long without a reading."""
        run = asyncio.create_task(self._link.run(connection))
        try:
            while True:
                was_open, seen = connection.is_open, connection.readings
                await asyncio.wait({run}, timeout=self._silence_seconds)
                if run.done():
                    return run.result()
                if was_open and connection.readings == seen:
                    raise LinkLost(f"no reading for {self._silence_seconds:g} s")
        finally:
            run.cancel()
            await asyncio.wait({run})

    def _take(self, values: dict[str, Any], monotonic_ns: int, wall_ns: int) -> None:
        captured_at = datetime.fromtimestamp(wall_ns / 1e9, UTC)
        reading = Reading(self.device_id, self.sensor, values, captured_at, monotonic_ns)
        self._last = reading
        self.state.has_read(reading)
        if self._has_reader:
            self._measured.put(reading)
        if self._next is not None and not self._next.done():
            self._next.set_result(reading)


class _Connection:
    """The receiver of one connection: decodes, and gives every measurement its time."""

    def __init__(self, device: StreamDevice, decoder: Decoder[SensorValues]) -> None:
        self.is_open = False
        self.readings = 0
        self._device = device
        self._decoder = decoder
        self._before_ns = 0
        self._counted: dict[str, int] = {}

    def opened(self) -> None:
        self.is_open = True

    def data(self, data: bytes, monotonic_ns: int) -> None:
        found = self._decoder.feed(data)
        self._count()
        if not found:
            return
        device = self._device
        if not self.readings:
            device.state.found()
        self.readings += len(found)
        now = time.monotonic_ns()
        behind = now - monotonic_ns
        wall = time.time_ns() - behind
        gap = monotonic_ns - self._before_ns
        step = gap // len(found) if gap <= _PIECE_NS else 0
        self._before_ns = monotonic_ns
        for number, values in enumerate(found, 1 - len(found)):
            offset = number * step
            if device._allows is not None and not device._allows(monotonic_ns + offset):
                device.state.count("too_soon")
                continue
            device._take(msgspec.structs.asdict(values), monotonic_ns + offset, wall + offset)

    def fault(self, reason: str) -> None:
        self._device.state.errors += 1
        self._device.state.last_error = reason

    def _count(self) -> None:
        """Adds this connection's counts to those of the connections before."""
        for name, count in self._decoder.counts.items():
            before = self._counted.get(name, 0)
            if count != before:
                self._device.state.count(name, count - before)
                self._counted[name] = count
