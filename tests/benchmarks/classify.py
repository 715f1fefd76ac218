"""`classify`: from the bytes of a JPEG to its label on one core, each part of the way by itself, and memory.

1. The whole way, one picture after the other, against ResNet-50 at 224 x 224 on ONNX Runtime (fp32 and
   int8) from the same bytes with the same decoder; the contestants take turns. The large pictures are the
   samples, scaled up.
2. The parts, and top-1 on the test pictures of a CIFAR-10 file as `make train DATA=` takes it.
3. Every classifier alone: one row, and 256 rows.
4. The memory of the services while pictures go through them, on the embedded stack.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import msgspec
import numpy as np
import psycopg
from numpy.typing import NDArray
from PIL import Image

from benchmarks import resnet50
from benchmarks.figures import figure, percentile, ratio
from benchmarks.replicas import memory_of, started, unlike_any
from benchmarks.servers import prepared
from classifier.domain import Classifier
from feature_extractor.domain import Extractor, on_the_wire, prepare
from visionmesh.contracts import ImageUploaded
from visionmesh.kafka import KafkaPublisher, Record
from visionmesh.mesh import Service
from visionmesh.model_store import Model, ModelStore
from visionmesh.object_store import S3ObjectStore
from visionmesh.settings import ROOT, Settings, get_settings
from visionmesh.stack import open_stack
from visionmesh.topics import CLASSIFIERS, IMAGES

T = TypeVar("T")

# Beside the checkout, as the machines that develop it have it.
DATA = ROOT.parent / "shared" / "data" / "cifar10" / "cifar10_jpg.npz"
SAMPLES = ROOT / "samples"

# What CIFAR-10 has, and two usual camera previews.
SIZES = {"32 x 32": (32, 32), "640 x 480": (640, 480), "1280 x 960": (1280, 960)}

RATIO_GOALS = {"fp32": ">= 4", "int8": "none; shown beside it"}
MEMORY_GOALS = {"extractor": 300, "classifier": 150}
FLOW_SECONDS = 300.0


def timed(rounds: int, work: Callable[[], T]) -> tuple[T, list[float]]:
    """The result, and the milliseconds of each round."""
    found = []
    for _ in range(rounds):
        started_at = time.perf_counter()
        result = work()
        found.append((time.perf_counter() - started_at) * 1000)
    return result, found


@contextmanager
def one_core() -> Iterator[None]:
    """Pins the process, and what it starts meanwhile, to one core."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(all_cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


# Pictures


class TestSet:
    """The test pictures of the file. files: JPEG of 32 x 32. truth: the name of each picture's label."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as data:
            offsets, jpg = data["test_offsets"], data["test_jpg"].tobytes()
            names = [str(name) for name in data["classes"]]
            self.truth = [names[label] for label in data["test_labels"]]
        self.files: list[bytes] = [jpg[start:end] for start, end in pairwise(offsets)]


def samples(size: tuple[int, int]) -> list[bytes]:
    """The sample pictures as JPEG of that width and height."""
    found = []
    for path in sorted(SAMPLES.iterdir()):
        if path.suffix not in (".jpg", ".png"):
            continue
        buffer = io.BytesIO()
        with Image.open(path) as picture:
            picture.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


# Models


def load(kind: str) -> dict[str, Model]:
    """The models of a kind by name, those built on this machine included."""
    settings = get_settings()
    store = ModelStore(settings.models_dir, settings.built_models_dir)
    return {name: store.load(name) for name in store.names() if store.describe(name)["kind"] == kind}


def pairs(extractors: Mapping[str, Model], classifiers: Mapping[str, Model]) -> list[tuple[Model, Model]]:
    """The ways that are measured: fast, balanced and accurate behind the extractor that is deployed, and
    one classifier behind each other extractor whose descriptors it was trained on.
    """
    deployed = get_settings().extractor_model
    found = []
    for name, extractor in extractors.items():
        fitting = [each for each in classifiers.values() if each.extractor == extractor.space]
        if name == deployed:
            found += [(extractor, each) for each in fitting if each.name in CLASSIFIERS]
        else:
            found += [(extractor, each) for each in fitting[:1]]
    return found


def way(extractor: Model, classifier: Model) -> Callable[[bytes], str]:
    """From the bytes of a picture to its label, as `mesh classify` goes."""
    first, second = Extractor(extractor), Classifier(classifier)

    def label(data: bytes) -> str:
        rows = on_the_wire(first.extract([prepare(data, first.side)]))
        return second.classify(np.asarray(rows, np.float32))[0].label

    return label


def name_of(extractor: Model, classifier: Model) -> str:
    name = classifier.name.removeprefix("classifier-")
    return name if extractor.name == get_settings().extractor_model else f"{name} on {extractor.name}"


# 1. The whole way


def measure_ways(
    pictures: Mapping[str, list[bytes]], models: list[tuple[Model, Model]], count: int, rounds: int
) -> None:
    """count: how many pictures one of our rounds has; ResNet-50's have a tenth of them."""
    ours = {name_of(*pair): way(*pair) for pair in models}
    graphs = resnet50.built()
    theirs = {name: resnet50.way(path) for name, path in (graphs or {}).items()}
    for size, files in pictures.items():
        times: dict[str, list[float]] = {name: [] for name in (*ours, *theirs)}
        for number in range(rounds + 1):
            for name, label in (*ours.items(), *theirs.items()):
                chosen = list(islice(cycle(files), count if name in ours else max(1, count // 10)))
                milliseconds = run(label, chosen)
                # The first round only warms up.
                if number:
                    times[name].append(milliseconds)
        for name in ours:
            figure(f"classify: {size}, {name}", times[name], "ms")
        for name in theirs:
            figure(f"classify: {size}, ResNet-50 {name}", times[name], "ms")
        for name in ours:
            for precision in theirs:
                text = f"classify: {size}, ResNet-50 {precision} / {name}"
                ratio(text, times[precision], times[name], RATIO_GOALS[precision])
    if graphs is None:
        print("classify: without the peers' environment there is no ResNet-50 (`make bench` installs it)")


def run(label: Callable[[bytes], object], pictures: Sequence[bytes]) -> float:
    """Milliseconds per picture."""
    started_at = time.perf_counter()
    for picture in pictures:
        label(picture)
    return (time.perf_counter() - started_at) * 1000 / len(pictures)


# 2. The parts


def measure_parts(
    test: TestSet, extractor: Model, classifiers: Mapping[str, Model], rounds: int
) -> NDArray[np.float32]:
    """Returns the descriptors of all test pictures, as on the wire."""
    count, net = len(test.files), Extractor(extractor)
    pictures, times = timed(rounds, lambda: [prepare(file, net.side) for file in test.files])
    figure("classify: decode and resize, 32 x 32 JPEG", [each / count for each in times], "ms")
    features, times = timed(rounds, lambda: net.extract(pictures))
    figure("classify: extractor, in batches", [each / count for each in times], "ms")
    few = pictures[:500]
    _, times = timed(rounds, lambda: [net.extract([each]) for each in few])
    figure("classify: extractor, one by one", [each / len(few) for each in times], "ms")
    wire = np.array(on_the_wire(features), np.float32)
    for name, model in classifiers.items():
        if model.extractor != extractor.space:
            continue
        predictions = Classifier(model).classify(wire)
        right = sum(each.label == label for each, label in zip(predictions, test.truth, strict=True))
        figure(f"classify: {name}, top-1 of {count}", [right / count], "")
    return wire


# 3. Classifiers alone


def measure_classifier(model: Model, rows: NDArray[np.float32], rounds: int) -> None:
    classify = Classifier(model).classify
    for size, calls in ((1, 2000), (256, 100)):
        batches = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
        per_call: list[list[float]] = []
        for _ in range(rounds):
            per_call.append([run_once(classify, batch) for batch in islice(cycle(batches), calls)])
        what = "1 row" if size == 1 else f"{size} rows"
        for text, share in (("p50", 0.5), ("p99", 0.99)):
            figure(f"classify: {model.name}, {what}, {text}", [percentile(t, share) for t in per_call], "ms")


def run_once(work: Callable[[NDArray[np.float32]], object], rows: NDArray[np.float32]) -> float:
    started_at = time.perf_counter()
    work(rows)
    return (time.perf_counter() - started_at) * 1000


def rows_for(model: Model, wire: NDArray[np.float32] | None, extractor: Model) -> NDArray[np.float32]:
    """Descriptors [N, width]: of the test pictures where the model was trained on such; else drawn with
    their mean and variance.
    """
    if wire is not None and model.extractor == extractor.space:
        return wire
    return np.random.default_rng(0).normal(size=(2048, model.descriptor_count)).astype(np.float32)


# 4. Memory


def measure_memory(names: Sequence[str], pictures: Mapping[str, list[bytes]], count: int) -> None:
    """The largest memory of the extractor and of each classifier while `count` pictures go through."""
    services = [Service("feature-extractor", "feature_extractor", 0)]
    services += [
        Service(name, "classifier", 0, {"MESH_CLASSIFIER": name.removeprefix("classifier-")})
        for name in names
    ]
    with TemporaryDirectory(prefix="mesh-bench-") as folder:
        with open_stack("embedded", Path(folder) / "stack") as stack:
            settings = prepared(stack.endpoints, make_topics=False)
            environment = stack.endpoints.environment()
            with (
                started(services, Path(folder), environment) as replicas,
                psycopg.connect(stack.endpoints.postgres_dsn, autocommit=True) as connection,
            ):
                largest = {replica.service.name: memory_of(replica.pid) for replica in replicas}
                announce(settings, [file for files in pictures.values() for file in files], count)
                deadline = time.monotonic() + FLOW_SECONDS
                while stored(connection) < count * len(names):
                    assert time.monotonic() < deadline, "not all were predicted"
                    for replica in replicas:
                        name = replica.service.name
                        largest[name] = max(largest[name], memory_of(replica.pid))
                    # Looking takes processor time from those that are looked at.
                    time.sleep(0.1)
    for name, size in largest.items():
        goal = MEMORY_GOALS["extractor" if name == "feature-extractor" else "classifier"]
        figure(f"classify: memory of {name} (goal <= {goal})", [size / 1e6], "MB")


def announce(settings: Settings, pictures: Sequence[bytes], count: int) -> None:
    """Stores `count` pictures, each of which is one of these, and publishes their messages."""
    store = S3ObjectStore.from_settings(settings)
    publisher = KafkaPublisher(settings)
    records = []
    for picture in islice(cycle(pictures), count):
        image_id = str(uuid.uuid4())
        path = f"{settings.s3_upload_bucket}/bench/{image_id}.jpg"
        store.put(path, [unlike_any(picture)], media_type="image/jpeg")
        value = msgspec.json.encode(ImageUploaded(image_id, path))
        records.append(Record(IMAGES.name, image_id.encode(), value))
    refused = publisher.publish(records)
    assert not refused, refused
    publisher.close()


def stored(connection: psycopg.Connection[tuple[int]]) -> int:
    row = connection.execute("SELECT count(*) FROM predictions").fetchone()
    assert row is not None
    return row[0]


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="mesh bench classify", description=__doc__)
    parser.add_argument("--data", type=Path, help="the CIFAR-10 file; without one there is no top-1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=100, help="of one round, for the whole way")
    parser.add_argument("--flow", type=int, default=600, help="pictures while memory is measured; 0: none")
    options = parser.parse_args(arguments)
    if options.data is not None and not options.data.exists():
        print(f"classify: {options.data} is not there")
        return 1
    data = options.data or (DATA if DATA.exists() else None)
    test = None if data is None else TestSet(data)
    pictures = {name: samples(size) for name, size in SIZES.items()}
    if test is not None:
        pictures["32 x 32"] = test.files[: options.pictures]
    extractors, classifiers = load("extractor"), load("classifier")
    deployed = extractors[get_settings().extractor_model]
    with one_core():
        measure_ways(pictures, pairs(extractors, classifiers), options.pictures, options.rounds)
        wire = None if test is None else measure_parts(test, deployed, classifiers, options.rounds)
        for model in classifiers.values():
            measure_classifier(model, rows_for(model, wire, deployed), options.rounds)
    fitting = [name for name, model in classifiers.items() if model.extractor == deployed.space]
    if options.flow:
        measure_memory(fitting, pictures, options.flow)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
