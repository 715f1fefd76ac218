"""Logs: one JSON object per line on stderr, from the mesh's own code and from every library alike.

Each line begins with `timestamp` (ISO 8601, UTC), `level`, `service`, `event`, and has, inside a request or
a message of a trace, `trace_id`. `bind` adds fields, such as `image_id`, to all lines of a block.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import structlog
from structlog.types import EventDict, Processor

from visionmesh.observability import tracing
from visionmesh.settings import Settings

# Libraries put addresses into their messages, and an address may hold a password.
# It may have a slash or an @ itself: up to the last one before a space, whatever else that takes along.
_PASSWORD_IN_URL: Final = re.compile(r"(?<=://)([^/\s:@]*):\S+(?=@)")
# In a connection string, in JSON, in what Python shows of a mapping.
_PASSWORD_IN_DSN: Final = re.compile(
    r"""(?i)((?:password|secret)\w*["']?\s*[=:]\s*)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s'"]+)"""
)
# API keys of the mesh (`visionmesh.api_keys`), which are told apart by their beginning, and others' tokens.
_API_KEY: Final = re.compile(r"mesh_[A-Za-z0-9_-]{32,}")
_TOKEN: Final = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/._~=-]{8,}")
_SECRET_NAMES: Final = re.compile(r"(?i)password|secret|token|authorization|api_?key|access_?key")
_HIDDEN: Final = "***"

# What people read first in a line, whatever else it holds.
_FIRST: Final = ("timestamp", "level", "service", "event")

# Their lines say nothing that a metric, or a line of our own, does not.
_QUIET: Final = (
    "uvicorn.access",
    "uvicorn.error",
    "urllib3.connectionpool",
    "asyncio",
    "python_multipart",
    "PIL",
)


def configure(service: str, settings: Settings) -> None:
    """Sets up the logs of this process. To be called once, before anything is logged."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add(service),
    ]
    last: list[Processor] = (
        [
            structlog.processors.format_exc_info,
            _hide_secrets,
            _in_order,
            structlog.processors.JSONRenderer(),
        ]
        if settings.log_format == "json"
        else [
            structlog.processors.format_exc_info,
            _hide_secrets,
            # A richer one would show the variables of every frame, unsearched.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.log_level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def bind(**fields: Any) -> AbstractContextManager[None]:
    """Adds fields to every line that is logged inside the block, by whoever."""
    return structlog.contextvars.bound_contextvars(**fields)


def _add(service: str) -> Processor:
    def add(_: Any, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        trace = tracing.current()
        if trace is not None:
            event["trace_id"] = trace.trace_id
        return event

    return add


def _in_order(_: Any, __: str, event: EventDict) -> EventDict:
    return {name: event[name] for name in _FIRST if name in event} | dict(event)


def _hide_secrets(_: Any, __: str, event: EventDict) -> EventDict:
    return {name: _searched(name, value) for name, value in event.items()}


def _searched(name: str, value: Any) -> Any:
    """A value as JSON has it, what JSON has not as text, without secrets."""
    if _SECRET_NAMES.search(name):
        return _HIDDEN
    if isinstance(value, Mapping):
        return {str(key): _searched(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_searched("", inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return without_passwords(str(value))


def without_passwords(text: str) -> str:
    """`text` with the passwords of addresses and connection strings, keys and tokens replaced."""
    if "@" in text:
        text = _PASSWORD_IN_URL.sub(rf"\1:{_HIDDEN}", text)
    text = _TOKEN.sub(rf"\1 {_HIDDEN}", _API_KEY.sub(_HIDDEN, text))
    return _PASSWORD_IN_DSN.sub(rf"\1{_HIDDEN}", text)
