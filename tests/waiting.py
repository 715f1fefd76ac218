"""Waiting for what a test brings about; nothing is asserted about how long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx
from confluent_kafka import KafkaException

from visionmesh.errors import Unavailable

# What a question raises on a machine that stalls for a moment: it is asked again.
_NO_ANSWER = (Unavailable, KafkaException, httpx.TransportError)

T = TypeVar("T")


def answer_of(question: Callable[[], T | None], what: str, *, seconds: float, pause: float = 0.01) -> T:
    """The first answer that is not None. seconds: how long that may take on a busy machine. pause: from one
    question to the next.
    """
    deadline = time.monotonic() + seconds
    while True:
        error: Exception | None = None
        try:
            if (answer := question()) is not None:
                return answer
        except _NO_ANSWER as raised:
            error = raised
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}") from error
        time.sleep(pause)


def eventually(holds: Callable[[], bool], what: str, *, seconds: float) -> None:
    """Waits until it does. seconds: how long that may take on a busy machine."""
    answer_of(lambda: holds() or None, what, seconds=seconds)
