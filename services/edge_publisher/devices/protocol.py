"""What a device is to the rest of the service, whatever it hangs on.

A device connects by itself, connects again by itself, and says in its state how it is doing; nobody who
reads from it handles its failures. Nothing here blocks the event loop that it is used from.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog

from visionmesh.contracts import Value

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reading:
    """One measurement, not numbered yet.

    values: as the sensor's struct in `visionmesh.contracts` has them.
    captured_at, monotonic_ns: wall clock (UTC) and monotonic clock when the sensor measured, as nearly as the
        driver can tell.
    """

    device_id: str
    sensor: str
    values: Mapping[str, Value]
    captured_at: datetime
    monotonic_ns: int


@dataclass(slots=True)
class DeviceState:
    """How a device is doing; `/health` shows it. Changed by the driver, read by anyone.

    source: what it hangs on, for people: `serial /dev/ttyUSB0`, `i2c-1 0x68`, `simulated ...`.
    readings: since the process started. reconnects: connections after the first. errors: lost connections,
        failed attempts to connect, and measurements that failed; each is logged.
    last_error: the latest of them, as a sentence. lost_at: when the connection was lost that is not yet back.
    dropped: readings that nobody fetched in time.
    details: counts of the driver's own, such as frames with a wrong checksum.
    """

    sensor: str
    source: str
    connected: bool = False
    readings: int = 0
    reconnects: int = 0
    errors: int = 0
    dropped: int = 0
    last_reading_at: datetime | None = None
    last_error: str | None = None
    lost_at: datetime | None = None
    details: dict[str, int] = field(default_factory=dict)

    def lost(self, reason: str) -> None:
        """The device is away, or still away."""
        self.errors += 1
        # The same again every few seconds is one piece of news.
        if self.connected or self.last_error != reason:
            log.warning("device_lost", sensor=self.sensor, source=self.source, reason=reason)
        if self.lost_at is None:
            self.lost_at = utc_now()
        self.last_error = reason
        self.connected = False

    def found(self) -> None:
        """The device gives readings, for the first time or again."""
        if self.readings:
            self.reconnects += 1
        away = None if self.lost_at is None else round((utc_now() - self.lost_at).total_seconds(), 3)
        log.info("device_connected", sensor=self.sensor, source=self.source, away_seconds=away)
        self.connected = True
        self.lost_at = None

    def has_read(self, reading: Reading) -> None:
        self.readings += 1
        self.last_reading_at = reading.captured_at

    def count(self, name: str, number: int = 1) -> None:
        """Adds to one of the details."""
        self.details[name] = self.details.get(name, 0) + number

    def as_json(self) -> dict[str, Any]:
        return {
            "sensor": self.sensor,
            "source": self.source,
            "connected": self.connected,
            "readings": self.readings,
            "reconnects": self.reconnects,
            "errors": self.errors,
            "dropped": self.dropped,
            "last_reading_at": _iso(self.last_reading_at),
            "last_error": self.last_error,
            "lost_at": _iso(self.lost_at),
            "details": dict(self.details),
        }


class Device(Protocol):
    """A sensor that is there, or will be. Used from one event loop."""

    @property
    def device_id(self) -> str:
        """The machine's name."""

    @property
    def sensor(self) -> str:
        """One of `visionmesh.contracts.VALUES`."""

    @property
    def state(self) -> DeviceState:
        """How it is doing, now."""

    def readings(self) -> AsyncIterator[Reading]:
        """Every reading from now on, in order, until the device is closed.

        It goes on through failures, which the state tells of. Meant for one reader, the queue; what it does
        not fetch within `BUFFERED` readings is dropped, oldest first, and counted.
        """

    async def read(self) -> Reading:
        """One reading, made no longer ago than the driver allows, else the next one.

        For any number of callers. It is one of `readings`, never a further one. Raises `Unavailable` when
        there is none in time.
        """

    async def close(self) -> None:
        """Ends `readings` and lets go of the hardware. More than once is no error."""


# At 250 readings a second, what a minute's halt of the reader leaves.
BUFFERED: Final = 15_000


class Measured:
    """What a driver has measured and nobody has fetched yet: the body of `Device.readings`."""

    def __init__(self, state: DeviceState) -> None:
        self._state = state
        self._waiting: deque[Reading] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    def put(self, reading: Reading) -> None:
        if len(self._waiting) >= BUFFERED:
            self._waiting.popleft()
            self._state.dropped += 1
        self._waiting.append(reading)
        self._arrived.set()

    def end(self) -> None:
        """Nothing more is put; what waits can still be fetched."""
        self._ended = True
        self._arrived.set()

    async def readings(self) -> AsyncIterator[Reading]:
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._ended:
                return
            self._arrived.clear()
            await self._arrived.wait()


def utc_now() -> datetime:
    return datetime.now(UTC)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
