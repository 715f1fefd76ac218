"""`mesh models compare`: what models in shadow say, beside what is shown."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Final

import typer

from visionmesh.cli.console import DIRECTORY, Compose, Directory, complain, connect, fail

if TYPE_CHECKING:
    from rich.table import Table

    from visionmesh.comparison import (
        ClassifierComparison,
        ExtractorComparison,
        Label,
        Latency,
        SpaceClassifier,
    )
    from visionmesh.mlflow import Mlflow
    from visionmesh.model_store import Model, ModelStore
    from visionmesh.results import Shadows

EXTRACTOR: Final = "feature-extractor"

NOTE: Final = (
    "Nobody knows the true labels of these pictures: agreement is no accuracy, and neither accuracy nor "
    "calibration (ECE) can be told from it. models/REPORT.md has both."
)

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

# Postgres counts time in microseconds from the year 4713 BC on, which a longer time ago would be before.
_MAX_SECONDS: Final = 1000 * 366 * 86_400

# What the SVM is given at once, as in the classifier: it compares every row with all its support vectors.
_BATCH: Final = 256

_SHOWN_CONFUSIONS: Final = 5


@dataclass(frozen=True)
class Comparisons:
    """Everything that was compared. note: what it does not say."""

    since_seconds: float
    limit: int
    classifiers: list[ClassifierComparison]
    extractors: list[ExtractorComparison]
    note: str = NOTE


def compare(
    of: Annotated[
        str | None,
        typer.Argument(
            metavar="[CLASSIFIER|feature-extractor]", help="Whose shadows; everyone's when absent."
        ),
    ] = None,
    since: Annotated[str, typer.Option(help="How far back, e.g. 90s, 15m, 1h, 7d.")] = "1h",
    limit: Annotated[
        int, typer.Option(min=1, help="At most so many pictures of each shadow, the newest.")
    ] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    compose: Compose = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Compare models in shadow with those whose answers are shown, on the pictures that both have seen."""
    seconds = seconds_of(since)
    connect(directory, compose=compose)
    from visionmesh.database import Database
    from visionmesh.results import PostgresShadows
    from visionmesh.settings import get_settings

    settings = get_settings()
    with Database.from_settings(settings) as database:
        shadows = PostgresShadows(database)
        found = compare_all(shadows, _models(), of, seconds=seconds, limit=limit, registry=_registry())
    if as_json:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
    elif not found.classifiers and not found.extractors:
        whose = "No model" if of is None else f"No model in shadow of {of}"
        fail(f"{whose} has answered a picture in the last {since} that has its usual answer too.")
    else:
        _print(found)


def seconds_of(text: str) -> float:
    """`90s`, `15m`, `1h` or `7d` in seconds. Ends the program when it is none of these."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if parts is None:
        fail(f"--since {text}: say how far back as 90s, 15m, 1h or 7d.", 2)
    return min(float(parts[1]) * _UNITS[parts[2]], _MAX_SECONDS)


def compare_all(
    shadows: Shadows,
    models: ModelStore | None,
    of: str | None,
    *,
    seconds: float,
    limit: int,
    registry: Mlflow | None = None,
) -> Comparisons:
    """Every comparison that `of` asks for: a classifier (`fast` or `classifier-fast`), the extractor, all.

    models: where spaces of extractors and classifiers for them are looked up. registry: where those spaces
    are that `models` does not know. Raises `Unavailable("database", …)`.
    """
    from visionmesh.comparison import compare_classifiers, compare_extractors

    wanted = None if of is None else of.removeprefix("classifier-")
    classifiers = [
        comparison
        for shadow in shadows.classifiers(within_seconds=seconds)
        if wanted in (None, shadow.classifier)
        for comparison in compare_classifiers(
            shadow, shadows.predictions(shadow, within_seconds=seconds, limit=limit)
        )
    ]
    space = cache(partial(space_of, models, registry))
    extractors = []
    for extractor in shadows.extractors(within_seconds=seconds) if wanted in (None, EXTRACTOR) else ():
        pairs = shadows.features(extractor, within_seconds=seconds, limit=limit)
        stored = {classifier for pair in pairs for classifier in pair.labels}
        candidates = _classifiers_for(models, space(extractor), stored)
        extractors += compare_extractors(extractor, pairs, space, candidates)
    return Comparisons(seconds, limit, classifiers, extractors)


def space_of(models: ModelStore | None, registry: Mlflow | None, address: str) -> str:
    """The space that an extractor's `name@version` gives its descriptors in; its own when it is unknown."""
    from visionmesh.errors import Unavailable
    from visionmesh.model_store import ModelError

    name, _, version = address.rpartition("@")
    table = models.describe(name) if models is not None and name in models.names("extractor") else {}
    if str(table.get("version")) == version:
        return str(table.get("space", address))
    try:
        return str(registry.describe(name, version).get("space", address)) if registry else address
    except (ModelError, Unavailable):
        return address


def _models() -> ModelStore | None:
    """The models of this machine; None, and a warning, when there are none that can be read."""
    from visionmesh.model_store import ModelError, ModelStore
    from visionmesh.settings import get_settings

    settings = get_settings()
    try:
        return ModelStore(settings.models_dir, settings.built_models_dir)
    except ModelError as error:
        complain(f"{error} Without it, no classifier can be tried on the descriptors of a shadow.")
        return None


def _registry() -> Mlflow | None:
    from visionmesh.mlflow import Mlflow
    from visionmesh.model_store import ModelError
    from visionmesh.settings import get_settings

    settings = get_settings()
    try:
        return None if settings.mlflow_tracking_uri is None else Mlflow.from_settings(settings)
    except ModelError as error:
        complain(str(error))
        return None


def _classifiers_for(models: ModelStore | None, space: str, stored: Collection[str]) -> list[SpaceClassifier]:
    """The classifiers for descriptors of `space` that have a counterpart among those that are stored."""
    from visionmesh.comparison import SpaceClassifier, counterpart
    from visionmesh.model_store import ModelError

    if models is None:
        return []
    found = []
    for name in models.names("classifier"):
        answers_for = counterpart(name, stored)
        if answers_for is None or models.describe(name).get("extractor") != space:
            continue
        try:
            model = models.load(name)
        except (ModelError, ImportError) as error:
            complain(f"{name} is left out: {error}")
            continue
        found.append(SpaceClassifier(answers_for, model.address, model.descriptor_count, _labels_by(model)))
    return found


def _labels_by(model: Model) -> Label:
    def label(descriptors: object) -> Sequence[str]:
        import numpy as np

        rows = np.asarray(descriptors, np.float32)
        batches = (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))
        return [model.labels[index] for batch in batches for index in model.run(batch)[0].tolist()]

    return label


def _print(found: Comparisons) -> None:
    from rich.console import Console

    console = Console()
    for classifier in found.classifiers:
        console.print(_classifier_table(classifier))
        _print_confusions(classifier)
    for extractor in found.extractors:
        console.print(_extractor_table(extractor))
    sys.stdout.write(f"{NOTE}\n")
    pictures = [each.pictures for each in found.classifiers] + [each.pictures for each in found.extractors]
    if max(pictures) >= found.limit:
        sys.stdout.write(f"Only the newest {found.limit} pictures of a shadow were compared; see --limit.\n")


def _classifier_table(found: ClassifierComparison) -> Table:
    title = f"{found.classifier}: {_pictures(found.pictures)}, the same label for {found.agreement:.1%}"
    table = _table(title)
    table.add_row("model", found.model, found.shadow)
    table.add_row("mean confidence", f"{found.confidence:.1%}", f"{found.shadow_confidence:.1%}")
    table.add_row("latency p50, p95", _in_words(found.latency_ms), _in_words(found.shadow_latency_ms))
    return table


def _print_confusions(found: ClassifierComparison) -> None:
    shown = [
        f"{confusion.label} is {confusion.shadow_label} to the shadow: {confusion.pictures}"
        for confusion in found.confusions[:_SHOWN_CONFUSIONS]
    ]
    more = len(found.confusions) - len(shown)
    rest = [f"and {more} more (--json has all)"] if more else []
    sys.stdout.write("".join(f"  {line}\n" for line in (*shown, *rest)))


def _extractor_table(found: ExtractorComparison) -> Table:
    table = _table(f"{EXTRACTOR}: {_pictures(found.pictures)}")
    table.add_row("model", found.model, found.shadow)
    table.add_row("descriptors", str(found.descriptor_count), str(found.shadow_descriptor_count))
    table.add_row("latency p50, p95", "not stored", _in_words(found.shadow_latency_ms))
    distance = "-" if found.distance is None else f"{found.distance:.3g} standard deviations"
    table.add_row("mean distance", "", distance if found.same_space else f"{distance} (another space)")
    for labels in found.labels:
        of = f"{labels.agreement:.1%} of {labels.pictures} by {labels.model}"
        table.add_row(f"same label as {labels.classifier}", "", of)
    return table


def _table(title: str) -> Table:
    from rich.table import Column, Table

    return Table("", Column("shown", overflow="fold"), Column("shadow", overflow="fold"), title=title)


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _in_words(latency: Latency) -> str:
    return f"{latency.p50:.3g}, {latency.p95:.3g} ms"
