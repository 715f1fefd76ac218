"""`python -m training`: trains everything, measures it, and writes the models, models.toml and the report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from training import classifiers, consensus, data, export, extractors, measure, report, tracking, widths
from training.classifiers import Examples, Trial
from training.seen import Seen
from training.tables import tables_in, toml, written
from visionmesh.consensus import pool

# Any number would do.
SEED = 1
# What two cores train in three quarters of an hour; a night of them has time for 200.
EPOCHS = 12
VERSION = "2.0.0"
SPACE = f"extractor@{VERSION}"

PLAIN = "training pictures as they are"
SHIFTED = "training pictures, shifted"

# Kept by name whether or not they are among the three.
NAMED = {"classifier-random-forest": "random-forest", "classifier-svm": "svm"}

TABLES = """\
# The models that are deployed, one table each; written by `make train`, which explains them in REPORT.md, and
# by `make train-locator` (LOCATOR.md).
# The extractor's top-1 is that of the softmax head it was trained with; a classifier's is that of the whole
# way from picture to label, with the descriptors rounded to 4 digits as on the wire. Milliseconds are
# processor time of the machine that trained; compare them with one another only.
"""


def main() -> None:
    arguments = _arguments()
    if arguments.only_figures:
        _record_seed(data.load(arguments.data, limit=arguments.limit), arguments)
        return
    try:
        train(arguments)
    except tracking.TrackingError as error:
        raise SystemExit(str(error)) from error


def train(arguments: argparse.Namespace) -> None:
    """From pictures to the models, their tables, the report, and MLflow. Raises `TrackingError` before
    anything is trained, or when everything is written.
    """
    tracking.check()
    dataset = data.load(arguments.data, limit=arguments.limit)
    folder, reports = arguments.models, arguments.models / report.FOLDER
    reports.mkdir(parents=True, exist_ok=True)
    figures = report.read(reports / report.FIGURES)
    kept = tables_in(folder)
    tables = _of_kind(kept, "extractor") if arguments.keep_extractor else {}
    common = {
        "version": VERSION,
        "descriptor_count": 20,
        "licence": "Apache-2.0",
        "training": _command(arguments),
        "seed": arguments.seed,
    }
    if not arguments.keep_extractor:
        tables, figures["extractor"] = train_extractors(dataset, arguments, common)
    deployed = onnx.load(folder / tables["extractor"]["file"])
    seen = Seen(dataset, deployed, arguments.seed)
    found, figures["classifiers"] = train_classifiers(seen, folder, common)
    figures["decoding"] = extractors.decoding(arguments.seed)
    figures["made"] = _made(dataset, arguments)
    tables |= found
    text = TABLES + toml(tables | _of_kind(kept, "locator"))
    (folder / "models.toml").write_text(text, encoding="utf-8")
    report.write(reports / report.FIGURES, figures)
    measured = {role: tables[f"classifier-{role}"] for role in report.THREE} | {
        "consensus": tables["consensus"]
    }
    _add_seed(dataset, arguments, {role: table["metrics"]["top1"] for role, table in measured.items()})
    if not arguments.without_widths:
        report.write(reports / report.WIDTHS, widths.compare(seen.features, seen.labels, arguments.seed))
    report.render(folder)
    tracking.record(
        list(tables), folder, parameters=figures["made"], artifacts=[report.REPORT, report.FOLDER]
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--data", type=Path, help=".npz of JPEG files; the public archive when absent")
    parser.add_argument("--models", type=Path, default=Path(__file__).parents[1], help="folder to write to")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--limit", type=int, help="train on this many pictures only, for a quick try")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--net", type=Path, help="a .keras file to take the net from instead of training it")
    parser.add_argument("--keep-extractor", action="store_true", help="train only the classifiers")
    parser.add_argument("--without-widths", action="store_true", help="leave out the 10/20/50 experiment")
    parser.add_argument(
        "--only-figures",
        action="store_true",
        help="write no models: only add the top-1 of this seed to reports/seeds.json",
    )
    return parser.parse_args()


def _command(arguments: argparse.Namespace) -> str:
    command = f"python -m training --epochs {arguments.epochs} --seed {arguments.seed}"
    return command + (f" --limit {arguments.limit}" if arguments.limit else "")


def _made(dataset: data.Dataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures are of, for the report and for MLflow."""
    return {
        "command": _command(arguments),
        "version": VERSION,
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "train_pictures": len(dataset.train),
        "validation_pictures": len(dataset.validation),
        "test_pictures": len(dataset.test),
        **{name: version(name) for name in ("onnxruntime", "scikit-learn", "keras", "numpy")},
    }


def _of_kind(tables: Mapping[str, dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {name: table for name, table in tables.items() if table["kind"] == kind}


def _net(dataset: data.Dataset, arguments: argparse.Namespace) -> Any:
    # TensorFlow takes seconds to import and only this needs it.
    from training import extractor

    if arguments.net is not None:
        return extractor.keras.saving.load_model(arguments.net, compile=False)
    return extractor.fit(dataset, epochs=arguments.epochs, seed=arguments.seed)


def train_extractors(
    dataset: data.Dataset, arguments: argparse.Namespace, common: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Trains the net and writes it as float32 and as int8; the one to deploy is named `extractor`.

    Returns the tables, and the figures of these two and of the same with one look only.
    """
    net = _net(dataset, arguments)
    graphs = extractors.variants(net, dataset.train)
    found = extractors.figures(graphs, net.get_layer("head").get_weights(), dataset)
    deployed = "int8" if extractors.int8_pays(found) else "fp32"
    tables = {}
    for name, graph in extractors.written(graphs, deployed).items():
        precision = deployed if name == "extractor" else {"int8": "fp32", "fp32": "int8"}[deployed]
        metrics = {key: value for key, value in found[precision].items() if key != "bytes"}
        tables[name] = {
            **common,
            "kind": "extractor",
            "family": "convolutional net",
            "precision": precision,
            "space": SPACE,
            "input": "pictures",
            "output": ["descriptors"],
            "origin": "trained from nothing on CIFAR-10 (Krizhevsky, 2009)",
            **written(arguments.models / f"{name}.onnx", graph),
            "metrics": metrics,
        }
    return tables, {"deployed": deployed, "variants": found}


def train_classifiers(
    seen: Seen, folder: Path, common: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Tries all candidates on the descriptors that the deployed extractor gives, writes the three chosen
    ones and those kept by name, and fits the consensus. Returns the tables and the figures.
    """
    validation, test = seen.validation, seen.test
    sources = {PLAIN: seen.plain(), SHIFTED: seen.shifted}
    tried: dict[str, list[Trial]] = {}
    for candidate in classifiers.CANDIDATES:
        tried[candidate.name] = classifiers.trials(candidate, sources, validation, common["seed"])
        trial = classifiers.best(tried[candidate.name])
        print(f"{candidate.name}, fitted to {trial.source}, {trial.calibration}: {trial.quality}", flush=True)
    best = {name: classifiers.best(trials) for name, trials in tried.items()}
    chosen = classifiers.choose(list(best.values()))
    measured = {name: _measured(trial, validation, test, folder) for name, trial in best.items()}
    three = {f"classifier-{role}": trial for role, trial in chosen.items()}
    tables: dict[str, dict[str, Any]] = {}
    files: dict[str, dict[str, Any]] = {}
    for name, trial in (three | {name: best[kept] for name, kept in NAMED.items()}).items():
        candidate = trial.candidate.name
        # A model that has two names is one file.
        if candidate not in files:
            files[candidate] = written(folder / f"{name}.onnx", trial.graph)
        tables[name] = _classifier_table(trial, files[candidate], measured[candidate], common)
    agreed = _agreed(chosen, validation, test)
    tables["consensus"] = _consensus_table(agreed, common)
    print(f"chosen: { {name: trial.candidate.name for name, trial in chosen.items()} }", flush=True)
    return tables, {
        "chosen": {name: trial.candidate.name for name, trial in chosen.items()},
        "candidates": [{"name": name, **figures} for name, figures in measured.items()],
        "trials": [
            {
                "name": trial.candidate.name,
                "source": trial.source,
                "calibration": trial.calibration,
                **trial.quality,
            }
            for trials in tried.values()
            for trial in trials
        ],
        "consensus": agreed,
    }


def _measured(trial: Trial, validation: Examples, test: Examples, folder: Path) -> dict[str, Any]:
    """Everything the report says of one candidate."""
    _, probabilities = export.run(trial.graph, test.descriptors)
    unnamed = folder / f".{trial.candidate.name}.onnx"
    size = written(unnamed, trial.graph)["bytes"]
    memory = measure.memory_growth(unnamed)
    unnamed.unlink()
    return {
        "family": trial.candidate.family,
        "source": trial.source,
        "calibration": trial.calibration,
        "operations": trial.operations,
        "bytes": size,
        "memory_mib": memory,
        "validation": trial.quality,
        "test": measure.quality(probabilities, test.labels),
        **measure.latency(trial.graph, test.descriptors),
        **measure.speed(trial.graph, test.descriptors),
        "coverage": measure.coverage((trial.probabilities, validation.labels), (probabilities, test.labels)),
        "reliability": measure.reliability(probabilities, test.labels),
    }


def _classifier_table(
    trial: Trial, file: Mapping[str, Any], measured: Mapping[str, Any], common: Mapping[str, Any]
) -> dict[str, Any]:
    quality = measured["test"]
    return {
        **common,
        "kind": "classifier",
        "family": trial.candidate.family,
        "precision": "fp32",
        "input": "descriptors",
        "output": ["label", "probabilities"],
        "labels": list(data.LABELS),
        "extractor": SPACE,
        "origin": "trained on the descriptors of CIFAR-10 (Krizhevsky, 2009)",
        **file,
        "metrics": {
            "top1": quality["top1"],
            "top1_validation": trial.quality["top1"],
            "ece": quality["ece"],
            "nll": quality["nll"],
            "ms_per_picture": measured["ms_per_picture"],
            "ms_per_picture_of_64": measured["ms_per_picture_of_64"],
        },
    }


def _agreed(chosen: Mapping[str, Trial], validation: Examples, test: Examples) -> dict[str, Any]:
    """The weights of the consensus of the three, and its figures."""
    held_out = [trial.probabilities for trial in chosen.values()]
    weights = consensus.fit(held_out, validation.labels)
    agreed = pool(np.stack(held_out), weights)
    answers = np.stack([export.run(trial.graph, test.descriptors)[1] for trial in chosen.values()])
    pooled = pool(answers, weights)
    found = {
        "weights": dict(zip(chosen, weights.tolist(), strict=True)),
        "validation": measure.quality(agreed, validation.labels),
        "test": measure.quality(pooled, test.labels),
        "coverage": measure.coverage((agreed, validation.labels), (pooled, test.labels)),
        "reliability": measure.reliability(pooled, test.labels),
    }
    print(f"consensus {found['weights']}: {found['test']}", flush=True)
    return found


def _consensus_table(agreed: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{key: common[key] for key in ("version", "licence", "training", "seed")},
        "kind": "consensus",
        "origin": "fitted to what the classifiers say of CIFAR-10's held-out pictures (Krizhevsky, 2009)",
        "classifiers": {role: f"classifier-{role}@{VERSION}" for role in agreed["weights"]},
        "weights": agreed["weights"],
        "metrics": {key: agreed["test"][key] for key in ("top1", "ece")},
    }


def _record_seed(dataset: data.Dataset, arguments: argparse.Namespace) -> None:
    """The top-1 of the three classifiers with another net: fitted like those that are deployed."""
    folder = arguments.models / report.FOLDER
    recipes = report.read(folder / report.FIGURES)["classifiers"]
    graph = export.quantized(export.extractor(_net(dataset, arguments)), dataset.train)
    seen = Seen(dataset, graph, arguments.seed)
    by_name = {candidate.name: candidate for candidate in classifiers.CANDIDATES}
    trials = {
        name: classifiers.best(
            classifiers.trials(by_name[recipe], {SHIFTED: seen.shifted}, seen.validation, arguments.seed)
        )
        for name, recipe in recipes["chosen"].items()
    }
    top1 = {role: _top1(trial, seen.test) for role, trial in trials.items()}
    top1["consensus"] = _agreed(trials, seen.validation, seen.test)["test"]["top1"]
    _add_seed(dataset, arguments, top1)


def _top1(trial: Trial, test: Examples) -> float:
    return measure.quality(export.run(trial.graph, test.descriptors)[1], test.labels)["top1"]


def _add_seed(dataset: data.Dataset, arguments: argparse.Namespace, top1: Mapping[str, float]) -> None:
    """Into the table of seeds."""
    found = {
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "train_pictures": len(dataset.train),
        **top1,
    }
    print(found, flush=True)
    report.record_seed(arguments.models / report.FOLDER / report.SEEDS, "ours", found)


if __name__ == "__main__":
    main()
