"""Result upserts: `PostgresResultStore` against psycopg row by row and asyncpg's executemany.

All write the same rows of one batch, as a classifier does: a prediction and an outcome per picture, on a
connection that is already open, one transaction per batch. asyncpg comes from the benchmarks' own
environment; without it only the other ratio is printed.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg

from benchmarks.figures import figure, ratio
from visionmesh.database import Database, migrate
from visionmesh.results import OutcomeRow, PostgresResultStore, PredictionRow, Row

BATCHES: Final = (64, 512)
BATCHES_PER_ROUND: Final = 20
LABELS: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

PREDICTION: Final = """
    INSERT INTO predictions (
        image_id, classifier, label, confidence, labels, probabilities, model, model_version, latency_ms
    ) VALUES ({}) ON CONFLICT (image_id, classifier) DO UPDATE SET
        label = excluded.label, confidence = excluded.confidence, labels = excluded.labels,
        probabilities = excluded.probabilities, model = excluded.model,
        model_version = excluded.model_version, latency_ms = excluded.latency_ms
"""
OUTCOME: Final = """
    INSERT INTO task_outcomes (image_id, worker, state, attempt, error, finished_at)
    VALUES ({}, 1, {}, now()) ON CONFLICT (image_id, worker) DO UPDATE SET
        state = excluded.state, error = excluded.error, finished_at = excluded.finished_at
"""

Batch = list[tuple[PredictionRow, OutcomeRow]]
Write = Callable[[Batch], None]


def main(dsn: str, rounds: int = 5) -> None:
    """Prints rows per second of each way and the ratios. `dsn` is a server of no importance."""
    migrate(dsn)
    peers = Peers(dsn)
    with Database(dsn) as database:
        store = PostgresResultStore(database)

        def ours(batch: Batch) -> None:
            rows: list[Row] = [row for pair in batch for row in pair]
            store.save(rows)

        ways: dict[str, Write] = {"visionmesh": ours, "psycopg row by row": peers.row_by_row}
        if peers.has_asyncpg:
            ways["asyncpg executemany"] = peers.executemany
        for size in BATCHES:
            _measure(ways, size, rounds)
    peers.close()


def _measure(ways: dict[str, Write], size: int, rounds: int) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, write in ways.items():
            batches = [_batch(f"{size}-{number}-{name}-{index}", size) for index in range(BATCHES_PER_ROUND)]
            started = time.perf_counter()
            for batch in batches:
                write(batch)
            elapsed = time.perf_counter() - started
            if number > 0:  # the first round warms up statements and pages
                speeds[name].append(2 * size * BATCHES_PER_ROUND / elapsed)
    for name, values in speeds.items():
        figure(f"store {size} pictures, {name}", values, "rows/s")
    ours = speeds["visionmesh"]
    ratio(f"store {size} pictures, to psycopg", ours, speeds["psycopg row by row"], ">= 5")
    if "asyncpg executemany" in speeds:
        ratio(f"store {size} pictures, to asyncpg", ours, speeds["asyncpg executemany"], ">= 0.8")


def _batch(prefix: str, size: int) -> Batch:
    batch = []
    for index in range(size):
        weights = [random.random() for _ in LABELS]
        probabilities = tuple(weight / sum(weights) for weight in weights)
        batch.append(
            (
                PredictionRow(
                    f"{prefix}-{index}", "fast", LABELS[0], max(probabilities), LABELS, probabilities,
                    "classifier-fast", "1", 1.5,
                ),
                OutcomeRow(f"{prefix}-{index}", "classifier-fast", "done"),
            )
        )  # fmt: skip
    return batch


class Peers:
    """The two other ways, each on one open connection."""

    def __init__(self, dsn: str) -> None:
        self._psycopg = psycopg.connect(dsn)
        self._loop = asyncio.new_event_loop()
        self._asyncpg: Any = None
        try:
            asyncpg = importlib.import_module("asyncpg")
        except ModuleNotFoundError:
            return
        self._asyncpg = self._loop.run_until_complete(asyncpg.connect(dsn))

    @property
    def has_asyncpg(self) -> bool:
        return self._asyncpg is not None

    def row_by_row(self, batch: Batch) -> None:
        prediction = PREDICTION.format(", ".join(["%s"] * 9))
        outcome = OUTCOME.format("%s, %s, %s", "%s")
        for found, ended in batch:
            self._psycopg.execute(prediction, _values(found))
            self._psycopg.execute(outcome, (ended.image_id, ended.worker, ended.state, ended.error))
        self._psycopg.commit()

    def executemany(self, batch: Batch) -> None:
        self._loop.run_until_complete(self._executemany(batch))

    async def _executemany(self, batch: Batch) -> None:
        prediction = PREDICTION.format(", ".join(f"${n}" for n in range(1, 10)))
        outcome = OUTCOME.format("$1, $2, $3", "$4")
        async with self._asyncpg.transaction():
            await self._asyncpg.executemany(prediction, [_values(found) for found, _ in batch])
            await self._asyncpg.executemany(
                outcome, [(ended.image_id, ended.worker, ended.state, ended.error) for _, ended in batch]
            )

    def close(self) -> None:
        self._psycopg.close()
        if self._asyncpg is not None:
            self._loop.run_until_complete(self._asyncpg.close())
        self._loop.close()


def _values(row: PredictionRow) -> tuple[Any, ...]:
    return (
        row.image_id, row.classifier, row.label, row.confidence, list(row.labels), list(row.probabilities),
        row.model, row.model_version, row.latency_ms,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5)
