from __future__ import annotations

import pytest

from visionmesh.observability import tracing
from visionmesh.observability.tracing import Trace

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def test_parses_what_it_writes() -> None:
    for sampled in (True, False):
        trace = Trace.new(sampled=sampled)
        assert Trace.parse(str(trace)) == trace


def test_parses_the_example_of_the_standard() -> None:
    assert Trace.parse(f"00-{TRACE}-{SPAN}-01") == Trace(TRACE, SPAN, sampled=True)


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f" 00-{TRACE}-{SPAN}-01 ", True),
        (f"01-{TRACE}-{SPAN}-01-what-a-later-version-adds", True),
    ],
)
def test_flags_and_versions(text: str, sampled: bool) -> None:
    assert Trace.parse(text) == Trace(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rubbish",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
    ],
)
def test_malformed(text: str) -> None:
    assert Trace.parse(text) is None


def test_a_child_stays_in_the_trace() -> None:
    trace = Trace.new(sampled=True)
    child = trace.child()
    assert (child.trace_id, child.sampled) == (trace.trace_id, True)
    assert child.span_id != trace.span_id


def test_only_sampled_traces_travel_over_kafka() -> None:
    sampled = Trace.new(sampled=True)
    ((name, value),) = tracing.to_headers(sampled)
    assert name == "traceparent"
    assert tracing.from_headers([("x", b"1"), (name, value)]) == sampled
    assert tracing.to_headers(Trace.new()) == ()
    assert tracing.to_headers(None) == ()


@pytest.mark.parametrize(
    "headers", [None, [], [("x", b"1")], [("traceparent", None)], [("traceparent", b"\xff")]]
)
def test_records_without_a_trace(headers: list[tuple[str, bytes | None]] | None) -> None:
    assert tracing.from_headers(headers) is None


def test_current() -> None:
    assert tracing.current() is None
    trace = Trace.new()
    with tracing.use(trace):
        assert tracing.current() is trace
    assert tracing.current() is None
