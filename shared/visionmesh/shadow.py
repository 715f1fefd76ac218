"""What a model in shadow may cost the one that answers: nothing but its time in the processor.

Its failures are counted and logged, and its rows are stored apart: by a thread and over a connection of their
own, after the answer is stored. They are lost when the process dies in between, or when the database does not
take them; nobody waits for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Full, Queue
from threading import Thread
from typing import Final

import structlog

from visionmesh.database import Database
from visionmesh.observability import metrics
from visionmesh.registry import ModelSource
from visionmesh.results import PostgresResultStore, ResultStore, Row, ShadowFeaturesRow, ShadowPredictionRow
from visionmesh.settings import Settings

log = structlog.get_logger()

_Unseen = ShadowFeaturesRow | ShadowPredictionRow

# Batches that may wait to be stored: a moment's worth, and some megabytes at the most.
_WAITING: Final = 16

# At the end, so that what a worker did last is compared too.
_CLOSE_SECONDS: Final = 1.0


class Failures:
    """Those of one worker's shadow: counted, and logged once per reason."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._counter = metrics.SHADOW_FAILURES.labels(worker)
        self._logged: str | None = None

    def note(self, reason: str) -> None:
        self._counter.inc()
        if self._logged != reason:
            self._logged = reason
            log.error("shadow_failed", worker=self._worker, reason=reason)


@contextmanager
def open_store(
    settings: Settings, database: Database, worker: str, shadow: ModelSource | None
) -> Iterator[ResultStore]:
    """Where `worker` writes: to `database`, and apart from that what its model in shadow finds, if any."""
    metrics.from_zero(metrics.SHADOW_FAILURES, [worker])
    answers = PostgresResultStore(database)
    if shadow is None:
        yield answers
        return
    with Database(settings.postgres_dsn.get_secret_value(), pool_size=1) as own:
        store = ShadowsApart(answers, PostgresResultStore(own), worker)
        try:
            yield store
        finally:
            store.close(_CLOSE_SECONDS)


class ShadowsApart:
    """A `ResultStore` that writes to `answers`, and the rows of models in shadow to `unseen`, in a thread."""

    def __init__(self, answers: ResultStore, unseen: ResultStore, worker: str) -> None:
        self._answers = answers
        self._unseen = unseen
        self._failures = Failures(worker)
        self._queue: Queue[list[Row] | None] = Queue(_WAITING)
        self._thread = Thread(target=self._store, name=f"{worker}-shadow", daemon=True)
        self._thread.start()

    def interrupted(self, worker: str, image_ids: Sequence[str]) -> list[int]:
        return self._answers.interrupted(worker, image_ids)

    def begin(self, worker: str, image_ids: Sequence[str]) -> None:
        self._answers.begin(worker, image_ids)

    def withdraw(self, worker: str, image_ids: Sequence[str]) -> None:
        self._answers.withdraw(worker, image_ids)

    def save(self, rows: Sequence[Row]) -> None:
        """Returns when the answers are stored."""
        unseen: list[Row] = [row for row in rows if isinstance(row, _Unseen)]
        self._answers.save([row for row in rows if not isinstance(row, _Unseen)])
        if not unseen:
            return
        try:
            self._queue.put_nowait(unseen)
        except Full:
            self._failures.note(f"{_WAITING} batches wait to be stored already")

    def deleted(self, image_ids: Collection[str]) -> set[str]:
        return self._answers.deleted(image_ids)

    def close(self, seconds: float) -> None:
        """Stores what waits, if that takes no longer than `seconds`."""
        with suppress(Full):
            self._queue.put_nowait(None)
            self._thread.join(seconds)

    def _store(self) -> None:
        while (rows := self._queue.get()) is not None:
            try:
                self._unseen.save(rows)
            # Whatever it is, the next batch may have better luck.
            except Exception as error:
                self._failures.note(f"{type(error).__name__}: {error}")
