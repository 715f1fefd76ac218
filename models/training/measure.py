"""What is measured of a model: how often it is right, how well it knows when it is, and what it costs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
from numpy.typing import NDArray

from training.export import session

# An int8 extractor is deployed when it is faster and loses no more than this share of the answers.
TOLERATED_LOSS = 0.002

BINS = 15
PRECISIONS = (0.85, 0.9, 0.95)
ROUNDS = 2_000
ROUNDS_OF_BATCHES = 200
BATCH = 256

Probabilities = NDArray[Any]
Labels = NDArray[np.int64]


def quality(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """top1, ece, nll and brier of probabilities [N,C] against labels [N], rounded for a table."""
    found = {
        "top1": top1(probabilities, labels),
        "ece": expected_calibration_error(probabilities, labels),
        "nll": surprise(probabilities, labels),
        "brier": brier(probabilities, labels),
    }
    # Adding zero turns -0.0 into 0.0.
    return {name: round(value, 4) + 0.0 for name, value in found.items()}


def top1(probabilities: Probabilities, labels: Labels) -> float:
    """The share of labels that are the most probable one."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def surprise(probabilities: Probabilities, labels: Labels) -> float:
    """The mean negative logarithm of what the true label was given (NLL)."""
    given = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(given, 1e-12)).mean())


def brier(probabilities: Probabilities, labels: Labels) -> float:
    """The mean squared distance to certainty of the true label (Brier, 1950): 0 to 2."""
    certain = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - certain) ** 2).sum(axis=1).mean())


def expected_calibration_error(probabilities: Probabilities, labels: Labels) -> float:
    """ECE (Guo and others, arXiv:1706.04599) in 15 equal bins: how far confidence is from truth."""
    return sum(
        each["share"] * abs(each["confidence"] - each["top1"]) for each in reliability(probabilities, labels)
    )


def reliability(probabilities: Probabilities, labels: Labels) -> list[dict[str, float]]:
    """Of each bin of confidence that has answers: their share, mean confidence, and how many are right."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "share": float((bins == number).mean()),
            "confidence": float(confidence[bins == number].mean()),
            "top1": float(right[bins == number].mean()),
        }
        for number in np.unique(bins)
    ]


def threshold(probabilities: Probabilities, labels: Labels, precision: float) -> float:
    """The lowest confidence from which on at least `precision` of the answers are right.

    Above 1, which no answer reaches, when there is none.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    order = np.argsort(-confidence, kind="stable")
    precisions = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(precisions >= precision)
    return float(confidence[order[enough[-1]]]) if len(enough) else 1.1


def coverage(
    chosen_with: tuple[Probabilities, Labels], measured_on: tuple[Probabilities, Labels]
) -> list[dict[str, float]]:
    """For each precision wanted: the threshold that the first pictures give, and on the others the share
    that is answered and the precision that is reached.
    """
    probabilities, labels = measured_on
    found = []
    for precision in PRECISIONS:
        least = threshold(*chosen_with, precision)
        answered = probabilities.max(axis=1) >= least
        right = (probabilities.argmax(axis=1) == labels)[answered]
        found.append(
            {
                "precision": precision,
                "threshold": round(least, 4),
                "answered": round(float(answered.mean()), 4),
                "reached": round(float(right.mean()), 4) if len(right) else 1.0,
            }
        )
    return found


def rounded(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The descriptors as they arrive: written with 4 significant digits."""
    digits = [[float(f"{value:.4g}") for value in row] for row in descriptors.tolist()]
    return np.array(digits, np.float32)


def speed(graph: onnx.ModelProto, values: NDArray[Any]) -> dict[str, float]:
    """Milliseconds of one core per picture, alone and 64 at a time; medians."""
    return {
        "ms_per_picture": _digits(np.median(_milliseconds(graph, values, 1, 300))),
        "ms_per_picture_of_64": _digits(np.median(_milliseconds(graph, values, 64, 20)) / 64),
    }


def latency(graph: onnx.ModelProto, values: NDArray[Any]) -> dict[str, float]:
    """Milliseconds of one core for one row and for 256 rows at once: the median and the 99th percentile."""
    alone = _milliseconds(graph, values, 1, ROUNDS)
    together = _milliseconds(graph, values, BATCH, ROUNDS_OF_BATCHES)
    return {
        "ms_row_p50": _digits(np.percentile(alone, 50)),
        "ms_row_p99": _digits(np.percentile(alone, 99)),
        "ms_256_p50": _digits(np.percentile(together, 50)),
        "ms_256_p99": _digits(np.percentile(together, 99)),
    }


def _milliseconds(graph: onnx.ModelProto, values: NDArray[Any], batch: int, rounds: int) -> NDArray[Any]:
    """Processor time of each run with `batch` rows, the first tenth of the runs left out."""
    ready = session(graph)
    name = ready.get_inputs()[0].name
    seconds = []
    for number in range(rounds):
        chosen = values[np.arange(number, number + batch) % len(values)]
        # The thread's own time: other work of a shared machine costs this model nothing.
        start = time.thread_time()
        ready.run(None, {name: chosen})
        seconds.append(time.thread_time() - start)
    return 1000 * np.array(seconds[rounds // 10 :])


def _digits(value: Any) -> float:
    return float(f"{value:.3g}")


def memory_growth(path: Path) -> float:
    """MiB by which a fresh process grows when it loads the model and answers 1 row and 256."""
    command = [sys.executable, "-m", "training.measure", str(path)]
    answer = subprocess.run(
        command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True
    )
    return round(float(answer.stdout) / 2**20, 1)


def _grow(path: Path) -> int:
    """The process's own part of `memory_growth`: bytes of resident memory, after less before."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    process = psutil.Process()
    before = process.memory_info().rss
    ready = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = ready.get_inputs()
    for rows in (1, BATCH):
        ready.run(None, {given.name: np.zeros((rows, given.shape[1]), np.float32)})
    return process.memory_info().rss - before


if __name__ == "__main__":
    print(_grow(Path(sys.argv[1])))
