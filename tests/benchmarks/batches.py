"""`batches`: a classifier with half a core works off a full topic, in micro-batches and one by one.

Both are the real service on the native stack, in a control group of 0.5 CPU from their first moment; all
messages lie in the topic before it starts. Micro-batches are what it takes by itself: whatever waits, up
to 256. They take turns with the same service told to take one message at a time. What was done when is
read from the rows that were stored: all of a batch have the time of its transaction.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import psutil
import psycopg

from benchmarks.figures import figure, percentile, ratio
from benchmarks.limits import NoLimitError, share_of_a_core
from benchmarks.replicas import Distribution, distribution, metrics_of, started
from benchmarks.servers import native, prepared
from visionmesh.contracts import ImageFeatures
from visionmesh.kafka import KafkaPublisher, Record
from visionmesh.mesh import Replica, Service
from visionmesh.model_store import ModelStore
from visionmesh.settings import Settings, get_settings
from visionmesh.stack import Endpoints
from visionmesh.topics import FEATURES

CPU = 0.5
WORK_SECONDS = 600.0

Connection = psycopg.Connection[tuple[float, int, float]]


@dataclass(frozen=True)
class Round:
    """One topic worked off. rate: messages per second. cores: used on average since the process began.

    largest: messages of the largest batch. sizes: messages handed to the step at once. steps: seconds in the
    step. model: milliseconds of each batch in the model alone.
    """

    rate: float
    cores: float
    largest: int
    sizes: Distribution
    steps: Distribution
    model: list[float]


def messages(classifier: str, count: int) -> list[Record]:
    """Features of as many pictures, drawn with the mean and variance that an extractor's have."""
    settings = get_settings()
    table = ModelStore(settings.models_dir, settings.built_models_dir).describe(classifier)
    width = int(table["descriptor_count"])
    found = []
    for row in np.random.default_rng().normal(size=(count, width)).astype(np.float32).tolist():
        image_id = str(uuid.uuid4())
        descriptors = tuple(float(f"{value:.4g}") for value in row)
        value = ImageFeatures(image_id, descriptors, width, table["extractor"])
        found.append(Record(FEATURES.name, image_id.encode(), msgspec.json.encode(value)))
    return found


def publish(settings: Settings, records: Sequence[Record]) -> None:
    publisher = KafkaPublisher(settings)
    for start in range(0, len(records), 1000):
        refused = publisher.publish(records[start : start + 1000])
        assert not refused, refused
    publisher.close()


def cores_used(replica: Replica) -> float:
    process = psutil.Process(replica.pid)
    times = process.cpu_times()
    return float(times.user + times.system) / (time.time() - process.create_time())


class Bench:
    """One classifier on one stack; every round starts it anew."""

    def __init__(self, classifier: str, endpoints: Endpoints, limit: Callable[[int], None]) -> None:
        self._classifier = classifier
        self._endpoints = endpoints
        self._limit = limit
        self._settings = prepared(endpoints)

    def round(self, count: int, environment: dict[str, str]) -> Round:
        """Works off `count` messages. environment: settings of the service beside the stack's."""
        publish(self._settings, messages(self._classifier, count))
        name = self._classifier.removeprefix("classifier-")
        service = Service(self._classifier, "classifier", 0, {"MESH_CLASSIFIER": name, **environment})

        def limit(replica: Replica) -> None:
            assert replica.pid is not None
            self._limit(replica.pid)

        with TemporaryDirectory(prefix="mesh-bench-") as logs:
            with started([service], Path(logs), self._endpoints.environment(), limit) as (replica,):
                batches = self._worked_off(count)
                cores = cores_used(replica)
                text = metrics_of(replica.url)
        (first, size, _), (last, _, _) = batches[0], batches[-1]
        return Round(
            # The first batch was under way before its time was taken.
            rate=(count - size) / (last - first),
            cores=cores,
            largest=max(size for _, size, _ in batches),
            sizes=distribution(text, "mesh_batch_size"),
            steps=distribution(text, "mesh_step_seconds"),
            model=[milliseconds for _, _, milliseconds in batches],
        )

    def _worked_off(self, count: int) -> list[tuple[float, int, float]]:
        """When every message is done: of each batch the time, how many, and milliseconds in the model."""
        deadline = time.monotonic() + WORK_SECONDS
        with psycopg.connect(self._endpoints.postgres_dsn, autocommit=True) as connection:
            while True:
                found = connection.execute(
                    "SELECT extract(epoch FROM created_at)::float8, count(*), sum(latency_ms)::float8"
                    " FROM predictions GROUP BY created_at ORDER BY created_at"
                ).fetchall()
                if sum(size for _, size, _ in found) == count:
                    connection.execute("TRUNCATE predictions, task_outcomes")
                    return found
                assert time.monotonic() < deadline, "not all were predicted"
                time.sleep(0.2)


def measure(bench: Bench, count: int, single: int, rounds: int) -> None:
    many: list[Round] = []
    one: list[Round] = []
    for _ in range(rounds):
        many.append(bench.round(count, {}))
        one.append(bench.round(single, {"MESH_WORKER_MAX_BATCH": "1"}))
        assert one[-1].largest == 1, f"asked for single messages, it took {one[-1].largest}"
    for text, found in (("micro-batches", many), ("one by one", one)):
        figure(f"batches: {text}", [each.rate for each in found], "msg/s")
        figure(f"batches: {text}, used of a core (<= {CPU})", [each.cores for each in found], "")
        figure(f"batches: {text}, mean batch", [each.sizes.mean for each in found], "")
        figure(f"batches: {text}, largest batch (<= 256)", [each.largest for each in found], "")
        figure(f"batches: {text}, step, mean", [each.steps.mean * 1000 for each in found], "ms")
        for share in (0.5, 0.99):
            name = f"p{share * 100:.0f}"
            models = [percentile(each.model, share) for each in found]
            steps = [each.steps.quantile(share) * 1000 for each in found]
            figure(f"batches: {text}, step, {name} of the histogram", steps, "ms")
            figure(f"batches: {text}, model, {name}", models, "ms")
    rates = [each.rate for each in many], [each.rate for each in one]
    ratio("batches: micro-batches / one by one", *rates, "none; shown beside it")


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="mesh bench batches", description=__doc__)
    parser.add_argument("--classifier", default="classifier-fast")
    parser.add_argument("--count", type=int, default=20_000, help="messages of a round in micro-batches")
    parser.add_argument("--single", type=int, default=2_000, help="messages of a round one by one")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    try:
        with share_of_a_core(CPU) as limit, native() as endpoints:
            bench = Bench(options.classifier, endpoints, limit)
            measure(bench, options.count, options.single, options.rounds)
    except NoLimitError as error:
        print(f"batches: no control group of {CPU} CPU can be made here: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
