"""`Sensors` and `Housekeeping` in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from threading import RLock

from visionmesh.sensors import Bucket, SensorReadingRow, cannot_average, check_not_too_many
from visionmesh.testing.faults import Faults

_Key = tuple[str, str, datetime, int]

# The first of all spans of time.
_ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)


class MemorySensors(Faults):
    """Both ports without a server, for many threads at once."""

    def __init__(self) -> None:
        super().__init__("database")
        self._lock = RLock()
        self._rows: dict[_Key, SensorReadingRow] = {}
        self.days: set[date] = set()

    def save(self, rows: Sequence[SensorReadingRow]) -> None:
        with self._lock:
            self._answer()
            for row in rows:
                self._rows.setdefault((row.device_id, row.sensor, row.captured_at, row.seq), row)
                self.days.add(row.captured_at.astimezone(UTC).date())

    def all(self) -> list[SensorReadingRow]:
        """Every row, by key."""
        with self._lock:
            return [self._rows[key] for key in sorted(self._rows)]

    def latest(self) -> list[SensorReadingRow]:
        self._answer()
        return list({(row.device_id, row.sensor): row for row in self.all()}.values())

    def readings(
        self,
        device_id: str,
        sensor: str,
        begin: datetime,
        end: datetime,
        *,
        limit: int,
        after: tuple[datetime, int] | None = None,
    ) -> list[SensorReadingRow]:
        self._answer()
        rows = self._between(device_id, sensor, begin, end)
        return [row for row in rows if after is None or (row.captured_at, row.seq) > after][:limit]

    def buckets(
        self, device_id: str, sensor: str, begin: datetime, end: datetime, resolution: timedelta
    ) -> list[Bucket]:
        self._answer()
        spans: dict[datetime, list[SensorReadingRow]] = {}
        chosen = self._between(device_id, sensor, begin, end)
        check_not_too_many(len(chosen))
        for row in chosen:
            at = _ORIGIN + (row.captured_at - _ORIGIN) // resolution * resolution
            spans.setdefault(at, []).append(row)
        try:
            return [Bucket(at, len(rows), _measured(rows)) for at, rows in sorted(spans.items())]
        except OverflowError as error:
            raise cannot_average() from error

    def knows(self, device_id: str, sensor: str) -> bool:
        self._answer()
        return any((row.device_id, row.sensor) == (device_id, sensor) for row in self.all())

    def ensure_days(self, days: Iterable[date]) -> None:
        self._answer()
        self.days.update(days)

    def drop_before(self, day: date) -> list[str]:
        with self._lock:
            self._answer()
            dropped = sorted(each for each in self.days if each < day)
            self.days.difference_update(dropped)
            self._rows = {
                key: row for key, row in self._rows.items() if row.captured_at.astimezone(UTC).date() >= day
            }
        return [f"sensor_readings_{each:%Y%m%d}" for each in dropped]

    def _between(self, device_id: str, sensor: str, begin: datetime, end: datetime) -> list[SensorReadingRow]:
        return [
            row
            for row in self.all()
            if (row.device_id, row.sensor) == (device_id, sensor) and begin <= row.captured_at < end
        ]


def _measured(rows: Sequence[SensorReadingRow]) -> dict[str, dict[str, float]]:
    numbers: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.setdefault(name, []).append(value)
    return {
        name: {"mean": sum(found) / len(found), "min": min(found), "max": max(found)}
        for name, found in numbers.items()
    }
