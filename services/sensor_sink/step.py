"""A sensor's reading -> its row; nothing is published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from visionmesh.contracts import SensorReading
from visionmesh.errors import Rejected
from visionmesh.sensors import SensorReadingRow
from visionmesh.worker.step import Done, Step, Verdict

# Before it no reading was made: a clock that was never set tells 1970, or the day its software was built.
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)

# Clocks and time zones are wrong by hours. Later than this, a row would stay in nobody's sight for long.
_AHEAD: Final = timedelta(days=1)

Now = Callable[[], datetime]


def make_step(now: Now = lambda: datetime.now(UTC)) -> Step[SensorReading]:
    """The sink's step. now: the wall clock.

    However late a reading comes it is taken; one of a time that cannot be is a dead letter, from where it can
    be sent home when the cause is known.
    """

    def step(messages: Sequence[SensorReading]) -> list[Verdict]:
        latest = now() + _AHEAD
        return [_verdict(message, latest) for message in messages]

    return step


def _verdict(reading: SensorReading, latest: datetime) -> Verdict:
    if not _EARLIEST <= reading.captured_at <= latest:
        return Rejected(
            "implausible_time",
            f"captured_at {reading.captured_at.isoformat()} is no time that a reading of today can have; "
            "set the device's clock",
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
