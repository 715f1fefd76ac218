"""`python -m training.widths`: 10, 20 and 50 descriptors side by side.

The trunk of the extractor that stands in `models.toml` stays as it is, and for each width a bottleneck and
a head are fitted to what it sees: training a whole net for each width would say little more and take nights.
"""

from __future__ import annotations

import argparse
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import zstandard
from numpy.typing import NDArray

from training import classifiers, data, export, measure
from training.classifiers import Examples
from training.seen import Seen
from visionmesh.contracts import ImageFeatures

WIDTHS = (10, 20, 50)
EPOCHS = 12
BATCH = 512
RATE = 2e-3
# Enough to tell widths apart; the classifiers that are deployed are fitted to all.
EXAMPLES = 15_000
SPACE = "extractor@2.0.0"
RECORDS = 64
SEED = 1


def main() -> None:
    arguments = _arguments()
    dataset = data.load(arguments.data, limit=arguments.limit)
    seen = Seen(dataset, onnx.load(arguments.extractor), arguments.seed)
    found = compare(seen.features, seen.labels, arguments.seed)
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(json.dumps(found, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    models = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(prog="python -m training.widths", description=__doc__)
    parser.add_argument("--data", type=Path, help=".npz of JPEG files; the public archive when absent")
    parser.add_argument("--limit", type=int, help="use this many training pictures only")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--extractor", type=Path, default=models / "extractor.onnx")
    parser.add_argument("--report", type=Path, default=models / "reports" / "widths.json")
    return parser.parse_args()


def compare(
    features: Mapping[str, NDArray[np.float32]], labels: Mapping[str, NDArray[np.int64]], seed: int
) -> list[dict[str, Any]]:
    """For each width: top-1 of each family, bytes on the wire, and milliseconds of each classifier.

    features, labels: of the pictures `train`, `validation` and `test`.
    """
    found = []
    for width in WIDTHS:
        weights, bias, head = bottleneck(features["train"], labels["train"], width, seed)
        examples = {
            name: Examples(measure.rounded(values @ weights + bias), labels[name])
            for name, values in features.items()
        }
        examples["train"] = examples["train"].take(slice(EXAMPLES))
        test = examples["test"]
        found.append(
            {
                "descriptors": width,
                "top1_head": round(measure.top1(head(test.descriptors), test.labels), 4),
                "bytes_json": json_bytes(test.descriptors),
                "bytes_in_batch": batch_bytes(test.descriptors),
                "classifiers": [_measured(candidate, examples, seed) for candidate in classifiers.CANDIDATES],
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def bottleneck(x: NDArray[np.float32], y: NDArray[np.int64], width: int, seed: int) -> tuple[Any, Any, Any]:
    """A linear layer of that width under a softmax head, fitted to features x [N,D] and labels y.

    Returns the layer's weights [D,width] and bias [width], scaled to descriptors of unit variance, and the
    head: descriptors -> logits.
    """
    # TensorFlow takes seconds to import and only this needs it.
    import keras

    keras.utils.set_random_seed(seed)
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-3
    features = keras.Input((x.shape[1],))
    narrow = keras.layers.Dense(width, use_bias=False, name="bottleneck")(features)
    narrow = keras.layers.BatchNormalization(momentum=0.95, center=False, scale=False, name="norm")(narrow)
    net = keras.Model(features, keras.layers.Dense(len(data.LABELS), name="head")(narrow))
    batch = min(BATCH, len(x) // 4)
    steps = EPOCHS * (len(x) // batch)
    rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    net.compile(keras.optimizers.Adam(rate), loss)
    net.fit((x - mean) / deviation, np.eye(len(data.LABELS))[y], batch_size=batch, epochs=EPOCHS, verbose=0)
    (kernel,) = net.get_layer("bottleneck").get_weights()
    offset, variance = net.get_layer("norm").get_weights()
    factor = 1 / np.sqrt(variance + net.get_layer("norm").epsilon)
    weights = kernel * factor / deviation[:, None]
    last, last_bias = net.get_layer("head").get_weights()
    return weights, -mean @ weights - offset * factor, lambda values: values @ last + last_bias


def _measured(candidate: classifiers.Candidate, examples: dict[str, Examples], seed: int) -> dict[str, Any]:
    train, validation, test = (examples[name] for name in ("train", "validation", "test"))
    fitted = candidate.fit(train.descriptors, train.labels, seed)
    graph = classifiers.calibrated(fitted, validation.descriptors, validation.labels)
    _, probabilities = export.run(graph, test.descriptors)
    return {
        "name": candidate.name,
        **measure.quality(probabilities, test.labels),
        "operations": fitted.operations,
        "bytes": len(graph.SerializeToString()),
        **measure.latency(graph, test.descriptors),
    }


def records(descriptors: NDArray[np.float32]) -> list[tuple[bytes, bytes]]:
    """Key and value that the extractor publishes for each row, with pictures named as uploads are."""
    random = np.random.default_rng(len(descriptors))
    names = [str(uuid.UUID(bytes=random.bytes(16), version=4)) for _ in descriptors]
    return [
        (
            name.encode(),
            msgspec.json.encode(
                ImageFeatures(name, tuple(float(f"{value:.4g}") for value in row), len(row), SPACE)
            ),
        )
        for name, row in zip(names, descriptors.tolist(), strict=True)
    ]


def json_bytes(descriptors: NDArray[np.float32]) -> float:
    """The mean length of a message."""
    return round(float(np.mean([len(value) for _, value in records(descriptors)])), 1)


def batch_bytes(descriptors: NDArray[np.float32]) -> float:
    """Bytes per record, key and message, where 64 are compressed together as Kafka's producer does; its own
    few bytes of framing are left out.
    """
    packer = zstandard.ZstdCompressor()
    sent = [key + value for key, value in records(descriptors)]
    sizes = [
        len(packer.compress(b"".join(sent[start : start + RECORDS]))) / RECORDS
        for start in range(0, len(sent) - RECORDS + 1, RECORDS)
    ]
    return round(float(np.mean(sizes)), 1)


if __name__ == "__main__":
    main()
