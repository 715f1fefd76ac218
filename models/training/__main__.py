"""`python -m training`: trains everything, measures it, and writes the models and models.toml."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from training import classifiers, data, export

# Any number would do; this one is the day in the first example of an object's path.
SEED = 20241006
EPOCHS = 22
VERSION = "1.0.0"

# An int8 extractor is deployed when it is faster and loses no more than this share of the answers.
TOLERATED_LOSS = 0.002

TABLES = """\
# The models that are deployed, one table each; written by `make train`.
# The extractor's top-1 is that of the softmax head it was trained with; a classifier's is that of the whole
# way from picture to label, with the descriptors rounded to 4 digits as on the wire. Milliseconds are per
# picture on one core of the machine that trained; compare them with one another only.
"""


def main() -> None:
    arguments = _arguments()
    dataset = data.load(arguments.data, seed=arguments.seed, limit=arguments.limit)
    folder = arguments.models
    table = {} if not arguments.keep_extractor else tomllib.loads((folder / "models.toml").read_text())
    tables = {name: model for name, model in table.items() if model["kind"] == "extractor"}
    common = {
        "version": VERSION,
        "descriptor_count": 20,
        "licence": "Apache-2.0",
        "training": f"python -m training --epochs {arguments.epochs} --seed {arguments.seed}"
        + (f" --limit {arguments.limit}" if arguments.limit else ""),
        "seed": arguments.seed,
    }
    if not arguments.keep_extractor:
        tables = train_extractors(dataset, arguments.epochs, folder, common)
    extractor = onnx.load(folder / tables["extractor"]["file"])
    tables |= train_classifiers(dataset, extractor, folder, common)
    text = TABLES + "".join(_toml(name, model) for name, model in tables.items())
    (folder / "models.toml").write_text(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--data", type=Path, help=".npz of JPEG files; the public archive when absent")
    parser.add_argument("--models", type=Path, default=Path(__file__).parents[1], help="folder to write to")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--limit", type=int, help="train on this many pictures only, for a quick try")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--keep-extractor", action="store_true", help="train only the classifiers")
    return parser.parse_args()


def train_extractors(
    dataset: data.Dataset, epochs: int, folder: Path, common: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Trains the net, writes it as float32 and as int8; the one to deploy is named `extractor`."""
    # TensorFlow takes seconds to import and only this needs it.
    from training import extractor

    net = extractor.fit(dataset, epochs=epochs, seed=common["seed"])
    weights, bias = net.get_layer("head").get_weights()
    graphs = {"fp32": export.extractor(net)}
    graphs["int8"] = export.quantized(graphs["fp32"], dataset.train)

    def top1(graph: onnx.ModelProto, pictures: data.Pictures) -> float:
        (descriptors,) = export.run(graph, pictures.rgb)
        return float(((descriptors @ weights + bias).argmax(axis=1) == pictures.labels).mean())

    metrics = {}
    for precision, graph in graphs.items():
        metrics[precision] = {
            "top1": round(top1(graph, dataset.test), 4),
            "top1_validation": round(top1(graph, dataset.validation), 4),
            **speed(graph, dataset.test.rgb),
        }
        print(f"extractor {precision}: {metrics[precision]}", flush=True)
    deployed = "int8" if int8_pays(metrics) else "fp32"
    tables = {}
    for precision in sorted(graphs, key=lambda precision: precision != deployed):
        name = "extractor" if precision == deployed else f"extractor-{precision}"
        tables[name] = common | {
            "kind": "extractor",
            "family": "convolutional net",
            "precision": precision,
            "input": "pictures",
            "output": ["descriptors"],
            "origin": "trained from nothing on CIFAR-10 (Krizhevsky, 2009)",
            **_written(folder / f"{name}.onnx", graphs[precision]),
            "metrics": metrics[precision],
        }
    return tables


def int8_pays(metrics: dict[str, dict[str, float]]) -> bool:
    """Whether int8 is faster than float32 one picture at a time and loses next to nothing.

    Decided on the validation pictures, so that the figure of the test pictures stays one nobody chose by.
    """
    whole, small = metrics["fp32"], metrics["int8"]
    return (
        small["top1_validation"] >= whole["top1_validation"] - TOLERATED_LOSS
        and small["ms_per_picture"] < whole["ms_per_picture"]
    )


def train_classifiers(
    dataset: data.Dataset, extractor: onnx.ModelProto, folder: Path, common: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Fits the three classifiers to the descriptors that the deployed extractor gives."""
    train, validation, test = (
        rounded(export.run(extractor, pictures.rgb)[0])
        for pictures in (dataset.train, dataset.validation, dataset.test)
    )
    tables = {}
    for name, family, fit in (
        ("fast", "random forest", classifiers.random_forest),
        ("balanced", "support vector machine", classifiers.support_vectors),
        ("accurate", "multilayer perceptron", classifiers.perceptron),
    ):
        scores = fit(train, dataset.train.labels, common["seed"])
        graph = classifiers.calibrated(scores, validation, dataset.validation.labels)
        found, _ = export.run(graph, test)
        top1 = float((found == dataset.test.labels).mean())
        metrics = {"top1": round(top1, 4), **speed(graph, test)}
        print(f"classifier-{name}, {family}: {metrics}", flush=True)
        tables[f"classifier-{name}"] = common | {
            "kind": "classifier",
            "family": family,
            "precision": "fp32",
            "input": "descriptors",
            "output": ["label", "probabilities"],
            "labels": list(data.LABELS),
            "extractor": f"extractor@{VERSION}",
            "origin": "trained on the descriptors of CIFAR-10 (Krizhevsky, 2009)",
            **_written(folder / f"classifier-{name}.onnx", graph),
            "metrics": metrics,
        }
    return tables


def rounded(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The descriptors as they arrive: written with 4 significant digits."""
    digits = [[float(f"{value:.4g}") for value in row] for row in descriptors.tolist()]
    return np.array(digits, np.float32)


def speed(graph: onnx.ModelProto, values: NDArray[Any]) -> dict[str, float]:
    """Milliseconds per picture on one core, alone and 64 at a time; medians."""
    ready = export.session(graph)
    name = ready.get_inputs()[0].name

    def median(batch: int, rounds: int) -> float:
        seconds = []
        for number in range(rounds):
            chosen = np.arange(number, number + batch) % len(values)
            start = time.perf_counter()
            ready.run(None, {name: values[chosen]})
            seconds.append((time.perf_counter() - start) / batch)
        return float(f"{1000 * np.median(seconds[rounds // 10 :]):.3g}")

    return {"ms_per_picture": median(1, 300), "ms_per_picture_of_64": median(64, 20)}


def _written(path: Path, graph: onnx.ModelProto) -> dict[str, Any]:
    content = graph.SerializeToString()
    path.write_bytes(content)
    return {"file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _toml(name: str, model: dict[str, Any]) -> str:
    """One table. JSON's strings, numbers and lists are valid TOML as they stand."""
    plain = {key: value for key, value in model.items() if key != "metrics"}
    metrics = model["metrics"]
    return "".join(
        [
            f"\n[{name}]\n",
            *(f"{key} = {json.dumps(value)}\n" for key, value in plain.items()),
            f"\n[{name}.metrics]\n",
            *(f"{key} = {json.dumps(value)}\n" for key, value in metrics.items()),
        ]
    )


if __name__ == "__main__":
    main()
