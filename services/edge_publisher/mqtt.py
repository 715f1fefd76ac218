"""An MQTT broker as a second sink: `<topic>/<device_id>/<sensor>`, the same JSON as on Kafka, with QoS 1.

Readings come at least once, in the order of each sensor; one that came twice is told by its number.
Format: MQTT 3.1.1, https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/mqtt-v3.1.1.html
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from paho.mqtt.client import Client, ConnectFlags, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_publisher.queue import Stored
from visionmesh.errors import Unavailable

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}

_CONNECT_SECONDS: Final = 5.0

# A broker that acknowledges nothing for so long is away.
_ACKNOWLEDGE_SECONDS: Final = 10.0

# How soon a process that ends is noticed while an acknowledgement is waited for.
_SLICE_SECONDS: Final = 0.2

# Messages under way at once; with one after the other a batch would take as many round trips.
_IN_FLIGHT: Final = 200


@dataclass(frozen=True, slots=True)
class MqttBroker:
    """Where a broker is, and who one is there. tls_ca: PEM; the system's authorities when None."""

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None
    tls_ca: Path | None = None

    @classmethod
    def from_url(cls, url: str, tls_ca: Path | None = None) -> MqttBroker:
        """`mqtt[s]://[user:password@]host[:port]`. Raises ValueError with a sentence."""
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/"):
            raise ValueError("EDGE_MQTT_URL has to be like mqtt://host:1883 or mqtts://user:password@host")
        return cls(
            parts.hostname,
            parts.port or _PORTS[parts.scheme],
            parts.scheme == "mqtts",
            None if parts.username is None else unquote(parts.username),
            None if parts.password is None else unquote(parts.password),
            tls_ca,
        )


class MqttSink:
    """A `Sink`. paho's thread does the network; `send` only waits, in the sink's own thread."""

    name = "mqtt"

    def __init__(self, broker: MqttBroker, topic: str, client_id: str) -> None:
        self._broker = broker
        self._topic = topic.strip("/")
        self._client_id = client_id
        self._client: Client | None = None

    def send(self, batch: Sequence[Stored], give_up: Callable[[], bool]) -> int:
        client = self._client = self._client or self._connect()
        try:
            sent = [
                client.publish(f"{self._topic}/{each.device_id}/{each.sensor}", each.value, qos=1)
                for each in batch
            ]
            _wait_for(sent, give_up)
        except BaseException:
            # It would send again by itself what is sent again from the queue.
            self.close()
            raise
        return 0

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _connect(self) -> Client:
        broker = self._broker
        client = Client(CallbackAPIVersion.VERSION2, client_id=self._client_id)
        client.max_inflight_messages_set(_IN_FLIGHT)
        if broker.username is not None:
            client.username_pw_set(broker.username, broker.password)
        answered = Event()
        refusals: list[str] = []

        def on_connect(
            _: Client, __: Any, ___: ConnectFlags, code: ReasonCode, ____: Properties | None
        ) -> None:
            if code.is_failure:
                refusals.append(str(code))
            answered.set()

        client.on_connect = on_connect
        try:
            if broker.tls:
                client.tls_set(None if broker.tls_ca is None else str(broker.tls_ca))
            client.connect(broker.host, broker.port)
        except OSError as error:
            raise Unavailable("mqtt", f"{broker.host}:{broker.port}: {error}") from error
        client.loop_start()
        if answered.wait(_CONNECT_SECONDS) and not refusals:
            return client
        client.loop_stop()
        raise Unavailable("mqtt", refusals[0] if refusals else f"no answer within {_CONNECT_SECONDS:g} s")


def _wait_for(sent: Sequence[MQTTMessageInfo], give_up: Callable[[], bool]) -> None:
    """Until the broker has acknowledged all of them. Raises `Unavailable`."""
    latest = time.monotonic()
    try:
        for message in sent:
            while not message.is_published():
                message.wait_for_publish(_SLICE_SECONDS)
                if give_up():
                    raise Unavailable("mqtt", "stopped while waiting for an acknowledgement")
                if time.monotonic() - latest > _ACKNOWLEDGE_SECONDS:
                    raise Unavailable("mqtt", f"nothing was acknowledged for {_ACKNOWLEDGE_SECONDS:g} s")
            latest = time.monotonic()
    except (RuntimeError, ValueError) as error:
        # paho's words for a message that is not on its way, which follows from a lost connection.
        raise Unavailable("mqtt", str(error)) from error
