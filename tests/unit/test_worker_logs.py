"""The lines that a worker logs name the messages that they are about, pictures and readings alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from threading import Event
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from visionmesh.contracts import ImageUploaded, SensorReading
from visionmesh.errors import Rejected, Unavailable
from visionmesh.kafka import Record
from visionmesh.observability import spans, tracing
from visionmesh.observability.spans import Span
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.topics import DEAD_LETTER_MAX_BYTES, IMAGES, SENSORS
from visionmesh.worker.batch import BatchRunner
from visionmesh.worker.step import Done, Verdict

AT = datetime(2026, 11, 22, tzinfo=UTC)


def picture(image_id: str) -> Record:
    value = msgspec.json.encode(ImageUploaded(image_id, f"raw-images/{image_id}"))
    return Record(IMAGES.name, image_id.encode(), value)


def reading(seq: int, device_id: str = "pi-1") -> Record:
    value = msgspec.json.encode(SensorReading(device_id, "tfluna", seq, AT, {"distance_cm": 1.0}))
    return Record(SENSORS.name, device_id.encode(), value)


def lines(event: str, records: Sequence[Record], step: Callable[[Any], Sequence[Verdict]]) -> list[Any]:
    """What is logged of an event when these come as one batch."""
    broker = MemoryBroker()
    topic: Any = IMAGES if records[0].topic == IMAGES.name else SENSORS
    for record in records:
        broker.append(record)
    runner = BatchRunner[Any](
        name="worker",
        topic=topic,
        step=step,
        publisher=broker.publisher(),
        store=None,
        record_attempts=False,
        max_attempts=3,
        stop=Event(),
    )
    with capture_logs() as logged:
        runner.run(broker.messages(topic.name))
    return [line for line in logged if line["event"] == event]


def refuse(values: Sequence[Any]) -> list[Verdict]:
    return [Rejected("corrupt_image", "why") for _ in values]


def do(values: Sequence[Any]) -> list[Verdict]:
    return [Done() for _ in values]


def ids(line: dict[str, Any]) -> dict[str, Any]:
    names = ("image_id", "image_ids", "device_id", "device_ids", "sensor", "seq")
    return {name: line[name] for name in names if name in line}


@pytest.mark.parametrize(
    ("record", "named"),
    [
        (picture("one"), {"image_id": "one"}),
        (reading(7), {"device_id": "pi-1", "sensor": "tfluna", "seq": 7}),
    ],
    ids=["picture", "reading"],
)
def test_a_dead_letter_s_line_names_its_message(record: Record, named: dict[str, Any]) -> None:
    (line,) = lines("dead_letter", [record], refuse)
    assert ids(line) == named


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        (b"pi-1", b"NaN", {"device_id": "pi-1"}),
        (None, b'{"device_id": "pi-1", "sensor": "imu", "seq": 0}', {"device_id": "pi-1", "sensor": "imu"}),
        (b"pi-2", b'{"sensor": ["tfluna"], "seq": 7}', {"device_id": "pi-2", "seq": 7}),
        (b"\xff", b'{"device_id": "no id", "seq": "7"}', {}),
        (None, b"[]", {}),
    ],
)
def test_of_what_is_not_understood_what_can_be_read_is_named(
    key: bytes | None, value: bytes, named: dict[str, Any]
) -> None:
    (line,) = lines("dead_letter", [Record(SENSORS.name, key, value)], do)
    assert (line["code"], ids(line)) == ("invalid_message", named)


def test_a_dead_letter_that_nobody_takes_is_named() -> None:
    large = Record(SENSORS.name, b"pi-1", b" " * (DEAD_LETTER_MAX_BYTES + 1))
    (line,) = lines("dead_letter_refused", [large], do)
    assert ids(line) == {"device_id": "pi-1"}


def test_a_step_that_fails_names_the_first_of_its_batch() -> None:
    def step(values: Sequence[ImageUploaded]) -> list[Verdict]:
        if len(values) > 15:
            raise RuntimeError("a bug")
        return do(values)

    found = lines("step_failed", [picture(f"image-{number}") for number in range(30)], step)
    assert [line["batch"] for line in found] == [30]
    assert len(set(found[0]["image_ids"])) == 20
    assert set(found[0]["image_ids"]) < {f"image-{number}" for number in range(30)}


@pytest.mark.parametrize(
    ("records", "named"),
    [
        ([picture("one"), picture("two")], {"image_ids": ["one", "two"]}),
        ([reading(1), reading(2), reading(1, "pi-2")], {"device_ids": ["pi-1", "pi-2"]}),
    ],
    ids=["pictures", "readings"],
)
def test_who_waits_for_a_server_names_what_waits(records: list[Record], named: dict[str, Any]) -> None:
    away = iter([Unavailable("object_store", "no answer")])

    def step(values: Sequence[Any]) -> list[Verdict]:
        for error in away:
            raise error
        return do(values)

    (line,) = lines("waiting", records, step)
    assert {name: sorted(found) for name, found in ids(line).items()} == named
    assert line["server"] == "object_store"


def test_what_a_step_logs_of_a_lone_reading_names_it() -> None:
    seen: list[Any] = []

    def step(values: Sequence[Any]) -> list[Verdict]:
        seen.append(structlog.contextvars.get_contextvars())
        return do(values)

    lines("", [reading(7)], step)
    assert seen == [{"device_id": "pi-1", "sensor": "tfluna", "seq": 7}]


def test_the_span_of_a_reading_names_it() -> None:
    sampled = tracing.Trace.new(sampled=True)
    traced = msgspec.structs.replace(reading(7), headers=tracing.to_headers(sampled))
    found: list[Span] = []
    with spans.to(found.append, ratio=0.0):
        lines("", [traced], do)
    (span,) = found
    named = {name: span.attributes[f"visionmesh.{name}"] for name in ("device_id", "sensor", "seq")}
    assert named == {"device_id": "pi-1", "sensor": "tfluna", "seq": 7}
