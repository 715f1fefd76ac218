"""A sensor's reading -> its row; nothing is published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from visionmesh.contracts import VALUES, SensorReading
from visionmesh.errors import Rejected
from visionmesh.observability import metrics
from visionmesh.sensors import SensorReadingRow
from visionmesh.worker.step import Done, Step, Verdict

# Before it no reading was made: a clock that was never set tells 1970, or the day its software was built.
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)

# Clocks and time zones are wrong by hours. Later than this, a row would stay in nobody's sight for long.
_AHEAD: Final = timedelta(days=1)

# Our own have 300 bytes at most. Ten thousand are read at once, and have to fit into memory then.
_VALUES_BYTES: Final = 8 * 1024

# Whoever may publish names devices, and Prometheus keeps a series for each.
_MOST_SENSORS: Final = 1000

Now = Callable[[], datetime]

_encode: Final = msgspec.json.Encoder().encode


def make_step(now: Now = lambda: datetime.now(UTC)) -> Step[SensorReading]:
    """The sink's step. now: the wall clock.

    However late a reading comes it is taken; one of a time that cannot be is a dead letter, from where it can
    be sent home when the cause is known. So is one whose values are too many or too large for a row.
    """
    newest = _Newest()

    def step(messages: Sequence[SensorReading]) -> list[Verdict]:
        at = now()
        verdicts = [_verdict(message, at + _AHEAD) for message in messages]
        taken = (
            message for message, verdict in zip(messages, verdicts, strict=True) if isinstance(verdict, Done)
        )
        newest.note(taken, at.timestamp())
        return verdicts

    return step


class _Newest:
    """When each sensor of each device measured last: who stops measuring is told apart by it."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], float] = {}

    def note(self, readings: Iterable[SensorReading], now: float) -> None:
        """now: UNIX seconds. A clock that is ahead must not hide for as long that its sensor fell silent."""
        counts: Counter[str] = Counter()
        found: dict[tuple[str, str], float] = {}
        for reading in readings:
            counts[reading.sensor] += 1
            key = reading.device_id, reading.sensor
            found[key] = max(found.get(key, 0.0), min(reading.captured_at.timestamp(), now))
        for key, seconds in found.items():
            known = self._seconds.get(key)
            if known is None and len(self._seconds) >= _MOST_SENSORS:
                continue
            # Readings of an outage come late, and a message may come twice.
            self._seconds[key] = seconds = max(known or 0.0, seconds)
            metrics.SENSOR_LAST_READING.labels(*key).set(seconds)
        for sensor, count in counts.items():
            metrics.SENSOR_READINGS.labels(sensor if sensor in VALUES else "other").inc(count)


def _verdict(reading: SensorReading, latest: datetime) -> Verdict:
    if not _EARLIEST <= reading.captured_at <= latest:
        return Rejected(
            "implausible_time",
            f"captured_at {reading.captured_at.isoformat()} is no time that a reading of today can have; "
            "set the device's clock",
        )
    size = len(_encode(reading.values))
    if size > _VALUES_BYTES:
        return Rejected(
            "too_large",
            f"values of {size} bytes as JSON, where a reading has {_VALUES_BYTES} at most; upload pictures",
        )
    return Done(
        rows=(
            SensorReadingRow(
                reading.device_id,
                reading.sensor,
                reading.seq,
                reading.captured_at,
                reading.values,
                reading.monotonic_ns,
            ),
        )
    )
