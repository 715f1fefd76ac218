"""The sink's step: a reading is a row, unless its time cannot be or its values are too large."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from sensor_sink.step import make_step
from visionmesh.contracts import SensorReading, Value
from visionmesh.errors import Rejected
from visionmesh.observability import metrics
from visionmesh.sensors import SensorReadingRow
from visionmesh.worker.step import Done

NOW = datetime(2026, 11, 21, 14, tzinfo=UTC)


def reading(at: datetime) -> SensorReading:
    return SensorReading("pi-1", "tfluna", 7, at, {"distance_cm": 1.5, "valid": True}, 99)


def test_a_reading_is_a_row_and_the_same_row_again() -> None:
    step = make_step(lambda: NOW)
    wanted = Done(rows=(SensorReadingRow("pi-1", "tfluna", 7, NOW, {"distance_cm": 1.5, "valid": True}, 99),))
    assert step([reading(NOW)]) == [wanted]
    assert step([reading(NOW)]) == [wanted]


@pytest.mark.parametrize(
    "at",
    [
        NOW - timedelta(days=9000),
        NOW + timedelta(hours=23),
        NOW.astimezone(timezone(timedelta(hours=14))),
        datetime(2000, 1, 1, tzinfo=UTC),
    ],
)
def test_late_readings_and_wrong_time_zones_are_taken(at: datetime) -> None:
    assert isinstance(make_step(lambda: NOW)([reading(at)])[0], Done)


def test_a_clock_that_is_ahead_does_not_hide_that_its_sensor_fell_silent() -> None:
    metrics.SENSOR_LAST_READING.clear()
    make_step(lambda: NOW)([reading(NOW + timedelta(hours=20)), reading(NOW - timedelta(hours=1))])
    (family,) = metrics.SENSOR_LAST_READING.collect()
    assert [sample.value for sample in family.samples] == [NOW.timestamp()]


@pytest.mark.parametrize(
    "at", [datetime(1970, 1, 1, tzinfo=UTC), NOW + timedelta(days=2), datetime(9999, 12, 31, tzinfo=UTC)]
)
def test_a_time_that_cannot_be_is_the_messages_fault_alone(at: datetime) -> None:
    good, bad = make_step(lambda: NOW)([reading(NOW), reading(at)])
    assert isinstance(good, Done)
    assert isinstance(bad, Rejected)
    assert bad.code == "implausible_time"


@pytest.mark.parametrize(
    ("large", "largest"),
    [({"frame": "x" * 8181}, {"frame": "x" * 8180}), ({str(n): 1.5 for n in range(1000)}, {"a": None})],
)
def test_values_that_are_too_large_are_the_messages_fault_alone(
    large: dict[str, Value], largest: dict[str, Value]
) -> None:
    good, bad = make_step(lambda: NOW)(
        [SensorReading("pi-1", "own", seq, NOW, values) for seq, values in enumerate((largest, large), 1)]
    )
    assert isinstance(good, Done)
    assert isinstance(bad, Rejected)
    assert bad.code == "too_large"
    assert "8192" in bad.reason
