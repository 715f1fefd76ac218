"""Spans: what is recorded, what is sampled, and that nothing is where nobody asked for it."""

from __future__ import annotations

import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

import waiting
from edge_publisher.publisher import KafkaSink
from edge_publisher.queue import Stored
from visionmesh.contracts import ImageFeatures, ImageUploaded
from visionmesh.errors import Rejected
from visionmesh.http import create_app
from visionmesh.kafka import Record
from visionmesh.observability import spans, tracing
from visionmesh.observability.spans import Span
from visionmesh.observability.tracing import Trace
from visionmesh.settings import Settings
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.testing.results import MemoryResultStore
from visionmesh.topics import SENSORS, Topic
from visionmesh.worker.loop import Worker
from visionmesh.worker.step import Done, Outgoing, Verdict

DEADLINE = 20.0
SAMPLED = Trace.new(sampled=True)
NOT_SAMPLED = Trace.new(sampled=False)

eventually = partial(waiting.eventually, seconds=DEADLINE)


@pytest.fixture
def recorded() -> Iterator[list[Span]]:
    """Everything that is recorded; nothing is sampled by chance."""
    found: list[Span] = []
    with spans.to(found.append, ratio=0.0):
        yield found


def service() -> FastAPI:
    app = create_app("test", checks={})

    @app.post("/things/{name}")
    def make(name: str) -> dict[str, str]:
        if name == "broken":
            raise RuntimeError("a bug")
        return {"trace": str(tracing.current())}

    return app


def test_a_request_of_a_sampled_trace_is_a_span_of_it(recorded: list[Span]) -> None:
    with TestClient(service()) as client:
        inside = client.post("/things/one", headers={"traceparent": str(SAMPLED)}).json()["trace"]
        client.post("/things/two", headers={"traceparent": str(NOT_SAMPLED)})
        client.post("/things/three")
    (span,) = recorded
    assert span.name == "POST /things/{name}"
    assert (span.trace.trace_id, span.trace.parent_id) == (SAMPLED.trace_id, SAMPLED.span_id)
    assert str(span.trace) == inside, "what the request causes comes of this span"
    assert span.attributes["http.response.status_code"] == 200
    assert span.started_ns <= span.ended_ns
    assert span.error is None


def test_a_bug_is_an_error_of_its_span_and_a_wrong_request_is_none(recorded: list[Span]) -> None:
    with TestClient(service()) as client, capture_logs():
        client.post("/things/broken", headers={"traceparent": str(SAMPLED)})
        client.post("/nothing", headers={"traceparent": str(SAMPLED)})
    broken, wrong = recorded
    assert broken.error == "status 500"
    assert (wrong.error, wrong.attributes["http.response.status_code"]) == (None, 404)


@pytest.mark.parametrize(("ratio", "wanted"), [(1.0, ["POST /things/{name}"]), (0.0, [])])
def test_chance_samples_what_does_something_and_no_probe(ratio: float, wanted: list[str]) -> None:
    found: list[Span] = []
    with spans.to(found.append, ratio=ratio), TestClient(service()) as client:
        client.post("/things/one")
        for path in ("/health", "/ready", "/metrics"):
            client.get(path)
    assert [span.name for span in found] == wanted


def test_nobody_who_asked_for_no_spans_has_any() -> None:
    assert not tracing.begin().sampled
    with TestClient(service()) as client:
        assert client.post("/things/one", headers={"traceparent": str(SAMPLED)}).status_code == 200
    with spans.exported("test", Settings()):
        assert not tracing.begin().sampled


def run_worker(
    image_ids: Sequence[str], headers: Any, answer: Callable[[ImageUploaded, Any], Verdict]
) -> Any:
    """A worker that meets these messages in one batch; returns its name and what it published."""
    name = f"traced-{uuid.uuid4().hex[:8]}"
    broker = MemoryBroker()
    topic = Topic(f"in-{name}", ImageUploaded, "image_id", "", (name,))
    out = Topic(f"out-{name}", ImageFeatures, "image_id", "", ())
    broker.publisher().publish(
        [
            Record(topic.name, each.encode(), msgspec.json.encode(ImageUploaded(each, f"b/{each}")), headers)
            for each in image_ids
        ]
    )
    worker = Worker(
        name=name,
        topic=topic,
        step=lambda batch: [answer(value, out) for value in batch],
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
    return name, broker.messages(out.name)


def describe(value: ImageUploaded, out: Topic[ImageFeatures]) -> Verdict:
    if value.image_id == "bad":
        return Rejected("corrupt_image", "why")
    return Done(messages=(Outgoing(out, ImageFeatures(value.image_id, (0.0,) * 20, 20)),))


def test_a_worker_s_work_is_a_span_and_what_it_publishes_comes_of_it(recorded: list[Span]) -> None:
    name, published = run_worker(["one", "bad"], tracing.to_headers(SAMPLED), describe)
    by_image = {span.attributes["visionmesh.image_id"]: span for span in recorded}
    assert by_image.keys() == {"one", "bad"}
    for span in recorded:
        assert (span.trace.trace_id, span.trace.parent_id) == (SAMPLED.trace_id, SAMPLED.span_id)
        assert span.kind == "consumer"
        assert span.attributes["messaging.consumer.group.name"] == name
    assert by_image["bad"].error == "corrupt_image: why"
    assert by_image["one"].error is None
    (message,) = published
    handed_on = tracing.from_headers(message.headers())
    assert handed_on is not None
    assert (handed_on.trace_id, handed_on.span_id) == (SAMPLED.trace_id, by_image["one"].trace.span_id)


@pytest.mark.parametrize("headers", [(), tracing.to_headers(NOT_SAMPLED), (("traceparent", b"rubbish"),)])
def test_a_message_without_a_sampled_trace_has_no_span_and_no_header(
    recorded: list[Span], headers: Any
) -> None:
    _, published = run_worker(["one"], headers, describe)
    assert recorded == []
    assert not published[0].headers()


def test_a_dead_letter_s_line_in_the_log_has_the_id_of_its_trace_and_of_its_picture(
    recorded: list[Span],
) -> None:
    seen: list[tuple[str | None, str]] = []

    def note(_: Any, __: str, event: Any) -> Any:
        trace = tracing.current()
        seen.append((trace.trace_id if trace else None, event["event"]))
        return event

    with capture_logs(processors=[note]) as lines:
        run_worker(["bad"], tracing.to_headers(SAMPLED), describe)
    (letter,) = (line for line in lines if line["event"] == "dead_letter")
    assert letter["image_id"] == "bad"
    assert (SAMPLED.trace_id, "dead_letter") in seen


def test_a_step_that_has_one_message_logs_with_its_ids() -> None:
    found: list[Any] = []

    def look(value: ImageUploaded, out: Any) -> Verdict:
        import structlog

        trace = tracing.current()
        found.append((structlog.contextvars.get_contextvars(), trace and trace.trace_id))
        return describe(value, out)

    run_worker(["one"], tracing.to_headers(SAMPLED), look)
    assert found == [({"image_id": "one"}, SAMPLED.trace_id)]


def test_one_reading_of_a_batch_is_traced_from_the_device() -> None:
    broker = MemoryBroker()
    found: list[Span] = []
    batch = [Stored(number, "pi", "tfluna", b"{}") for number in range(3)]
    with spans.to(found.append, ratio=1.0):
        KafkaSink(broker.publisher()).send(batch, lambda: False)
    (span,) = found
    carried = [tracing.from_headers(message.headers()) for message in broker.messages(SENSORS.name)]
    assert [trace and trace.span_id for trace in carried] == [span.trace.span_id, None, None]
    assert span.attributes["messaging.batch.message_count"] == 3


def test_a_process_without_the_package_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    settings = Settings(otlp_endpoint="http://127.0.0.1:4318", trace_sample_ratio=1.0)
    with capture_logs() as lines, spans.exported("test", settings):
        assert not tracing.begin().sampled
    assert [line["event"] for line in lines] == ["tracing_unavailable"]


def test_a_collector_that_never_answers_does_not_hold_the_end_of_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spans, "_CLOSE_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with spans.exported("test", Settings(otlp_endpoint=url, trace_sample_ratio=1.0)):
            for _ in range(1500):
                spans.record(Span("work", "internal", SAMPLED, 1, 2))
        left = [thread for thread in threading.enumerate() if thread.name == spans.LAST_SPANS]
        assert [thread.daemon for thread in left] == [True], "the end waited for an answer"


def test_a_collector_that_is_away_costs_its_spans_alone() -> None:
    settings = Settings(otlp_endpoint="http://127.0.0.1:1", trace_sample_ratio=1.0)
    with spans.exported("test", settings), TestClient(service()) as client:
        assert client.post("/things/one").status_code == 200
