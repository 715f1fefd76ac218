"""What sensors measured: `GET /sensors` and `GET /sensors/{device_id}/{sensor}/readings`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Response

from ingest_api.answers import BucketsAnswer, ReadingsAnswer, SensorsAnswer
from visionmesh.contracts import DEVICE_ID_PATTERN
from visionmesh.errors import Rejected
from visionmesh.http import told
from visionmesh.sensors import Bucket, SensorReadingRow, Sensors

# What else stands in the address names nothing that was ever stored, and not all of it could be asked for.
_NAME: Final = re.compile(DEVICE_ID_PATTERN)

_MAX_READINGS: Final = 10_000
_MAX_BUCKETS: Final = 10_000

# When no beginning is named.
_USUAL_PERIOD: Final = timedelta(hours=1)

_RESOLUTION: Final = re.compile(r"(?P<count>[1-9]\d{0,6})(?P<unit>ms|s|m|h|d)")
_UNITS: Final = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}

Moment = Annotated[str | None, Query(description="RFC 3339; UTC when no time zone is named")]


def sensor_routes(sensors: Sensors, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> APIRouter:
    """now: the wall clock."""
    router = APIRouter(prefix="/sensors", tags=["sensors"])

    @router.get("", responses=told(SensorsAnswer, 503))
    def listing() -> Response:
        """Every sensor of every device, with its latest reading."""
        return _json({"sensors": [_reading(row, with_source=True) for row in sensors.latest()]})

    @router.get(
        "/{device_id}/{sensor}/readings",
        responses=told(ReadingsAnswer | BucketsAnswer, 400, 404, 422, 503),
    )
    def readings(
        device_id: str,
        sensor: str,
        begin: Annotated[
            Moment, Query(alias="from", description="the first moment; an hour before `to`")
        ] = None,
        end: Annotated[Moment, Query(alias="to", description="the first moment after; now")] = None,
        resolution: Annotated[
            str | None, Query(description="spans of time, like 10s, 1m, 6h or 1d; every reading when absent")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=_MAX_READINGS, description="readings on a page")] = 1000,
        after: Annotated[str | None, Query(description="the `next` of the page before")] = None,
    ) -> Response:
        """The readings of a sensor, oldest first, or what they were on average in each span of time."""
        if not (_NAME.match(device_id) and _NAME.match(sensor)):
            raise _not_found(device_id, sensor)
        since, until = _period(begin, end, now)
        answer: dict[str, Any] = {"device_id": device_id, "sensor": sensor, "from": since, "to": until}
        if resolution is None:
            rows = sensors.readings(
                device_id, sensor, since, until,
                limit=limit, after=None if after is None else _read_place(after),
            )  # fmt: skip
            found = _page(rows, limit)
        else:
            width = _width(resolution, until - since)
            buckets = sensors.buckets(device_id, sensor, since, until, width)
            found = {"resolution": resolution, "buckets": [_bucket(bucket) for bucket in buckets]}
        if not (found.get("readings") or found.get("buckets")) and not sensors.knows(device_id, sensor):
            raise _not_found(device_id, sensor)
        return _json(answer | found)

    return router


def _not_found(device_id: str, sensor: str) -> Rejected:
    return Rejected("sensor_not_found", f"No reading of {sensor!r} of {device_id!r} is known.")


def _period(begin: str | None, end: str | None, now: Callable[[], datetime]) -> tuple[datetime, datetime]:
    until = now() if end is None else _moment("to", end)
    try:
        since = until - _USUAL_PERIOD if begin is None else _moment("from", begin)
    except OverflowError as error:
        raise Rejected("bad_period", "There is no hour before `to`.") from error
    if since >= until:
        raise Rejected("bad_period", "`from` has to be earlier than `to`.")
    return since, until


def _moment(name: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Rejected(
            "bad_period",
            f"`{name}` is no time like 2026-11-21T14:00:00Z (in an address, + is written %2B).",
        ) from error


def _width(text: str, period: timedelta) -> timedelta:
    found = _RESOLUTION.fullmatch(text)
    if found is None:
        raise Rejected("bad_resolution", "`resolution` is a number and ms, s, m, h or d, like 10s or 1h.")
    width = int(found["count"]) * _UNITS[found["unit"]]
    if period / width > _MAX_BUCKETS:
        raise Rejected(
            "bad_resolution",
            f"That would be {period / width:.0f} spans of time; at most {_MAX_BUCKETS} are given at once.",
        )
    return width


def _page(rows: Sequence[SensorReadingRow], limit: int) -> dict[str, Any]:
    """next: what to send as `after` for the page after; None on the last one."""
    return {
        "readings": [_reading(row) for row in rows],
        "next": _place(rows[-1]) if len(rows) == limit else None,
    }


def _reading(row: SensorReadingRow, *, with_source: bool = False) -> dict[str, Any]:
    source = {"device_id": row.device_id, "sensor": row.sensor} if with_source else {}
    return source | {
        "seq": row.seq,
        "captured_at": row.captured_at,
        "monotonic_ns": row.monotonic_ns,
        "values": row.values,
    }


def _bucket(bucket: Bucket) -> dict[str, Any]:
    return {"at": bucket.at, "readings": bucket.readings, "values": bucket.values}


def _place(row: SensorReadingRow) -> str:
    """The place of a reading among those of its sensor, as text that needs no quoting in a URL."""
    return f"{row.captured_at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ},{row.seq}"


def _read_place(text: str) -> tuple[datetime, int]:
    moment, _, seq = text.partition(",")
    try:
        return datetime.fromisoformat(moment).astimezone(UTC), int(seq)
    except (ValueError, OverflowError) as error:
        raise Rejected("bad_cursor", "`after` is the `next` of the page before.") from error


def _json(answer: object) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
