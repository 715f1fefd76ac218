"""The queue feeds a real mosquitto (Debian: apt install mosquitto); skipped where there is none."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from edge_doubles import eventually, forwarding, reading
from edge_publisher.mqtt import MqttBroker, MqttSink
from edge_publisher.publisher import KafkaSink
from visionmesh.contracts import SensorReading
from visionmesh.errors import Unavailable
from visionmesh.stack.ports import free_port
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.topics import SENSORS

PROGRAM = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")


@dataclass
class Mosquitto:
    """A broker with the user `edge`, and all that was published there."""

    folder: Path
    port: int = field(default_factory=free_port)
    readings: list[tuple[str, SensorReading]] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        passwords = self.folder / "passwords"
        program = shutil.which("mosquitto_passwd")
        assert program is not None
        subprocess.run([program, "-c", "-b", str(passwords), "edge", "sec:ret"], check=True)
        passwords.chmod(0o644)
        # Started by root it becomes a user of its own, who may not read what is here.
        (self.folder / "conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\nuser root\n"
        )

    def start(self) -> None:
        assert PROGRAM is not None
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "-c", str(self.folder / "conf")], stdout=log, stderr=log
            )
        subscribed = threading.Event()
        self.client = Client(CallbackAPIVersion.VERSION2)
        self.client.username_pw_set("edge", "sec:ret")
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.on_message = self._received

        def listens() -> bool:
            try:
                self.client.connect("127.0.0.1", self.port)
            except OSError:
                return False
            return True

        eventually(listens, "mosquitto")
        self.client.loop_start()
        assert subscribed.wait(30)

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        assert self.process is not None
        self.process.terminate()
        self.process.wait()

    def seqs(self) -> list[int]:
        return sorted({each.seq for _, each in self.readings})

    def sink(self, user: str = "edge:sec%3Aret@") -> MqttSink:
        return MqttSink(MqttBroker.from_url(f"mqtt://{user}127.0.0.1:{self.port}"), "home/", "test")

    def _received(self, _: object, __: object, message: MQTTMessage) -> None:
        self.readings.append((message.topic, msgspec.json.decode(message.payload, type=SensorReading)))


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    mosquitto = Mosquitto(tmp_path)
    mosquitto.start()
    yield mosquitto
    mosquitto.stop()


def test_every_reading_goes_to_both(tmp_path: Path, mosquitto: Mosquitto) -> None:
    kafka = MemoryBroker()
    with forwarding(tmp_path / "q", [KafkaSink(kafka.publisher()), mosquitto.sink()]) as forward:
        for number in range(700):
            forward.offer(reading(number))
        forward.offer(reading(1, "hcsr04"))
        eventually(lambda: len(mosquitto.readings) >= 701, "readings on MQTT")
        eventually(lambda: forward.health()["waiting"] == {"kafka": 0, "mqtt": 0}, "an empty queue")
    assert {topic for topic, _ in mosquitto.readings} == {"home/pi-1/tfluna", "home/pi-1/hcsr04"}
    assert mosquitto.seqs() == list(range(1, 701))
    on_kafka = {message.value() for message in kafka.messages(SENSORS.name)}
    assert {msgspec.json.encode(each) for _, each in mosquitto.readings} == on_kafka


def test_a_broker_that_goes_and_comes_back_misses_nothing(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with forwarding(tmp_path / "q", [mosquitto.sink()]) as forward:
        forward.offer(reading(1))
        eventually(lambda: mosquitto.seqs() == [1], "the first reading")
        mosquitto.stop()
        for number in range(2, 301):
            forward.offer(reading(number))
        eventually(lambda: bool(forward.health()["problems"]), "a word about it")
        mosquitto.start()
        eventually(lambda: mosquitto.seqs() == list(range(1, 301)), "all readings")
        eventually(lambda: forward.health()["waiting"]["mqtt"] == 0, "an empty queue")


def test_who_may_not_publish_is_told_and_loses_nothing(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with forwarding(tmp_path / "q", [mosquitto.sink("edge:wrong@")]) as forward:
        forward.offer(reading(1))
        eventually(lambda: bool(forward.health()["problems"]), "a word about it")
        assert "Not authorized" in forward.health()["problems"][0]
    with forwarding(tmp_path / "q", [mosquitto.sink()]) as forward:
        eventually(lambda: mosquitto.seqs() == [1], "the reading")


def test_a_broker_that_was_never_there(tmp_path: Path) -> None:
    sink = MqttSink(MqttBroker.from_url("mqtt://127.0.0.1:1"), "home", "test")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1: "):
        sink.send([], lambda: False)
    sink.close()


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("mqtt://host", MqttBroker("host", 1883, False, None, None)),
        ("mqtts://u:p%40@h:99", MqttBroker("h", 99, True, "u", "p@")),
    ],
)
def test_an_address_is_read(url: str, broker: MqttBroker) -> None:
    assert MqttBroker.from_url(url) == broker


@pytest.mark.parametrize("url", ["host", "http://host", "mqtt://", "mqtt://host/topic"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="EDGE_MQTT_URL"):
        MqttBroker.from_url(url)
