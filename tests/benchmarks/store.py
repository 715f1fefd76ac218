"""`store`: result upserts against psycopg row by row and asyncpg's `executemany`.

All write the same rows, as a classifier does: a prediction and an outcome per picture, on a connection that
is already open, one transaction per batch. They take turns.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.figures import figure, ratio
from benchmarks.servers import native, peer_python
from visionmesh.database import Database, migrate
from visionmesh.results import OutcomeRow, PostgresResultStore, PredictionRow, Row

BATCH_SIZES: Final = (64, 512)
BATCHES: Final = 20
LABELS: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ASYNCPG: Final = Path(__file__).parent / "peers" / "asyncpg_upserts.py"

PREDICTION: Final = """
    INSERT INTO predictions (
        image_id, classifier, label, confidence, labels, probabilities, model, model_version, latency_ms
    ) VALUES ({}) ON CONFLICT (image_id, classifier) DO UPDATE SET
        label = excluded.label, confidence = excluded.confidence, labels = excluded.labels,
        probabilities = excluded.probabilities, model = excluded.model,
        model_version = excluded.model_version, latency_ms = excluded.latency_ms
"""
OUTCOME: Final = """
    INSERT INTO task_outcomes (image_id, worker, state, error, attempt, finished_at)
    VALUES ({}, 1, now()) ON CONFLICT (image_id, worker) DO UPDATE SET
        state = excluded.state, error = excluded.error, finished_at = excluded.finished_at
"""

Batch = list[tuple[PredictionRow, OutcomeRow]]
# Writes batches and returns the seconds it took.
Way = Callable[[Sequence[Batch]], float]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", help="a Postgres of no importance; a native stack when absent")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.dsn:
        measure(options.dsn, options.rounds)
        return
    with native() as endpoints:
        measure(endpoints.postgres_dsn, options.rounds)


def measure(dsn: str, rounds: int) -> None:
    migrate(dsn)
    peers = peer_python()
    with mesh(dsn) as ours, row_by_row(dsn) as psycopg_rows:
        ways = {"mesh": ours, "psycopg row by row": psycopg_rows}
        if peers is None:
            print("store: asyncpg is not installed (`make bench` installs it)")
            for size in BATCH_SIZES:
                measure_size(ways, size, rounds)
            return
        with executemany(peers, dsn) as asyncpg_rows:
            ways["asyncpg executemany"] = asyncpg_rows
            for size in BATCH_SIZES:
                measure_size(ways, size, rounds)


def measure_size(ways: dict[str, Way], size: int, rounds: int) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, write in ways.items():
            seconds = write([batch(f"{size}-{number}-{name}-{index}", size) for index in range(BATCHES)])
            if number > 0:  # the first round warms up statements and pages
                speeds[name].append(2 * size * BATCHES / seconds)
    for name, values in speeds.items():
        figure(f"store: {name}, {size} pictures", values, "rows/s")
    ours = speeds["mesh"]
    ratio(f"store: mesh / psycopg, {size} pictures", ours, speeds["psycopg row by row"], ">= 5")
    if "asyncpg executemany" in speeds:
        ratio(f"store: mesh / asyncpg, {size} pictures", ours, speeds["asyncpg executemany"], ">= 0.8")


def batch(prefix: str, size: int) -> Batch:
    rows = []
    for index in range(size):
        image_id = f"{prefix}-{index}"
        weights = [random.random() for _ in LABELS]
        shares = tuple(weight / sum(weights) for weight in weights)
        found = PredictionRow(
            image_id, "fast", LABELS[0], max(shares), LABELS, shares, "classifier-fast", "1", 1.5
        )
        rows.append((found, OutcomeRow(image_id, "classifier-fast", "done")))
    return rows


@contextmanager
def mesh(dsn: str) -> Iterator[Way]:
    with Database(dsn) as database:
        store = PostgresResultStore(database)

        def write(batches: Sequence[Batch]) -> float:
            rows: list[list[Row]] = [[row for pair in batch for row in pair] for batch in batches]
            started = time.perf_counter()
            for each in rows:
                store.save(each)
            return time.perf_counter() - started

        yield write


@contextmanager
def row_by_row(dsn: str) -> Iterator[Way]:
    prediction = PREDICTION.format(", ".join(["%s"] * 9))
    outcome = OUTCOME.format(", ".join(["%s"] * 4))
    with psycopg.connect(dsn) as connection:

        def write(batches: Sequence[Batch]) -> float:
            rows = [[(_prediction(a), _outcome(b)) for a, b in batch] for batch in batches]
            started = time.perf_counter()
            for each in rows:
                for found, ended in each:
                    connection.execute(prediction, found)
                    connection.execute(outcome, ended)
                connection.commit()
            return time.perf_counter() - started

        yield write


@contextmanager
def executemany(python: str, dsn: str) -> Iterator[Way]:
    prediction = PREDICTION.format(", ".join(f"${number}" for number in range(1, 10)))
    outcome = OUTCOME.format(", ".join(f"${number}" for number in range(1, 5)))
    with subprocess.Popen(
        [python, str(ASYNCPG), dsn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        requests, answers = peer.stdin, peer.stdout

        def write(batches: Sequence[Batch]) -> float:
            request = [
                [[prediction, [_prediction(a) for a, _ in batch]], [outcome, [_outcome(b) for _, b in batch]]]
                for batch in batches
            ]
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            answer = answers.readline()
            if not answer:
                raise RuntimeError(f"{ASYNCPG.name} ended with status {peer.wait()}")
            return float(answer)

        yield write


def _prediction(row: PredictionRow) -> list[Any]:
    labels, probabilities = list(row.labels), list(row.probabilities)
    values = [row.image_id, row.classifier, row.label, row.confidence, labels, probabilities]
    return [*values, row.model, row.model_version, row.latency_ms]


def _outcome(row: OutcomeRow) -> list[Any]:
    return [row.image_id, row.worker, row.state, row.error]


if __name__ == "__main__":
    main(sys.argv[1:])
