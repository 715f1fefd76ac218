"""Spans of sampled traces, sent by OTLP to a collector: off unless `MESH_OTLP_ENDPOINT` names one.

The mesh has ids of its own (`tracing`), which travel with records; here they become spans of OpenTelemetry,
whose package does the batching and the sending. What is not sampled costs a look at one flag.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import structlog

from visionmesh.observability import tracing
from visionmesh.observability.tracing import Trace
from visionmesh.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

log = structlog.get_logger()

Kind = Literal["server", "consumer", "producer", "internal"]
Value = str | int | float | bool

# A collector that is away must not hold the end of a process.
_CLOSE_SECONDS: Final = 1.0
_EXPORT_SECONDS: Final = 2.0
# The thread that may outlast it.
LAST_SPANS: Final = "last-spans"

# Semantic conventions of OpenTelemetry: https://opentelemetry.io/docs/specs/semconv/messaging/kafka/
KAFKA: Final[Mapping[str, Value]] = {"messaging.system": "kafka"}


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time. started_ns, ended_ns: UNIX nanoseconds. error: why it failed, if it did."""

    name: str
    kind: Kind
    trace: Trace
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str | None = None


Sink = Callable[[Span], None]

_sink: Sink | None = None


def record(span: Span) -> None:
    """Hands a span on, if it is sampled and somebody asked for spans."""
    if _sink is not None and span.trace.sampled:
        _sink(span)


@contextmanager
def to(sink: Sink, *, ratio: float) -> Iterator[None]:
    """Hands spans to `sink` as long as the block lasts. ratio: what part of new traces is sampled, 0 to 1."""
    global _sink
    before = _sink
    _sink = sink
    try:
        with tracing.sampling(ratio):
            yield
    finally:
        _sink = before


@contextmanager
def exported(service: str, settings: Settings) -> Iterator[None]:
    """Sends the spans of this process, as long as the block lasts, if the settings name a collector."""
    if settings.otlp_endpoint is None:
        yield
        return
    try:
        exporter = _Exporter(service, settings.otlp_endpoint)
    except ImportError as error:
        log.error("tracing_unavailable", reason=str(error), hint="install visionmesh[tracing]")
        yield
        return
    try:
        with to(exporter, ratio=settings.trace_sample_ratio):
            yield
    finally:
        exporter.close()


class _Exporter:
    """A sink on the packages of OpenTelemetry. Raises ImportError where they are not installed."""

    def __init__(self, service: str, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # In a container the host's name tells the replica, outside its process does.
        replica = f"{socket.gethostname()}:{os.getpid()}"
        self._resource = Resource.create({SERVICE_NAME: service, SERVICE_INSTANCE_ID: replica})
        self._processor: BatchSpanProcessor = BatchSpanProcessor(
            OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_SECONDS),
            schedule_delay_millis=1000,
        )

    def __call__(self, span: Span) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
        from opentelemetry.trace.status import Status, StatusCode

        def context(span_id: str) -> SpanContext:
            return SpanContext(
                int(span.trace.trace_id, 16), int(span_id, 16), False, TraceFlags(TraceFlags.SAMPLED)
            )

        parent = span.trace.parent_id
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=context(span.trace.span_id),
                parent=None if parent is None else context(parent),
                resource=self._resource,
                attributes=dict(span.attributes),
                kind=SpanKind[span.kind.upper()],
                status=Status(StatusCode.UNSET if span.error is None else StatusCode.ERROR, span.error),
                start_time=span.started_ns,
                end_time=span.ended_ns,
            )
        )

    def close(self) -> None:
        """Sends what is left, unless the collector is away."""
        # It has 30 s of its own, and what flushes has no bound at all.
        last = threading.Thread(target=self._processor.shutdown, name=LAST_SPANS, daemon=True)
        last.start()
        last.join(_CLOSE_SECONDS)


def now_ns() -> int:
    """UNIX nanoseconds, as spans have them."""
    return time.time_ns()
