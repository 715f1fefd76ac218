"""What workers find, and the port through which it reaches the database.

A row is a plain value; `ResultStore` writes many of them in one transaction. Every write is an
idempotent upsert: the same rows written twice leave the same table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

OutcomeState = Literal["running", "done", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class FeaturesRow:
    """Table `image_features`, one per image. `model` is `name@version` of the extractor."""

    image_id: str
    descriptors: tuple[float, ...]
    model: str


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """Table `predictions`, one per image and classifier.

    probabilities: one per label, in the order of `labels`.
    latency_ms: inference time of this picture: the batch's time divided by its size.
    """

    image_id: str
    classifier: str
    label: str
    confidence: float
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    model: str
    model_version: str
    latency_ms: float


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """Table `task_outcomes`, one per image and worker: what became of a piece of work.

    error: `code: reason` when `failed` or `skipped`, else None.
    """

    image_id: str
    worker: str
    state: OutcomeState
    error: str | None = None


Row = FeaturesRow | PredictionRow | OutcomeRow


class ResultStore(Protocol):
    """Where workers write. Raises `Unavailable("database", …)` when the server is away."""

    def interrupted(self, worker: str, image_ids: Sequence[str]) -> list[int]:
        """For each image, how many attempts of `worker` began since the last one that came to an end.

        Anything above 0 means that the process died in the middle: of this picture, or of a neighbour.
        """

    def begin(self, worker: str, image_ids: Sequence[str]) -> None:
        """Writes down, before native code runs, that `worker` is about to try these images.

        Committed on return, so that it survives the death of the caller. Adds 1 to `interrupted` until a
        final `OutcomeRow` is saved, which sets it to 0.
        """

    def withdraw(self, worker: str, image_ids: Sequence[str]) -> None:
        """Takes one `begin` back: nothing was tried, because a server was away."""

    def save(self, rows: Sequence[Row]) -> None:
        """Writes all rows in one transaction; of two rows with one key the later one stays."""
