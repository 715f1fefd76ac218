"""`classify`: top-1 and milliseconds per picture on one core, each part of the way by itself.

Runs the parts of `mesh classify` over the test pictures of a CIFAR-10 file as `make train --data` takes it:
bytes → thumbnail → descriptors → rounded as on the wire → label.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.figures import figure
from classifier.domain import Classifier
from feature_extractor.domain import Extractor, on_the_wire, prepare
from visionmesh.model_store import ModelStore
from visionmesh.settings import ROOT, get_settings
from visionmesh.topics import CLASSIFIERS

T = TypeVar("T")

# Beside the checkout, as the machines that develop it have it.
DATA = ROOT.parent / "shared" / "data" / "cifar10" / "cifar10_jpg.npz"


def timed(rounds: int, work: Callable[[], T]) -> tuple[T, list[float]]:
    """The result, and the milliseconds of each round."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        result = work()
        found.append((time.perf_counter() - started) * 1000)
    return result, found


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if not options.data.exists():
        print(f"classify: {options.data} is not there; name a file with --data")
        return 1
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with np.load(options.data) as data:
        offsets, jpg = data["test_offsets"], data["test_jpg"].tobytes()
        truth = data["test_labels"]
        names = [str(name) for name in data["classes"]]
    files = [jpg[start:end] for start, end in pairwise(offsets)]
    count = len(files)
    store = ModelStore(get_settings().models_dir)
    extractor = Extractor(store.load(get_settings().extractor_model))

    pictures, times = timed(options.rounds, lambda: [prepare(file) for file in files])
    figure("classify: decode and resize, 32 x 32 JPEG", [each / count for each in times], "ms")
    features, times = timed(options.rounds, lambda: extractor.extract(pictures))
    figure("classify: extractor, batches of 64", [each / count for each in times], "ms")
    _, times = timed(options.rounds, lambda: [extractor.extract([each]) for each in pictures[:500]])
    figure("classify: extractor, one by one", [each / 500 for each in times], "ms")
    wire = np.array(on_the_wire(features), np.float32)
    for name in CLASSIFIERS:
        model = Classifier(store.load(name))
        predictions, times = timed(options.rounds, lambda model=model: model.classify(wire))  # type: ignore[misc]
        right = sum(each.label == names[label] for each, label in zip(predictions, truth, strict=True))
        figure(f"classify: {name}, top-1 of {count}", [right / count], "")
        figure(f"classify: {name}, batches of 256", [each / count for each in times], "ms")
        _, times = timed(
            options.rounds,
            lambda model=model: [model.classify(wire[n : n + 1]) for n in range(500)],  # type: ignore[misc]
        )
        figure(f"classify: {name}, one by one", [each / 500 for each in times], "ms")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
