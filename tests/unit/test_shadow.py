from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from threading import Event

import pytest
from structlog.testing import capture_logs

import waiting
from visionmesh.errors import Unavailable
from visionmesh.observability import metrics
from visionmesh.results import (
    FeaturesRow,
    OutcomeRow,
    PredictionRow,
    Row,
    ShadowFeaturesRow,
    ShadowPredictionRow,
)
from visionmesh.shadow import ShadowsApart
from visionmesh.testing.results import MemoryResultStore

WORKER = "classifier-apart"
DEADLINE = 30.0
eventually = partial(waiting.eventually, seconds=DEADLINE)


def batch(number: int) -> list[Row]:
    """What a worker writes of one picture."""
    image_id = f"picture-{number:03}"
    answer = (image_id, "apart", "cat", 0.75, ("cat", "dog"), (0.75, 0.25), "model", "1", 2.0)
    return [
        FeaturesRow(image_id, (0.5,), "extractor@1"),
        ShadowFeaturesRow(image_id, (0.25,), "other@1", 1.0),
        PredictionRow(*answer),
        ShadowPredictionRow(*answer),
        OutcomeRow(image_id, WORKER, "done"),
    ]


class Broken(MemoryResultStore):
    """Waits until it is let go, then fails as it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.go = Event()
        self.asked = Event()

    def save(self, rows: Sequence[Row]) -> None:
        self.asked.set()
        assert self.go.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        super().save(rows)


def failures() -> float:
    return metrics.SHADOW_FAILURES.labels(WORKER)._value.get()


def test_rows_of_a_shadow_are_stored_apart() -> None:
    answers, unseen = MemoryResultStore(), MemoryResultStore()
    for _ in range(2):
        store = ShadowsApart(answers, unseen, WORKER)
        store.begin(WORKER, ["picture-001", "picture-002"])
        store.withdraw(WORKER, ["picture-002"])
        assert store.interrupted(WORKER, ["picture-001", "picture-002"]) == [1, 0]
        store.save([*batch(1), *batch(2)])
        store.close(DEADLINE)
        ids = ["picture-001", "picture-002"]
        assert [row.image_id for row in answers.features()] == ids
        assert [row.image_id for row in answers.predictions()] == ids
        assert [row.state for row in answers.outcomes()] == ["done", "done"]
        assert answers.shadow_features() == answers.shadow_predictions() == []
        assert [row.image_id for row, _ in unseen.shadow_features()] == ids
        assert [row.image_id for row, _ in unseen.shadow_predictions()] == ids
        assert unseen.features() == unseen.predictions() == unseen.outcomes() == []


@pytest.mark.parametrize(
    "error", [Unavailable("database", "gone"), ValueError("no such number"), OSError(28)]
)
def test_rows_that_can_not_be_stored_cost_the_answer_nothing(error: Exception) -> None:
    answers, unseen = MemoryResultStore(), Broken(error)
    unseen.go.set()
    before = failures()
    with capture_logs() as logs:
        store = ShadowsApart(answers, unseen, WORKER)
        for number in range(3):
            store.save(batch(number))
        eventually(lambda: failures() == before + 3, "three failures")
        unseen.error = None
        store.save(batch(3))
        store.close(DEADLINE)
    assert len(answers.predictions()) == 4
    # What comes after the failures is stored again, and a reason is said once.
    assert [row.image_id for row, _ in unseen.shadow_features()] == ["picture-003"]
    assert [(line["event"], line["worker"]) for line in logs] == [("shadow_failed", WORKER)]


def test_nobody_waits_for_a_shadow_that_is_slow_to_store() -> None:
    answers, unseen = MemoryResultStore(), Broken()
    store = ShadowsApart(answers, unseen, WORKER)
    before = failures()
    store.save(batch(0))
    assert unseen.asked.wait(DEADLINE)
    # One is being stored, sixteen wait, and the others are dropped: memory has an end.
    for number in range(1, 20):
        store.save(batch(number))
    assert len(answers.predictions()) == 20
    assert failures() == before + 3
    unseen.go.set()
    eventually(lambda: len(unseen.shadow_features()) == 17, "the rows of the shadow")
    store.close(DEADLINE)


def test_an_end_does_not_wait_for_it_either() -> None:
    store = ShadowsApart(MemoryResultStore(), unseen := Broken(), WORKER)
    store.save(batch(0))
    store.close(0.01)
    assert unseen.shadow_features() == []
    unseen.go.set()


def test_no_row_of_a_shadow_without_its_answer() -> None:
    answers, unseen = Broken(Unavailable("database", "gone")), MemoryResultStore()
    answers.go.set()
    store = ShadowsApart(answers, unseen, WORKER)
    with pytest.raises(Unavailable, match="gone"):
        store.save(batch(0))
    store.close(DEADLINE)
    assert unseen.shadow_features() == []
