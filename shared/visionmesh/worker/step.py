"""The types between the loop and a step.

A step is a pure function of a batch: it returns, for each message in order, what to store and publish,
or why there is nothing to do. The loop alone has effects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from visionmesh.errors import Rejected
from visionmesh.results import Row
from visionmesh.topics import Topic

C = TypeVar("C", bound=msgspec.Struct)


class Outgoing(msgspec.Struct, frozen=True):
    """A message to publish: `value` is the topic's contract, its key field the record's key."""

    topic: Topic[Any]
    value: msgspec.Struct


class Done(msgspec.Struct, frozen=True):
    """The message was processed; these are its results."""

    rows: tuple[Row, ...] = ()
    messages: tuple[Outgoing, ...] = ()


class Skipped(msgspec.Struct, frozen=True):
    """The message is fine and not this worker's business (its tasks or its media type)."""

    reason: str


def not_asked(task: str) -> Skipped:
    """Of a picture whose tasks are others."""
    return Skipped(f"task_not_asked: {task} is not among the tasks of this picture")


# `Rejected` is returned, not raised, for one message of a batch, so that its neighbours go on.
Verdict = Done | Skipped | Rejected

# Called with 1 to max_batch decoded values; returns as many verdicts. May raise `Unavailable` (the whole
# batch is tried again later); anything else it raises is a bug, which the loop narrows down by bisection.
Step = Callable[[Sequence[C]], Sequence[Verdict]]
