"""W3C trace context: which request a line of the log, a record or a row goes back to.

Every request has a trace, so that its log lines can be found together. Only a sampled one travels on with
the records it causes: a `traceparent` header costs 33 bytes a record. It is sampled when the client says so,
or by chance where spans are sent (`spans`).

Format: https://www.w3.org/TR/trace-context/#traceparent-header
"""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Final

HEADER: Final = "traceparent"

# A later version may append fields; version ff does not exist.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-.*)?"
)
_SAMPLED: Final = 0x01


@dataclass(frozen=True, slots=True)
class Trace:
    """A place in a trace. trace_id: 32 hex digits; span_id: 16; parent_id: the span that it came of."""

    trace_id: str
    span_id: str
    sampled: bool
    parent_id: str | None = None

    @classmethod
    def new(cls, *, sampled: bool = False) -> Trace:
        """The first span of a new trace."""
        return cls(secrets.token_hex(16), secrets.token_hex(8), sampled)

    @classmethod
    def parse(cls, text: str) -> Trace | None:
        """Reads a `traceparent`; None when it is malformed, which the standard says to ignore."""
        found = _TRACEPARENT.fullmatch(text.strip())
        if found is None or (found["version"] == "00" and found["more"] is not None):
            return None
        if int(found["trace"], 16) == 0 or int(found["span"], 16) == 0:
            return None
        return cls(found["trace"], found["span"], bool(int(found["flags"], 16) & _SAMPLED))

    def child(self) -> Trace:
        """A new span of the same trace, which came of this one."""
        return replace(self, span_id=secrets.token_hex(8), parent_id=self.span_id)

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.sampled else 0:02x}"


# What part of the traces that begin here is sampled, 0 to 1.
_ratio = 0.0


@contextmanager
def sampling(ratio: float) -> Iterator[None]:
    """Samples by chance as long as the block lasts, in the whole process."""
    global _ratio
    before, _ratio = _ratio, ratio
    try:
        yield
    finally:
        _ratio = before


def begin() -> Trace:
    """The first span of a trace that begins here, sampled or not as chance has it."""
    return Trace.new(sampled=random.random() < _ratio)


_current: ContextVar[Trace | None] = ContextVar("visionmesh_trace", default=None)


def current() -> Trace | None:
    """The trace that the running request or message belongs to."""
    return _current.get()


@contextmanager
def use(trace: Trace | None) -> Iterator[None]:
    """Makes `trace` the current one."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


def to_headers(trace: Trace | None) -> tuple[tuple[str, bytes], ...]:
    """The Kafka headers that carry `trace` on: none unless it is sampled."""
    return ((HEADER, str(trace).encode()),) if trace is not None and trace.sampled else ()


def from_headers(headers: Iterable[tuple[str, bytes | None]] | None) -> Trace | None:
    """The trace that a record carries, if any."""
    for name, value in headers or ():
        if name == HEADER and value is not None:
            return Trace.parse(value.decode("ascii", "replace"))
    return None
