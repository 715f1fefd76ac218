"""What workers, classifiers and the sink count, beside what `tests/unit/test_metrics.py` says of the list."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec
from prometheus_client import REGISTRY

import waiting
from sensor_sink.step import make_step
from visionmesh.contracts import ImageFeatures, ImageUploaded, SensorReading
from visionmesh.errors import Rejected
from visionmesh.kafka import Record
from visionmesh.observability import metrics
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.testing.results import MemoryResultStore
from visionmesh.topics import Topic
from visionmesh.worker.loop import Worker
from visionmesh.worker.step import Done, Outgoing, Skipped, Verdict

DEADLINE = 20.0

eventually = partial(waiting.eventually, seconds=DEADLINE)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def uuid7(age_seconds: float) -> str:
    """An id as the mesh gives it to a picture that was uploaded so long ago."""
    milliseconds = int((time.time() - age_seconds) * 1000)
    text = uuid.uuid4().hex
    return str(uuid.UUID(f"{milliseconds:012x}7{text[13:]}"))


def run(image_ids: Sequence[str], verdict: Callable[[ImageUploaded, Topic[ImageFeatures]], Verdict]) -> str:
    """A worker that meets these messages; returns its name."""
    name = f"counted-{uuid.uuid4().hex[:8]}"
    broker = MemoryBroker()
    topic = Topic(f"in-{name}", ImageUploaded, "image_id", "", (name,))
    out = Topic(f"out-{name}", ImageFeatures, "image_id", "", ())
    values = [msgspec.json.encode(ImageUploaded(each, f"b/{each}")) for each in image_ids]
    broker.publisher().publish([Record(topic.name, None, value) for value in values])
    worker = Worker(
        name=name,
        topic=topic,
        step=lambda batch: [verdict(value, out) for value in batch],
        consumer=broker.consumer(name),
        publisher=broker.publisher(),
        store=MemoryResultStore(),
    )
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    try:
        eventually(lambda: broker.lag(topic.name, name) == 0, "an end of all messages")
    finally:
        worker.stop()
        thread.join(DEADLINE)
    assert sample("mesh_messages_in_flight", worker=name) == 0
    return name


def done(value: ImageUploaded, out: Topic[ImageFeatures]) -> Verdict:
    return Done(messages=(Outgoing(out, ImageFeatures(value.image_id, (0.0,) * 20, 20)),))


def test_the_way_from_upload_to_result_is_told_of_pictures_whose_id_tells_the_time() -> None:
    version_4 = "9b2d3c1e-0000-4000-8000-000000000000"
    almost = "xxxxxxxx-0000-7000-8000-000000000000"
    ahead = uuid7(-50)
    name = run([uuid7(20), uuid7(40), ahead, version_4, almost, "by-hand"], done)
    assert sample("mesh_end_to_end_seconds_count", worker=name) == 3
    assert 60 <= sample("mesh_end_to_end_seconds_sum", worker=name) < 60 + DEADLINE * 2
    assert sample("mesh_end_to_end_seconds_bucket", worker=name, le="10.0") == 1, "a clock that is ahead"


def test_what_came_to_no_result_has_no_way_to_it() -> None:
    for verdict in (Skipped("not asked for"), Rejected("broken", "why")):
        name = run([uuid7(1)], lambda value, out, verdict=verdict: verdict)  # type: ignore[misc]
        assert sample("mesh_end_to_end_seconds_count", worker=name) == 0
        assert sample("mesh_messages_published_total", worker=name, topic=f"out-{name}") == 0


def test_what_goes_out_is_counted_and_dead_letters_are_not() -> None:
    name = run(
        ["a", "b", "c"], lambda value, out: Rejected("x", "y") if value.image_id == "b" else done(value, out)
    )
    assert sample("mesh_messages_published_total", worker=name, topic=f"out-{name}") == 2
    assert sample("mesh_dead_letters_total", worker=name, code="x") == 1


def reading(device: str, sensor: str, at: datetime) -> SensorReading:
    return SensorReading(device, sensor, 1, at, {"distance_cm": 1.0})


def newest(device: str, sensor: str) -> float | None:
    labels = {"device_id": device, "sensor": sensor}
    return REGISTRY.get_sample_value("mesh_sensor_last_reading_timestamp_seconds", labels)


def test_when_each_sensor_measured_last_is_told_and_never_goes_back() -> None:
    now = datetime.now(UTC)
    step = make_step(lambda: now)
    device = f"device-{uuid.uuid4().hex[:8]}"
    late = now - timedelta(hours=1)
    step([reading(device, "tfluna", late), reading(device, "tfluna", now), reading(device, "hcsr04", late)])
    step([reading(device, "tfluna", late)])
    assert newest(device, "tfluna") == now.timestamp()
    assert newest(device, "hcsr04") == late.timestamp()
    before = newest(device, "tfluna")
    (refused,) = step([reading(device, "tfluna", now + timedelta(days=3))])
    assert isinstance(refused, Rejected)
    assert newest(device, "tfluna") == before


def test_whoever_names_sensors_at_will_makes_no_series_at_will() -> None:
    now = datetime.now(UTC)
    step = make_step(lambda: now)
    prefix = uuid.uuid4().hex[:8]
    known = sample("mesh_sensor_readings_total", sensor="other")
    step([reading(f"{prefix}-{number}", f"kind-{number}", now) for number in range(1200)])
    assert sample("mesh_sensor_readings_total", sensor="other") == known + 1200
    assert sample("mesh_sensor_readings_total", sensor="kind-1") == 0
    # All at once: the registry holds what every test before has counted, and each look reads the whole of it.
    (family,) = metrics.SENSOR_LAST_READING.collect()
    assert sum(one.labels["device_id"].startswith(prefix) for one in family.samples) == 1000


def test_what_is_taken_and_not_finished_is_in_flight() -> None:
    seen: list[float] = []

    def look(value: ImageUploaded, out: Topic[ImageFeatures]) -> Verdict:
        seen.append(sample("mesh_messages_in_flight", worker=out.name.removeprefix("out-")))
        return done(value, out)

    run([f"picture-{number}" for number in range(5)], look)
    assert seen == [5.0] * 5
