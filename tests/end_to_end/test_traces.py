"""One trace from an upload to all its results, as a collector of OpenTelemetry gets it; one of a reading."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from running_mesh import RunningMesh, running_mesh, until
from visionmesh.observability.tracing import Trace
from visionmesh.topics import CLASSIFIERS, IMAGES

ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Received:
    """A span as the collector got it."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]


class Collector:
    """Takes what is sent to `/v1/traces`."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.url = ""

    def of(self, trace_id: str) -> dict[str, Received]:
        """The spans of a trace by their services."""
        return {span.service: span for span in list(self.spans) if span.trace_id == trace_id}

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            )
            for scope in resource.scope_spans:
                self.spans += [
                    Received(
                        service,
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        {each.key: each.value.string_value for each in span.attributes},
                    )
                    for span in scope.spans
                ]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            collector.take(body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def mesh(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    environment = {"MESH_OTLP_ENDPOINT": collector.url, "MESH_TRACE_SAMPLE_RATIO": "1"}
    with running_mesh(tmp_path_factory.mktemp("mesh"), environment=environment) as mesh:
        yield mesh


def test_an_upload_and_all_its_results_are_one_trace(mesh: RunningMesh, collector: Collector) -> None:
    client = Trace.new(sampled=True)
    answer = mesh.http.post(
        "/upload",
        files={"file": (ROOT / "samples/qr.png").read_bytes()},
        headers={"traceparent": str(client)},
    )
    image_id = answer.json()["image_id"]
    workers = {*IMAGES.consumers, *CLASSIFIERS}

    def complete() -> dict[str, Received] | None:
        found = collector.of(client.trace_id)
        return found if found.keys() == {"ingest-api", *workers} else None

    spans = until(complete, "a span of every service")
    assert spans["ingest-api"].name == "POST /upload"
    assert spans["ingest-api"].parent_id == client.span_id
    for reader in IMAGES.consumers:
        assert spans[reader].parent_id == spans["ingest-api"].span_id
    for classifier in CLASSIFIERS:
        assert spans[classifier].parent_id == spans["feature-extractor"].span_id
    for worker in workers:
        assert spans[worker].attributes["visionmesh.image_id"] == image_id
        assert spans[worker].attributes["visionmesh.outcome"] == "done"


def test_a_reading_is_traced_from_the_device_to_its_row(mesh: RunningMesh, collector: Collector) -> None:
    def complete() -> tuple[Received, Received] | None:
        published = {span.span_id: span for span in list(collector.spans) if span.service == "edge-publisher"}
        for span in list(collector.spans):
            if span.service == "sensor-sink" and span.parent_id in published:
                return published[span.parent_id], span
        return None

    sent, stored = until(complete, "a reading that was sent and stored")
    assert sent.trace_id == stored.trace_id
    assert sent.parent_id == ""
