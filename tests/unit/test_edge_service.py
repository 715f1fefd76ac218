"""From sensors over the queue to brokers, on doubles of both; and what is told of it over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient
from prometheus_client import Counter
from prometheus_client.samples import Sample

from edge_doubles import PlayedDevice, eventually, forwarding, reading
from edge_publisher.http import make_app
from edge_publisher.live import _BEHIND, Live
from edge_publisher.publisher import KafkaSink
from edge_publisher.queue import Stored
from edge_publisher.service import StoreAndForward
from visionmesh.contracts import SensorReading
from visionmesh.errors import Unavailable
from visionmesh.observability import metrics
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.topics import SENSORS


def published(broker: MemoryBroker) -> list[SensorReading]:
    """In the order of their partition."""
    return [
        msgspec.json.decode(message.value() or b"", type=SensorReading)
        for message in broker.messages(SENSORS.name)
    ]


def seqs(broker: MemoryBroker) -> list[int]:
    return [each.seq for each in published(broker)]


def samples(counter: Counter) -> list[Sample]:
    (family,) = counter.collect()
    return [sample for sample in family.samples if sample.name.endswith("_total")]


def emptied(forward: StoreAndForward) -> bool:
    return set(forward.health()["waiting"].values()) == {0}


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


def test_what_is_offered_is_published_once_and_in_order(tmp_path: Path, broker: MemoryBroker) -> None:
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())]) as forward:
        for number in range(500):
            forward.offer(reading(number))
        eventually(lambda: len(seqs(broker)) == 500, "500 readings")
        eventually(lambda: emptied(forward), "an empty queue")
    found = published(broker)
    assert [each.seq for each in found] == list(range(1, 501))
    assert [each.values["distance_cm"] for each in found] == [float(number) for number in range(500)]
    assert {message.key() for message in broker.messages(SENSORS.name)} == {b"pi-1"}


def test_losses_are_shown_before_there_is_one(tmp_path: Path, broker: MemoryBroker) -> None:
    # Otherwise the first ones are no rise, and no alert.
    metrics.EDGE_DROPPED.clear()
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())]):
        shown = {sample.labels["reason"]: sample.value for sample in samples(metrics.EDGE_DROPPED)}
    assert shown == {"memory": 0, "bound": 0, "disk_full": 0, "refused": 0}


def test_while_the_broker_is_away_readings_wait_on_disk_and_over_a_restart(
    tmp_path: Path, broker: MemoryBroker
) -> None:
    broker.available = False
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())]) as forward:
        for number in range(50):
            forward.offer(reading(number))
        eventually(lambda: forward.health()["waiting"]["kafka"] == 50, "readings on disk")
        eventually(lambda: bool(forward.health()["problems"]), "a word about it")
        assert forward.health()["problems"] == ["kafka takes no readings: the broker is away."]
        assert forward.status()["ready"], "it works"
    assert seqs(broker) == []
    broker.available = True
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())]) as forward:
        forward.offer(reading(50))
        eventually(lambda: len(seqs(broker)) == 51, "all readings")
        eventually(lambda: emptied(forward), "an empty queue")
        assert forward.health()["problems"] == []
    assert seqs(broker) == list(range(1, 52))


def test_what_was_offered_last_is_published_before_the_end(tmp_path: Path, broker: MemoryBroker) -> None:
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())]) as forward:
        forward.offer(reading(1))
    assert seqs(broker) == [1]


def test_what_comes_while_the_devices_are_being_closed_is_published(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_publisher.service._CLOSE_SECONDS", 600.0)
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())]) as forward:
        forward.stop()
        for number in range(1, 4):
            forward.offer(reading(number))
            eventually(lambda number=number: len(seqs(broker)) == number, "a reading")  # type: ignore[misc]


def test_what_comes_after_the_end_is_counted(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_publisher.service._CLOSE_SECONDS", 0.0)
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())]) as forward:
        pass
    forward.offer(reading(1))
    assert forward.health()["dropped"]["memory"] == 1


def test_what_no_disk_takes_at_the_end_is_counted(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())]) as forward:

        def refuse(_: object) -> list[Stored]:
            raise Unavailable("queue", "the disk is gone")

        monkeypatch.setattr(forward._queue, "put", refuse)
        forward.offer(reading(1))
    assert forward.health()["dropped"]["memory"] == 1


def test_a_reading_that_no_broker_takes_holds_nothing_up(tmp_path: Path, broker: MemoryBroker) -> None:
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())]) as forward:
        forward.offer(reading(1))
        forward.offer(reading(2, word="x" * 2_000_000))
        forward.offer(reading(3))
        eventually(lambda: len(seqs(broker)) == 2 and emptied(forward), "the others")
    assert seqs(broker) == [1, 3]


class Holding:
    """A sink that takes nothing until it is let, and counts."""

    name = "mqtt"

    def __init__(self) -> None:
        self.free = False
        self.taken: list[Stored] = []

    def send(self, batch: Any, give_up: Any) -> int:
        if not self.free:
            raise Unavailable("mqtt", "away")
        self.taken += batch
        return 0

    def close(self) -> None:
        pass


def test_a_bug_on_the_way_to_a_broker_is_told_and_loses_nothing(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_publisher.publisher._FAILED_SECONDS", 0.01)
    sink = KafkaSink(broker.publisher())
    send, failing = sink.send, True

    def fails(*arguments: Any) -> int:
        if failing:
            raise ValueError("a bug")
        return send(*arguments)

    monkeypatch.setattr(sink, "send", fails)
    with forwarding(tmp_path / "q", [sink]) as forward:
        forward.offer(reading(1))
        eventually(lambda: bool(forward.health()["problems"]), "a word about it")
        assert forward.health()["problems"] == ["kafka takes no readings: ValueError: a bug."]
        failing = False
        eventually(lambda: seqs(broker) == [1] and emptied(forward), "the reading")


def test_health_waits_for_no_disk(tmp_path: Path, broker: MemoryBroker) -> None:
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())]) as forward:
        # Held for as long as a commit takes; and by this thread, so that asking for it again would not wait:
        # another one asks.
        with forward._queue._changed, ThreadPoolExecutor(1) as thread:
            assert thread.submit(forward.health).result(30)["problems"] == []


def test_a_sink_that_is_away_does_not_hold_up_the_other(tmp_path: Path, broker: MemoryBroker) -> None:
    mqtt = Holding()
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher()), mqtt]) as forward:
        for number in range(20):
            forward.offer(reading(number))
        eventually(lambda: len(seqs(broker)) == 20, "readings on Kafka")
        eventually(lambda: forward.health()["waiting"] == {"kafka": 0, "mqtt": 20}, "places of their own")
        mqtt.free = True
        eventually(lambda: len(mqtt.taken) == 20, "readings on MQTT")
        eventually(lambda: emptied(forward), "an empty queue")
    assert len(seqs(broker)) == 20


def test_a_disk_that_refuses_is_told_and_readings_are_held(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_publisher.service._RETRY_SECONDS", 0.01)
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())]) as forward:
        put = forward._queue.put

        def refuse(_: object) -> list[Stored]:
            raise Unavailable("queue", "the disk is gone")

        monkeypatch.setattr(forward._queue, "put", refuse)
        forward.offer(reading(1))
        eventually(lambda: not forward.status()["ready"], "a refusal")
        assert forward.health()["problems"] == ["Readings can't be written down: the disk is gone."]
        forward.offer(reading(2))
        monkeypatch.setattr(forward._queue, "put", put)
        eventually(lambda: len(seqs(broker)) == 2, "both readings")
        assert forward.status()["ready"]


def test_what_memory_cannot_hold_is_counted(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_publisher.service._HELD", 5)
    with forwarding(tmp_path / "q", [KafkaSink(broker.publisher())], commit_seconds=5) as forward:
        for number in range(12):
            forward.offer(reading(number))
        health = forward.health()
        assert health["dropped"]["memory"] == 7
        assert "7 readings were dropped" in health["problems"][0]
    assert [each.values["distance_cm"] for each in published(broker)] == [7.0, 8.0, 9.0, 10.0, 11.0]


# Over HTTP


@contextmanager
def running(path: Path, broker: MemoryBroker, *devices: PlayedDevice, **options: Any) -> Iterator[TestClient]:
    live = Live()
    with ExitStack() as stack:
        forward = stack.enter_context(forwarding(path, [KafkaSink(broker.publisher())]))
        forward.on_stored = live.publish
        app = make_app(
            "edge-publisher", "pi-1", lambda: devices, forward, live, **{"max_concurrent": 10} | options
        )
        yield stack.enter_context(TestClient(app))


@pytest.fixture
def device() -> PlayedDevice:
    return PlayedDevice()


@pytest.fixture
def client(tmp_path: Path, broker: MemoryBroker, device: PlayedDevice) -> Iterator[TestClient]:
    with running(tmp_path / "q", broker, device, PlayedDevice("imx477")) as client:
        yield client


def test_what_a_device_measures_is_published(
    client: TestClient, device: PlayedDevice, broker: MemoryBroker
) -> None:
    device.play(*(reading(number) for number in range(20)))
    eventually(lambda: seqs(broker) == list(range(1, 21)), "20 readings")


def test_a_driver_that_fails_is_read_again(
    client: TestClient, device: PlayedDevice, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_publisher.service._DEVICE_RETRY_SECONDS", 0.01)
    device.play(reading(1), ValueError("a bug"), reading(2))
    eventually(lambda: seqs(broker) == [1, 2], "both readings")


def test_a_device_that_fails_to_close_keeps_no_other_open(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> None:
        raise OSError("the port is gone")

    first, second = PlayedDevice(), PlayedDevice("imx477")
    monkeypatch.setattr(first, "close", fails)
    monkeypatch.setattr("edge_publisher.http._HAND_OVER_SECONDS", 0.01)
    with running(tmp_path / "q", broker, first, second):
        second.play(reading(1, "imx477"))
    assert second.is_closed
    assert seqs(broker) == [1]


def test_every_sensor_has_a_route(client: TestClient) -> None:
    answer = client.get("/imx477/sensor")
    assert answer.status_code == 200
    found = answer.json()
    assert (found["device_id"], found["sensor"], found["values"]) == ("pi-1", "imx477", {"distance_cm": 1.5})
    assert set(found) == {"device_id", "sensor", "captured_at", "values", "monotonic_ns"}
    assert client.get("/tfluna/sensor").status_code == 200
    assert [one["sensor"] for one in client.get("/sensors").json()["sensors"]] == ["tfluna", "imx477"]


def test_a_sensor_that_is_not_there(client: TestClient) -> None:
    answer = client.get("/mpu6050/sensor")
    assert answer.status_code == 404
    assert answer.json() == {
        "error": "This device has no sensor 'mpu6050'; it has tfluna, imx477.",
        "code": "sensor_not_found",
    }


def test_a_sensor_that_gives_nothing(client: TestClient, device: PlayedDevice) -> None:
    def nothing() -> dict[str, Any]:
        raise Unavailable("tfluna", "no reading within 2 s")

    device.reads = nothing
    answer = client.get("/tfluna/sensor")
    assert (answer.status_code, answer.json()["code"]) == (503, "tfluna_unavailable")
    assert int(answer.headers["retry-after"]) > 0


def test_health_tells_of_devices_and_queue(client: TestClient, device: PlayedDevice) -> None:
    found = client.get("/health").json()
    assert (found["status"], found["service"], found["device_id"]) == ("ok", "edge-publisher", "pi-1")
    assert [one["sensor"] for one in found["devices"]] == ["tfluna", "imx477"]
    assert found["queue"]["waiting"] == {"kafka": 0}
    device.state.connected, device.state.last_error = False, "unplugged"
    found = client.get("/health").json()
    assert (found["status"], found["problems"]) == ("degraded", ["tfluna is not connected: unplugged"])
    device.state.last_error = None
    (problem,) = client.get("/health").json()["problems"]
    assert problem == "tfluna is not connected: it has given no reading yet"
    assert client.get("/ready").status_code == 200, "the others work"


def test_metrics_show_devices_and_queue(
    client: TestClient, device: PlayedDevice, broker: MemoryBroker
) -> None:
    device.play(reading(1))
    eventually(lambda: seqs(broker) == [1], "a reading")
    shown = client.get("/metrics").text
    assert 'mesh_edge_device_connected{sensor="tfluna"} 1.0' in shown
    for name in ("mesh_edge_readings_total", "mesh_edge_waiting_readings", "mesh_edge_queue_bytes"):
        assert name in shown


def test_no_more_requests_than_allowed_read_a_sensor_at_once_and_health_waits_for_none(
    tmp_path: Path, broker: MemoryBroker
) -> None:
    device = PlayedDevice("imx477")
    with running(tmp_path / "q", broker, device, PlayedDevice(), max_concurrent=3) as client:
        assert client.portal is not None
        device.read_waits = client.portal.call(_event)
        with ThreadPoolExecutor(11) as threads:
            answers = [threads.submit(client.get, "/imx477/sensor") for _ in range(10)]
            try:
                eventually(lambda: device.reading_now == 3, "three that read")
                assert client.get("/health").status_code == 200
                assert client.get("/metrics").status_code == 200
                other = threads.submit(client.get, "/tfluna/sensor")
                assert other.result(30).status_code == 200, "its turn is not the camera's"
            finally:
                client.portal.call(device.read_waits.set)
            assert [answer.result().status_code for answer in answers] == [200] * 10
    assert device.most_at_once == 3


async def _event() -> asyncio.Event:
    return asyncio.Event()


def test_live_readings(client: TestClient, device: PlayedDevice) -> None:
    with (
        client.websocket_connect("/ws") as everything,
        client.websocket_connect("/ws?sensor=imx477") as other,
    ):
        device.play(reading(1), reading(2, "imx477"))
        both = [msgspec.json.decode(everything.receive_text(), type=SensorReading) for _ in range(2)]
        assert [(each.sensor, each.seq) for each in both] == [("tfluna", 1), ("imx477", 1)]
        one = msgspec.json.decode(other.receive_text(), type=SensorReading)
        assert one.sensor == "imx477"


class Blocked:
    """A websocket whose client takes nothing."""

    def __init__(self) -> None:
        self.closed_with: int | None = None
        self.sent = 0

    async def accept(self) -> None: ...

    async def send_text(self, _: str) -> None:
        self.sent += 1
        await asyncio.Event().wait()

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self, code: int, _: str) -> None:
        self.closed_with = code


def test_a_client_that_is_too_slow_is_dropped_and_not_waited_for() -> None:
    async def play() -> Blocked:
        live = Live()
        live.open()
        websocket = Blocked()
        client = asyncio.create_task(live.serve(websocket, frozenset()))  # type: ignore[arg-type]
        while not live._clients:
            await asyncio.sleep(0)
        for number in range(_BEHIND + 2):
            live.publish([Stored(number, "pi-1", "tfluna", b"{}")])
            await asyncio.sleep(0)
        await client
        live.publish([Stored(1, "pi-1", "tfluna", b"{}")])  # nobody listens
        return websocket

    websocket = asyncio.run(play())
    assert websocket.closed_with == 1013
    assert websocket.sent == 1
