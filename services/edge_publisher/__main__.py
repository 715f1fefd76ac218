"""`python -m edge_publisher`: the sensors of one device, wired."""

from __future__ import annotations

import sys
from functools import partial
from typing import Final

from pydantic import ValidationError

from edge_publisher.devices.build import open_devices
from edge_publisher.http import make_app
from edge_publisher.live import Live
from edge_publisher.publisher import KafkaSink, Sink
from edge_publisher.queue import ReadingQueue
from edge_publisher.service import StoreAndForward
from visionmesh.kafka import KafkaPublisher
from visionmesh.observability import logs
from visionmesh.service import run_service, start
from visionmesh.settings import EdgeSettings, Settings, get_edge_settings, problems

SERVICE: Final = "edge-publisher"
PORT: Final = 8000

_WRONG_SETTINGS: Final = 2


def open_sinks(settings: Settings, edge: EdgeSettings) -> list[Sink]:
    """Kafka, and MQTT where a broker is named. None of them is asked yet. Raises ValueError."""
    sinks: list[Sink] = [KafkaSink(KafkaPublisher(settings))]
    if edge.mqtt_url is not None:
        # Not every device has the library.
        from edge_publisher.mqtt import MqttBroker, MqttSink

        broker = MqttBroker.from_url(edge.mqtt_url.get_secret_value(), edge.mqtt_tls_ca)
        sinks.append(MqttSink(broker, edge.mqtt_topic, f"visionmesh-{edge.device_id}"))
    return sinks


def serve(settings: Settings) -> int:
    logs.configure(SERVICE, settings)
    try:
        edge = get_edge_settings()
        sinks = open_sinks(settings, edge)
    except ValidationError as error:
        sys.stderr.write(f"{problems(error)}\n")
        return _WRONG_SETTINGS
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return _WRONG_SETTINGS
    queue = ReadingQueue(
        edge.queue_path,
        sinks=[sink.name for sink in sinks],
        max_bytes=edge.queue_max_bytes,
        sync=edge.queue_sync,
    )
    forward = StoreAndForward(queue, sinks, commit_seconds=edge.commit_ms / 1000)
    live = Live()
    forward.on_stored = live.publish
    app = make_app(
        SERVICE,
        edge.device_id,
        partial(open_devices, edge),
        forward,
        live,
        max_concurrent=edge.max_concurrent,
    )
    return run_service(app, forward, port=PORT, settings=settings)


if __name__ == "__main__":
    sys.exit(start(serve))
