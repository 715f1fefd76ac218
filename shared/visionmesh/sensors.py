"""What sensors measured: the rows, and how they are written and read.

A reading is written once, however often it comes: device, sensor and number say which one it is, and the
time that is its own as well is part of the key because the table is partitioned by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from threading import Lock
from typing import Any, Final, Protocol

import msgspec
import psycopg

from visionmesh.contracts import Value
from visionmesh.database import Connection, Database
from visionmesh.errors import Rejected

# Dropping a partition locks out everybody for a moment; who waits for that longer would hold them all up.
_DROP_LOCK_TIMEOUT: Final = "2s"


# Two hours of a sensor that measures 250 times a second; more take longer than a statement may.
MOST_AVERAGED: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class SensorReadingRow:
    """Table `sensor_readings`; the fields are those of `visionmesh.contracts.SensorReading`."""

    device_id: str
    sensor: str
    seq: int
    captured_at: datetime
    values: Mapping[str, Value]
    monotonic_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a sensor measured between `at` and one resolution later.

    readings: how many there are. values: of every field that is a number, its `mean`, `min` and `max`.
    """

    at: datetime
    readings: int
    values: Mapping[str, Mapping[str, float]]


class Sensors(Protocol):
    """What users read of sensors. Raises `Unavailable("database", …)` throughout.

    Readings are in the order of their time and number; `begin` is the first moment that counts, `end` the
    first that does not.
    """

    def latest(self) -> list[SensorReadingRow]:
        """The latest reading of every sensor of every device, ordered by both."""

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
        """A page of readings. after: time and number of the last reading of the page before."""

    def buckets(
        self, device_id: str, sensor: str, begin: datetime, end: datetime, resolution: timedelta
    ) -> list[Bucket]:
        """The readings by spans of time, of which each begins a whole number of resolutions after 2000.

        Raises `Rejected("too_many_readings", …)` for a period with more of them than `MOST_AVERAGED`, and
        `Rejected("cannot_average", …)` when a number in it, or their sum, is too large for a float64.
        """

    def knows(self, device_id: str, sensor: str) -> bool:
        """Whether there is any reading of that sensor."""


class Housekeeping(Protocol):
    """What `sensor_sink` does once in a while. Raises `Unavailable("database", …)`."""

    def ensure_days(self, days: Iterable[date]) -> None:
        """Makes the partitions of these UTC days."""

    def drop_before(self, day: date) -> list[str]:
        """Drops the partitions of all earlier UTC days; returns their names."""


_ENSURE_DAYS: Final = "SELECT ensure_sensor_readings_day(day) FROM unnest(%s::date[]) AS day ORDER BY day"

# In the order of the key, so that two writers never deadlock.
_SAVE: Final = """
    INSERT INTO sensor_readings (device_id, sensor, seq, captured_at, monotonic_ns, values)
    SELECT device_id, sensor, seq, captured_at, monotonic_ns, values
    FROM jsonb_to_recordset(%s::jsonb) AS row (
        device_id text, sensor text, seq bigint, captured_at timestamptz, monotonic_ns bigint, values jsonb
    )
    ORDER BY device_id, sensor, captured_at, seq
    ON CONFLICT DO NOTHING
"""


class ReadingsWriter:
    """Writes readings inside the transactions of others. For many threads at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        # Days whose partition was there when it was last needed.
        self._days: frozenset[date] = frozenset()

    def save(self, connection: Connection, rows: Sequence[SensorReadingRow]) -> None:
        days = {row.captured_at.astimezone(UTC).date() for row in rows}
        encoded = msgspec.json.encode(rows).decode()
        self._ensure(connection, days - self._days)
        try:
            with connection.transaction():
                connection.execute(_SAVE, (encoded,))
        except psycopg.errors.CheckViolation:
            # No partition takes it: retention has dropped one that was there.
            self._ensure(connection, days)
            connection.execute(_SAVE, (encoded,))
        with self._lock:
            self._days |= days

    def _ensure(self, connection: Connection, days: Iterable[date]) -> None:
        if wanted := sorted(days):
            connection.execute(_ENSURE_DAYS, (wanted,))


_COLUMNS: Final = "device_id, sensor, seq, captured_at, values, monotonic_ns"

# From key to key and not over all rows: there are few sensors with very many readings each.
_LATEST: Final = f"""
    WITH RECURSIVE found AS (
        (SELECT device_id, sensor FROM sensor_readings ORDER BY device_id, sensor LIMIT 1)
        UNION ALL
        SELECT following.* FROM found, LATERAL (
            SELECT device_id, sensor FROM sensor_readings AS row
            WHERE (row.device_id, row.sensor) > (found.device_id, found.sensor)
            ORDER BY device_id, sensor LIMIT 1
        ) AS following
    )
    SELECT latest.* FROM found, LATERAL (
        SELECT {_COLUMNS} FROM sensor_readings AS row
        WHERE row.device_id = found.device_id AND row.sensor = found.sensor
        ORDER BY captured_at DESC, seq DESC LIMIT 1
    ) AS latest
    ORDER BY latest.device_id, latest.sensor
"""

_READINGS: Final = f"""
    SELECT {_COLUMNS} FROM sensor_readings
    WHERE device_id = %(device_id)s AND sensor = %(sensor)s
        AND captured_at >= %(begin)s AND captured_at < %(end)s
        AND (captured_at, seq) > (%(after_at)s, %(after_seq)s)
    ORDER BY captured_at, seq
    LIMIT %(limit)s
"""

# Two statements, each grouping by a hash or a sort alone: joined, with a new partition of which no statistics
# are known, one would be computed again for every row of the other.
_COUNTED: Final = """
    SELECT date_bin(%(resolution)s, captured_at, '2000-01-01T00:00:00Z') AS at, count(*)
    FROM (
        SELECT captured_at FROM sensor_readings
        WHERE device_id = %(device_id)s AND sensor = %(sensor)s
            AND captured_at >= %(begin)s AND captured_at < %(end)s
        LIMIT %(most)s + 1
    ) AS chosen
    GROUP BY at ORDER BY at
"""

_MEASURED: Final = """
    SELECT date_bin(%(resolution)s, captured_at, '2000-01-01T00:00:00Z') AS at, key,
        avg(value::float8), min(value::float8), max(value::float8)
    FROM sensor_readings, jsonb_each(values)
    WHERE device_id = %(device_id)s AND sensor = %(sensor)s
        AND captured_at >= %(begin)s AND captured_at < %(end)s AND jsonb_typeof(value) = 'number'
    GROUP BY at, key
"""

_KNOWS: Final = "SELECT EXISTS (SELECT 1 FROM sensor_readings WHERE device_id = %s AND sensor = %s)"


def check_not_too_many(readings: int) -> None:
    """Raises `Rejected`: `too_many_readings`."""
    if readings > MOST_AVERAGED:
        raise Rejected(
            "too_many_readings",
            f"There are more than {MOST_AVERAGED:,} readings between `from` and `to`; ask for less at once.",
        )


def cannot_average() -> Rejected:
    return Rejected(
        "cannot_average",
        "A number between `from` and `to` is too large to be averaged; without `resolution` it is shown.",
    )


class PostgresSensors:
    """`Sensors` and `Housekeeping` on Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def latest(self) -> list[SensorReadingRow]:
        return self._rows(_LATEST, {})

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
        # Every number is above 0.
        after_at, after_seq = after or (begin, 0)
        return self._rows(
            _READINGS,
            {
                "device_id": device_id, "sensor": sensor, "begin": begin, "end": end,
                "after_at": after_at, "after_seq": after_seq, "limit": limit,
            },
        )  # fmt: skip

    def buckets(
        self, device_id: str, sensor: str, begin: datetime, end: datetime, resolution: timedelta
    ) -> list[Bucket]:
        asked = {
            "device_id": device_id, "sensor": sensor, "begin": begin, "end": end, "resolution": resolution
        }  # fmt: skip
        with self._database.transaction() as connection:
            counted = connection.execute(_COUNTED, asked | {"most": MOST_AVERAGED}).fetchall()
            check_not_too_many(sum(readings for _, readings in counted))
            try:
                measured = connection.execute(_MEASURED, asked).fetchall()
            except psycopg.errors.NumericValueOutOfRange as error:
                raise cannot_average() from error
        values: dict[datetime, dict[str, dict[str, float]]] = {at: {} for at, _ in counted}
        for at, key, mean, least, most in measured:
            # One that was written in between has a span of its own next time.
            values.setdefault(at, {})[key] = {"mean": mean, "min": least, "max": most}
        return [Bucket(at.astimezone(UTC), readings, values[at]) for at, readings in counted]

    def knows(self, device_id: str, sensor: str) -> bool:
        with self._database.transaction() as connection:
            row = connection.execute(_KNOWS, (device_id, sensor)).fetchone()
        return row is not None and bool(row[0])

    def ensure_days(self, days: Iterable[date]) -> None:
        with self._database.transaction() as connection:
            connection.execute(_ENSURE_DAYS, (sorted(days),))

    def drop_before(self, day: date) -> list[str]:
        with self._database.transaction() as connection:
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (_DROP_LOCK_TIMEOUT,))
            rows = connection.execute("SELECT drop_sensor_readings_before(%s)", (day,)).fetchall()
        return [str(name) for (name,) in rows]

    def _rows(self, statement: str, asked: Mapping[str, Any]) -> list[SensorReadingRow]:
        with self._database.transaction() as connection:
            rows = connection.execute(statement, asked).fetchall()
        return [
            SensorReadingRow(device_id, sensor, seq, captured_at.astimezone(UTC), values, monotonic_ns)
            for device_id, sensor, seq, captured_at, values, monotonic_ns in rows
        ]
