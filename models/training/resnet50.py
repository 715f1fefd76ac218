"""`python -m training.resnet50`: ResNet50 without its head, 2,048 features -> 20 descriptors, as one ONNX.

The net is `keras.applications.ResNet50` (He et al., arXiv:1512.03385). Its features are reduced by a PCA
that is fitted on the training pictures, and the three classifiers are fitted on the result, so that the
mesh can run with it. All of it goes to a folder of its own with its own models.toml: the net alone has
94 MB. `resnet50-pca.json` beside it says how the PCA compares with other ways to as few numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Its notes on the processor would stand between the lines that say how far the build is.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training import classifiers, data, export, measure, tracking
from training.data import Dataset, Pictures
from training.resnet50_graph import MEANS, NAME, Reduction, graph_of
from training.tables import tables_in, toml, written

VERSION = "1.0.0"
SEED = 20241006
SIDE = 224
SMALLEST_SIDE = 32
DESCRIPTORS = 20

IMAGENET = "imagenet"
NOTHING = "none"

# Of descriptors, which have unit variance and are published with four digits.
TOLERANCE = 5e-4
CHECKED = 64

BATCH = 32
PEAK_RATE = 1e-3
MEMORY = 0.9
TIMED = 30
TELL_SECONDS = 10.0

TABLES = """\
# Models that `mesh models build` made on this machine, one table each; `mesh` reads them beside those that
# came with it.
"""


class BuildError(Exception):
    """The model can't be built; the text says why and what to do."""


@dataclass(frozen=True)
class Split:
    """Some pictures' features float32 [N, 2048] and their labels int64 [N]."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def main() -> int:
    arguments = _arguments()
    # Nets are fitted for so many epochs, and ending with the last of them is no failure.
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    try:
        build(arguments)
    except (BuildError, tracking.TrackingError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.resnet50", description=__doc__)
    parser.add_argument("--data", type=Path, help=".npz of JPEG files; the public archive when absent")
    parser.add_argument("--into", type=Path, required=True, help="folder to write to")
    parser.add_argument("--weights", default=IMAGENET, help=f"{IMAGENET}, {NOTHING}, or a file of Keras")
    parser.add_argument("--origin", help="what the weights of a file are, for the tables; else its name")
    parser.add_argument("--fine-tune", type=int, default=0, metavar="EPOCHS", help="train the net itself")
    parser.add_argument("--side", type=int, default=SIDE, help="pixels; the work grows with its square")
    parser.add_argument("--descriptors", type=int, default=DESCRIPTORS)
    parser.add_argument("--limit", type=int, help="use this many training pictures only")
    parser.add_argument("--int8", action="store_true", help="quantize, if that is faster and loses nothing")
    parser.add_argument("--seed", type=int, default=SEED)
    return parser.parse_args()


def build(arguments: argparse.Namespace) -> None:
    """From weights and pictures to the models, their tables and the comparison.

    Raises BuildError, and `TrackingError` before anything is trained or when everything is written.
    """
    side, folder = arguments.side, arguments.into
    if arguments.weights == NOTHING and not arguments.fine_tune:
        raise BuildError(f"--weights {NOTHING} needs --fine-tune EPOCHS; else nothing has been learned.")
    if side < SMALLEST_SIDE:
        raise BuildError(f"--side is at least {SMALLEST_SIDE}: ResNet50 halves a picture five times.")
    tracking.check()
    net = network(arguments.weights, side)
    dataset = _pictures(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.fine_tune:
        fine_tune(net, dataset.train, side=side, epochs=arguments.fine_tune, seed=arguments.seed)
        net.save(folder / "resnet50.keras")
    whole = graph_of(net, side)
    splits = {
        name: Split(run(whole, pictures.rgb, side, f"features of the {name} pictures"), pictures.labels)
        for name, pictures in vars(dataset).items()
    }
    reduction = principal_components(splits["train"].features, arguments.descriptors)
    model = graph_of(net, side, reduction)
    difference = greatest_difference(net, reduction, model, dataset.test.rgb[:CHECKED], side)
    print(f"Keras and ONNX Runtime differ by at most {difference:.1e}", flush=True)
    top1 = compared(splits["train"], splits["test"], reduction, arguments.seed)
    descriptors = {name: reduction(split.features) for name, split in splits.items()}
    precision = "fp32"
    if arguments.int8:
        smaller = _int8_that_pays(model, descriptors, dataset, side)
        if smaller is not None:
            precision, model, descriptors = "int8", *smaller
    common = {
        "descriptor_count": arguments.descriptors,
        "licence": _licence(arguments.weights),
        "training": _command(arguments),
        "seed": arguments.seed,
    }
    extractor = common | {
        "kind": "extractor",
        "family": "ResNet50, PCA",
        "precision": precision,
        "input": "pictures",
        "output": ["descriptors"],
        "origin": _origin(arguments),
        **written(folder / f"{NAME}.onnx", model),
        "metrics": {
            "top1": top1["logistic_regression"]["pca"],
            "explained_variance": round(reduction.explained, 4),
            "ms_per_picture": milliseconds(model, dataset.test.rgb, side),
        },
    }
    # Another build gives other coordinates, which no classifier and no cache may take for the same.
    version = {"version": f"{VERSION}+{extractor['sha256'][:8]}"}
    tables = {NAME: version | extractor}
    for name, table in fit_classifiers(descriptors, dataset, folder, arguments.seed).items():
        tables[name] = version | common | {"extractor": f"{NAME}@{version['version']}"} | table
    add_tables(folder / "models.toml", tables)
    _write_comparison(folder / f"{NAME}.json", arguments, dataset, reduction, top1, tables)
    tracking.record(list(tables), folder, parameters=vars(arguments), artifacts=[f"{NAME}.json"])


def _pictures(arguments: argparse.Namespace) -> Dataset:
    try:
        return data.load(arguments.data, limit=arguments.limit)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        source = arguments.data or data.ARCHIVE
        raise BuildError(
            f"The pictures of {source} can't be read ({error}); name others with --data."
        ) from error


def network(weights: str, side: int) -> keras.Model:
    """Preprocessed pictures float32 [N, side, side, 3] -> features float32 [N, 2048].

    weights: `imagenet` (Keras downloads them), `none`, or a file: a net saved by Keras (.keras), or weights
    of ResNet50 without its head (.weights.h5, or the .h5 that Keras downloads).
    Raises BuildError when they can't be had.
    """
    if weights not in (IMAGENET, NOTHING) and not Path(weights).is_file():
        raise BuildError(f"There is no file {weights}; --weights takes {IMAGENET}, {NOTHING} or a file.")
    # Keras raises a plain Exception when a download fails, and of a bad file whatever its reader raises.
    try:
        if weights.endswith(".keras"):
            # Convolutions fit every size of picture.
            net = _resnet50(None, side)
            net.set_weights(keras.models.load_model(weights, compile=False).get_weights())
            return net
        return _resnet50(None if weights == NOTHING else weights, side)
    except Exception as error:
        if weights != IMAGENET:
            raise BuildError(f"{weights} does not hold a ResNet50 without its head: {error}") from error
        raise BuildError(
            f"Keras could not fetch the ImageNet weights: {error}\n"
            "Fetch resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5 where there is a network and name it "
            f"with --weights FILE, or train a net here with --weights {NOTHING} --fine-tune EPOCHS."
        ) from error


def _resnet50(weights: str | None, side: int) -> keras.Model:
    return keras.applications.ResNet50(
        include_top=False, pooling="avg", input_shape=(side, side, 3), weights=weights
    )


def preprocessed(rgb: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Pictures uint8 [N, h, w, 3] RGB -> what ResNet50 takes, float32 [N, side, side, 3] BGR."""
    return resized(rgb, side)[..., ::-1].astype(np.float32) - np.float32(MEANS)


def resized(rgb: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Pictures uint8 [N, side, side, 3], squeezed as `visionmesh.images.decode_to` squeezes them."""
    if rgb.shape[1:3] == (side, side):
        return rgb
    out = np.empty((len(rgb), side, side, 3), np.uint8)
    for index, picture in enumerate(rgb):
        squeezed = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0)
        out[index] = np.asarray(squeezed)
    return out


class Batches(keras.utils.PyDataset):
    """Preprocessed training pictures in another order every epoch, half of them mirrored.

    Resized as they are needed: all of CIFAR-10 at 224 x 224 has 6 GB.
    """

    def __init__(self, pictures: Pictures, side: int, seed: int) -> None:
        super().__init__()
        self.pictures, self.side = pictures, side
        self.random = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return max(1, len(self.pictures) // BATCH)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        chosen = self.pictures.take(self.order[index * BATCH : (index + 1) * BATCH])
        x = preprocessed(chosen.rgb, self.side)
        mirrored = self.random.random(len(x)) < 0.5
        x[mirrored] = x[mirrored, :, ::-1]
        return x, chosen.labels

    def on_epoch_end(self) -> None:
        self.order = self.random.permutation(len(self.pictures))


def fine_tune(net: keras.Model, pictures: Pictures, *, side: int, epochs: int, seed: int) -> None:
    """Trains the net itself, under a softmax head that is then dropped; a line per epoch."""
    keras.utils.set_random_seed(seed)
    for layer in net.layers:
        # Keras remembers 100 batches, and a brief training has not many more.
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = MEMORY
    batches = Batches(pictures, side, seed)
    model = keras.Sequential([net, keras.layers.Dense(len(data.LABELS), activation="softmax")])
    rate = keras.optimizers.schedules.CosineDecay(
        PEAK_RATE / 10, epochs * len(batches), warmup_target=PEAK_RATE, warmup_steps=len(batches) // 2
    )
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(batches, epochs=epochs, verbose=2)


def principal_components(features: NDArray[np.float32], count: int) -> Reduction:
    """The `count` directions in which the features differ most, each scaled to unit variance.

    As they come, the first has many times the variance of the last, and an RBF kernel or a weight decay
    would see little but the first; scaled, they look like the descriptors of any other extractor, and what
    the classifiers take for granted of those holds for them.

    Raises BuildError when the pictures differ in fewer directions.
    """
    if len(features) <= count:
        raise BuildError(f"{len(features)} training pictures are too few for {count} descriptors.")
    found = PCA(count, svd_solver="covariance_eigh").fit(features.astype(np.float64))
    if not found.explained_variance_[-1] > 1e-9 * found.explained_variance_[0]:
        raise BuildError(f"The net tells the pictures apart in fewer than {count} ways; use better weights.")
    weights = found.components_.T / np.sqrt(found.explained_variance_)
    return Reduction(
        weights.astype(np.float32),
        (-found.mean_ @ weights).astype(np.float32),
        float(found.explained_variance_ratio_.sum()),
    )


def greatest_difference(
    net: keras.Model, reduction: Reduction, model: onnx.ModelProto, rgb: NDArray[np.uint8], side: int
) -> float:
    """Between descriptors by Keras and by ONNX Runtime. Raises BuildError above TOLERANCE."""
    features = net.predict(preprocessed(rgb, side), batch_size=BATCH, verbose=0)
    difference = float(np.abs(run(model, rgb, side) - reduction(features)).max())
    if not difference <= TOLERANCE:
        raise BuildError(
            f"Descriptors by Keras and by ONNX Runtime differ by up to {difference:.2g}; {TOLERANCE:g} is "
            "tolerated."
        )
    return difference


def run(model: onnx.ModelProto, rgb: NDArray[np.uint8], side: int, what: str = "") -> NDArray[np.float32]:
    """The graph's only output for pictures of any size, on all cores; says how far it is with `what`."""
    # Since 1.31 the wheels report to their maker unless told not to.
    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = []
    told = time.monotonic()
    for start in range(0, len(rgb), BATCH):
        if what and time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            print(f"{what}: {start} of {len(rgb)}", flush=True)
        parts += session.run(None, {"pictures": resized(rgb[start : start + BATCH], side)})
    return np.concatenate(parts)


def compared(train: Split, test: Split, reduction: Reduction, seed: int) -> dict[str, dict[str, float]]:
    """Top-1 on the test pictures by classifier, and by what of the features it is given.

    pca: the descriptors. highest_variance, highest_f_score: as many of the features as they stand; those
    that vary most, and those whose means differ most between the classes for what they vary within one
    (analysis of variance). largest_per_picture: each picture's own largest values in falling order,
    whichever features they are of. all: every feature, which is the ceiling. All are brought to unit
    variance.
    """
    count = len(reduction.bias)
    variances = train.features.var(axis=0)
    varied = np.argsort(variances)[-count:]
    # A feature that is the same everywhere has no score.
    varying = np.flatnonzero(variances)
    scores, _ = f_classif(train.features[:, varying], train.labels)
    telling = varying[np.argsort(scores)[-count:]]
    ways: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
        "pca": reduction,
        "highest_variance": lambda features: features[:, varied],
        "highest_f_score": lambda features: features[:, telling],
        "largest_per_picture": lambda features: -np.sort(-features, axis=1)[:, :count],
        "all": lambda features: features,
    }
    epochs = 15 if len(train.labels) > 10_000 else 60
    top1: dict[str, dict[str, float]] = {}
    for name, classifier in (
        ("logistic_regression", LogisticRegression(max_iter=1_000)),
        ("perceptron", MLPClassifier((64,), alpha=0.1, max_iter=epochs, random_state=seed)),
    ):
        top1[name] = {}
        for way, reduced in ways.items():
            fitted = make_pipeline(StandardScaler(), classifier).fit(reduced(train.features), train.labels)
            top1[name][way] = round(float(fitted.score(reduced(test.features), test.labels)), 4)
        print(f"top-1 of a {name.replace('_', ' ')}: {top1[name]}", flush=True)
    return top1


def _int8_that_pays(
    model: onnx.ModelProto, descriptors: Mapping[str, NDArray[np.float32]], dataset: Dataset, side: int
) -> tuple[onnx.ModelProto, dict[str, NDArray[np.float32]]] | None:
    """The graph in int8 with its descriptors of every picture; None when it is slower or loses answers.

    Decided on the validation pictures, so that the figures of the test pictures stay ones nobody chose by.
    """
    seen = dataset.train.take(slice(export.CALIBRATION))
    smaller = export.quantized(model, Pictures(resized(seen.rgb, side), seen.labels))
    found = {"validation": run(smaller, dataset.validation.rgb, side)}
    fitted = LogisticRegression(max_iter=1_000).fit(descriptors["train"], dataset.train.labels)
    loss = fitted.score(descriptors["validation"], dataset.validation.labels) - fitted.score(
        found["validation"], dataset.validation.labels
    )
    before, after = (milliseconds(graph, dataset.test.rgb, side) for graph in (model, smaller))
    print(f"int8 loses {loss:.2%} of the answers and takes {after} ms instead of {before} ms", flush=True)
    if loss > measure.TOLERATED_LOSS or after >= before:
        return None
    for name in ("train", "test"):
        rgb = getattr(dataset, name).rgb
        found[name] = run(smaller, rgb, side, f"descriptors of the {name} pictures")
    return smaller, found


def milliseconds(model: onnx.ModelProto, rgb: NDArray[np.uint8], side: int) -> float:
    """Of one core for the net alone, one picture at a time; median. Other work of the machine counts not."""
    ready = export.session(model)
    seconds = []
    for picture in resized(rgb[:TIMED], side):
        start = time.process_time()
        ready.run(None, {"pictures": picture[None]})
        seconds.append(time.process_time() - start)
    return float(f"{1000 * np.median(seconds):.3g}")


def fit_classifiers(
    descriptors: Mapping[str, NDArray[np.float32]], dataset: Dataset, folder: Path, seed: int
) -> dict[str, dict[str, Any]]:
    """The three classifiers of the mesh, fitted to these descriptors; their tables without what is common."""
    train, validation, test = (measure.rounded(descriptors[name]) for name in ("train", "validation", "test"))
    tables = {}
    for kind, family, fit in (
        ("fast", "random forest", classifiers.random_forest),
        ("balanced", "support vector machine", classifiers.support_vectors),
        ("accurate", "multilayer perceptron", classifiers.perceptron),
    ):
        name = f"classifier-{kind}-{NAME}"
        scores = fit(train, dataset.train.labels, seed)
        graph = classifiers.calibrated(scores, validation, dataset.validation.labels)
        _, probabilities = export.run(graph, test)
        metrics = {**measure.quality(probabilities, dataset.test.labels), **measure.speed(graph, test)}
        print(f"{name}, {family}: {metrics}", flush=True)
        tables[name] = {
            "kind": "classifier",
            "family": family,
            "precision": "fp32",
            "input": "descriptors",
            "output": ["label", "probabilities"],
            "labels": list(data.LABELS),
            "origin": "trained on the descriptors of CIFAR-10 (Krizhevsky, 2009)",
            **written(folder / f"{name}.onnx", graph),
            "metrics": metrics,
        }
    return tables


def add_tables(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the tables into models.toml at once, and keeps those of other models that are there."""
    draft = path.with_suffix(".new")
    draft.write_text(TABLES + toml(tables_in(path.parent) | dict(tables)), encoding="utf-8")
    draft.replace(path)


def _write_comparison(
    path: Path,
    arguments: argparse.Namespace,
    dataset: Dataset,
    reduction: Reduction,
    top1: Mapping[str, Mapping[str, float]],
    tables: Mapping[str, Mapping[str, Any]],
) -> None:
    features = len(reduction.weights)
    content = {
        "command": _command(arguments),
        "origin": _origin(arguments),
        "side": arguments.side,
        "training_pictures": len(dataset.train),
        "test_pictures": len(dataset.test),
        "features": features,
        "descriptors": arguments.descriptors,
        "explained_variance": round(reduction.explained, 4),
        "top1": top1,
        "models": {
            name: {"precision": table["precision"], "bytes": table["bytes"], **table["metrics"]}
            for name, table in tables.items()
        },
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _command(arguments: argparse.Namespace) -> str:
    """What to type for the same models again, but for where the files lie."""
    words = ["python -m training.resnet50"]
    words.append(f"--weights {Path(arguments.weights).name} --side {arguments.side} --seed {arguments.seed}")
    words.append(f"--descriptors {arguments.descriptors}")
    if arguments.fine_tune:
        words.append(f"--fine-tune {arguments.fine_tune}")
    if arguments.limit:
        words.append(f"--limit {arguments.limit}")
    if arguments.int8:
        words.append("--int8")
    return " ".join(words)


def _origin(arguments: argparse.Namespace) -> str:
    base = {
        IMAGENET: "ResNet50 by Keras, trained on ImageNet (He et al., 2015)",
        NOTHING: "ResNet50 trained from nothing",
    }.get(arguments.weights, arguments.origin or f"ResNet50 of {Path(arguments.weights).name}")
    tuned = f", {arguments.fine_tune} times through CIFAR-10" if arguments.fine_tune else ""
    return f"{base}{tuned}; PCA of CIFAR-10 (Krizhevsky, 2009)"


def _licence(weights: str) -> str:
    return {IMAGENET: "MIT", NOTHING: "Apache-2.0"}.get(weights, "that of the weights")


if __name__ == "__main__":
    sys.exit(main())
