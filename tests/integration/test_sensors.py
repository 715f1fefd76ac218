"""Readings in the database and back: on the double and on Postgres."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from threading import Thread
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from ingest_api.sensors import sensor_routes
from sensor_sink.retention import Keeper
from visionmesh.database import Database
from visionmesh.errors import Rejected
from visionmesh.http import create_app
from visionmesh.results import PostgresResultStore
from visionmesh.sensors import Housekeeping, PostgresSensors, SensorReadingRow, Sensors
from visionmesh.testing.results import MemoryResultStore

# A day of its own for each test, so that none meets the partitions of another.
_days = iter(range(1, 10_000))


@dataclass(frozen=True)
class Store:
    """Both sides of the table. day: midnight of a day that is the test's own. device: likewise."""

    save: Callable[[Sequence[SensorReadingRow]], None]
    sensors: Sensors
    tables: Housekeeping
    day: datetime
    device: str

    def row(self, seq: int, seconds: float = 0, sensor: str = "tfluna", **values: Any) -> SensorReadingRow:
        at = self.day + timedelta(seconds=seconds)
        return SensorReadingRow(self.device, sensor, seq, at, values or {"distance_cm": 1.5}, seq)

    def stored(self, sensor: str = "tfluna") -> list[SensorReadingRow]:
        begin, end = self.day - timedelta(days=2), self.day + timedelta(days=3)
        return self.sensors.readings(self.device, sensor, begin, end, limit=10_000)


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.servers)])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    day = datetime(2003, 1, 1, tzinfo=UTC) + timedelta(days=10 * next(_days))
    device = f"pi-{uuid.uuid4().hex[:8]}"
    if request.param == "memory":
        memory = MemoryResultStore()
        yield Store(memory.save, memory.sensors, memory.sensors, day, device)
        return
    with Database(request.getfixturevalue("postgres_dsn")) as database:
        sensors = PostgresSensors(database)
        yield Store(PostgresResultStore(database).save, sensors, sensors, day, device)


def test_what_is_written_is_read_as_it_was(store: Store) -> None:
    row = store.row(1, 0.123456, a=1.5, b=2, c=True, d="word", e=None)
    store.save([row, store.row(2, 1)])
    assert store.stored()[0] == row


def test_the_same_readings_twice_are_the_same_rows(store: Store) -> None:
    rows = [store.row(seq, seq) for seq in range(1, 6)]
    store.save(rows + rows[:2])
    store.save(rows)
    assert store.stored() == rows


def test_late_and_out_of_order_readings_find_their_place_and_their_day(store: Store) -> None:
    day = 86_400
    order = [
        store.row(5, day),
        store.row(1, -day),
        store.row(3, 2),
        store.row(2, 1),
        store.row(4, day - 0.001),
    ]
    for row in order:
        store.save([row])
    assert [row.seq for row in store.stored()] == [1, 2, 3, 4, 5]


def test_a_page_goes_on_where_the_last_one_ended(store: Store) -> None:
    rows = [store.row(seq, 0 if seq < 4 else 1) for seq in range(1, 8)]
    store.save(rows)
    found: list[SensorReadingRow] = []
    after = None
    while page := store.sensors.readings(
        store.device, "tfluna", store.day, store.day + timedelta(1), limit=2, after=after
    ):
        found += page
        after = page[-1].captured_at, page[-1].seq
    assert found == rows


def test_the_end_of_a_period_is_not_in_it(store: Store) -> None:
    store.save([store.row(1, 0), store.row(2, 10)])
    end = store.day + timedelta(seconds=10)
    found = store.sensors.readings(store.device, "tfluna", store.day, end, limit=9)
    assert [row.seq for row in found] == [1]


def test_spans_of_time_have_mean_and_extremes_of_numbers(store: Store) -> None:
    store.save(
        [
            store.row(1, 0, a=1, b=True, c="x", d=None),
            store.row(2, 9.9, a=4),
            store.row(3, 10, a=-7.5, d=1),
            store.row(4, 30, b=False),
        ]
    )
    buckets = store.sensors.buckets(
        store.device, "tfluna", store.day, store.day + timedelta(days=1), timedelta(seconds=10)
    )
    assert [(each.at - store.day, each.readings, each.values) for each in buckets] == [
        (timedelta(0), 2, {"a": {"mean": 2.5, "min": 1, "max": 4}}),
        (
            timedelta(seconds=10),
            1,
            {"a": {"mean": -7.5, "min": -7.5, "max": -7.5}, "d": {"mean": 1, "min": 1, "max": 1}},
        ),
        (timedelta(seconds=30), 1, {}),
    ]


def test_more_readings_than_can_be_averaged_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save([store.row(seq, seq) for seq in range(1, 5)])
    asked = store.device, "tfluna", store.day, store.day + timedelta(days=1), timedelta(seconds=1)
    monkeypatch.setattr("visionmesh.sensors.MOST_AVERAGED", 4)
    assert len(store.sensors.buckets(*asked)) == 4
    monkeypatch.setattr("visionmesh.sensors.MOST_AVERAGED", 3)
    with pytest.raises(Rejected, match="more than 3 readings"):
        store.sensors.buckets(*asked)


def test_the_latest_of_every_sensor(store: Store) -> None:
    store.save([store.row(1), store.row(9, 9), store.row(2, 3), store.row(1, 1, sensor="imx477")])
    latest = [row for row in store.sensors.latest() if row.device_id == store.device]
    assert [(row.sensor, row.seq) for row in latest] == [("imx477", 1), ("tfluna", 9)]
    assert store.sensors.knows(store.device, "tfluna")
    assert not store.sensors.knows(store.device, "hcsr04")


def test_retention_takes_whole_days_and_what_comes_late_all_the_same_is_taken(store: Store) -> None:
    first = store.day.date()
    store.save([store.row(1, 0), store.row(2, 86_400), store.row(3, 2 * 86_400)])
    name = f"sensor_readings_{first:%Y%m%d}"
    assert name in store.tables.drop_before(first + timedelta(days=1))
    assert name not in store.tables.drop_before(first + timedelta(days=1))
    assert [row.seq for row in store.stored()] == [2, 3]
    store.save([store.row(4, 5)])
    assert [row.seq for row in store.stored()] == [4, 2, 3]
    store.tables.drop_before(first + timedelta(days=3))


def test_the_keeper_makes_days_ahead_and_drops_those_that_are_over() -> None:
    class Tables:
        def __init__(self) -> None:
            self.made: list[date] = []
            self.dropped_before: list[date] = []

        def ensure_days(self, days: Any) -> None:
            self.made += days

        def drop_before(self, day: date) -> list[str]:
            self.dropped_before.append(day)
            return ["a"]

    tables = Tables()
    night = datetime(2026, 11, 21, 23, 30, tzinfo=UTC)
    Keeper(tables, retention_days=30, now=lambda: night).keep()
    assert tables.made == [date(2026, 11, day) for day in (21, 22, 23, 24)]
    assert tables.dropped_before == [date(2026, 10, 22)]
    Keeper(tables, retention_days=None, now=lambda: night).keep()
    assert len(tables.dropped_before) == 1


def test_two_sinks_that_need_the_same_new_day_both_write(postgres_dsn: str) -> None:
    day = datetime(2003, 1, 1, tzinfo=UTC) + timedelta(days=10 * next(_days))
    device = f"pi-{uuid.uuid4().hex[:8]}"
    failures: list[BaseException] = []

    def write(number: int) -> None:
        rows = [
            SensorReadingRow(device, "tfluna", seq, day + timedelta(days=seq % 5, seconds=seq), {"a": 1})
            for seq in range(1, 101)
        ]
        try:
            with Database(postgres_dsn) as database:
                PostgresResultStore(database).save(rows if number % 2 else rows[::-1])
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with psycopg.connect(postgres_dsn) as connection:
        counted = "SELECT count(*), count(DISTINCT seq) FROM sensor_readings WHERE device_id = %s"
        assert connection.execute(counted, (device,)).fetchone() == (100, 100)


# Over HTTP


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    app = create_app("test", checks={})
    app.include_router(sensor_routes(store.sensors, now=lambda: store.day + timedelta(seconds=100)))
    with TestClient(app) as client:
        yield client


def test_the_listing_shows_the_latest(store: Store, client: TestClient) -> None:
    store.save([store.row(1, 0), store.row(2, 1.5, distance_cm=7)])
    (found,) = [one for one in client.get("/sensors").json()["sensors"] if one["device_id"] == store.device]
    assert found == {
        "device_id": store.device,
        "sensor": "tfluna",
        "seq": 2,
        "captured_at": f"{store.day:%Y-%m-%d}T00:00:01.500000Z",
        "monotonic_ns": 2,
        "values": {"distance_cm": 7},
    }


def test_readings_page_by_page(store: Store, client: TestClient) -> None:
    store.save([store.row(seq, seq) for seq in range(1, 6)])
    address = f"/sensors/{store.device}/tfluna/readings"
    asked = {"from": f"{store.day:%Y-%m-%dT%H:%M:%SZ}", "limit": "2"}
    found: list[int] = []
    answer = client.get(address, params=asked).json()
    while True:
        found += [one["seq"] for one in answer["readings"]]
        if answer["next"] is None:
            break
        answer = client.get(address, params=asked | {"after": answer["next"]}).json()
    assert found == [1, 2, 3, 4, 5]


def test_spans_over_http_and_the_usual_period(store: Store, client: TestClient) -> None:
    store.save([store.row(seq, seq * 10, a=seq) for seq in range(1, 10)])
    address = f"/sensors/{store.device}/tfluna/readings"
    answer = client.get(address, params={"resolution": "1m"}).json()
    assert [(one["readings"], one["values"]["a"]["mean"]) for one in answer["buckets"]] == [(5, 3), (4, 7.5)]
    assert datetime.fromisoformat(answer["to"]) - datetime.fromisoformat(answer["from"]) == timedelta(hours=1)
    assert len(client.get(address).json()["readings"]) == 9


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("from=yesterday", 400, "bad_period"),
        ("from=2026-11-21T14:00:00+01:00", 400, "bad_period"),
        ("from=2026-11-21&to=2026-11-20", 400, "bad_period"),
        ("from=0001-01-01T00:00:00%2B14:00", 400, "bad_period"),
        ("resolution=1x", 400, "bad_resolution"),
        ("resolution=0s", 400, "bad_resolution"),
        ("resolution=1ms", 400, "bad_resolution"),
        ("limit=0", 422, "invalid_request"),
        ("after=nonsense", 422, "bad_cursor"),
        ("from=2026-11-21", 404, "sensor_not_found"),
    ],
)
def test_what_cannot_be_answered_is_told(
    store: Store, client: TestClient, query: str, status: int, code: str
) -> None:
    period = "" if "from=" in query else f"&from={store.day - timedelta(days=1):%Y-%m-%d}"
    to = "" if "to=" in query else "&to=2026-11-22"
    if code == "bad_resolution":
        period = to = ""
    answer = client.get(f"/sensors/{store.device}/none/readings?{query}{period}{to}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["error"].endswith((".", ")."))


def test_a_number_that_can_not_be_averaged_is_told_and_shown(store: Store, client: TestClient) -> None:
    store.save([store.row(1, 0, a=10**400), store.row(2, 1, a=1)])
    address = f"/sensors/{store.device}/tfluna/readings"
    answer = client.get(address, params={"resolution": "1m"})
    assert (answer.status_code, answer.json()["code"]) == (422, "cannot_average")
    assert [one["values"]["a"] for one in client.get(address).json()["readings"]] == [10**400, 1]


def test_an_hour_before_the_first_moment_is_no_period(client: TestClient) -> None:
    answer = client.get("/sensors/pi-1/tfluna/readings?to=0001-01-01T00:30:00Z")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_period")


@pytest.mark.parametrize("address", ["a%00b/tfluna", "pi-1/a%00b", "pi 1/tfluna"])
def test_a_name_that_no_sensor_can_have_is_not_found(client: TestClient, address: str) -> None:
    answer = client.get(f"/sensors/{address}/readings")
    assert (answer.status_code, answer.json()["code"]) == (404, "sensor_not_found")


def test_a_sensor_that_is_known_but_silent_is_an_empty_answer(store: Store, client: TestClient) -> None:
    store.save([store.row(1, 0)])
    answer = client.get(
        f"/sensors/{store.device}/tfluna/readings?from={store.day - timedelta(days=1):%Y-%m-%d}"
        f"&to={store.day:%Y-%m-%d}"
    )
    assert (answer.status_code, answer.json()["readings"]) == (200, [])
