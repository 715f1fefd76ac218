"""`mesh classify`: extractor and all classifiers in one process, without servers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from visionmesh.cli.console import fail
from visionmesh.cli.pictures import Paths, error_of, pictures_of
from visionmesh.errors import Rejected

if TYPE_CHECKING:
    from classifier.domain import Classifier
    from feature_extractor.domain import Extractor

# Pictures decoded and run at once: 3 KB each once decoded.
_BATCH: Final = 256

_EXTRACTOR: Final = "extractor"


def classify(
    paths: Paths,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per picture.")] = False,
) -> None:
    """Classify pictures here and now; no server is needed.

    The exit status is 1 when any picture could not be read.
    """
    from rich.console import Console
    from rich.progress import Progress

    from visionmesh.model_store import ModelError

    try:
        extractor, classifiers = _models()
    except ModelError as error:
        fail(str(error))
    files = list(pictures_of(paths))
    unread = 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("classifying", total=len(files))
        for batch in _batches(files):
            answers = _classify(batch, extractor, classifiers)
            unread += sum("error" in answer for answer in answers)
            lines = [json.dumps(answer) if as_json else _for_people(answer) for answer in answers]
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            progress.advance(bar, len(batch))
    if unread:
        fail(f"{unread} of {len(files)} could not be read.")


def _models() -> tuple[Extractor, list[Classifier]]:
    from classifier.domain import Classifier
    from feature_extractor.domain import Extractor
    from visionmesh.model_store import ModelStore
    from visionmesh.settings import get_settings
    from visionmesh.topics import CLASSIFIERS

    store = ModelStore(get_settings().models_dir)
    return Extractor(store.load(_EXTRACTOR)), [Classifier(store.load(name)) for name in CLASSIFIERS]


def _batches(files: Iterable[Path]) -> Iterator[list[Path]]:
    remaining = iter(files)
    while batch := list(islice(remaining, _BATCH)):
        yield batch


def _classify(
    batch: Sequence[Path], extractor: Extractor, classifiers: Sequence[Classifier]
) -> list[dict[str, Any]]:
    """One answer per file, in order; descriptors and labels are those that the services would give."""
    import numpy as np

    from feature_extractor.domain import on_the_wire, prepare

    answers: list[dict[str, Any]] = []
    pictures = []
    for file in batch:
        try:
            picture = prepare(file.read_bytes(), extractor.side)
        except Rejected as error:
            answers.append({"file": str(file), "error": {"code": error.code, "message": error.reason}})
        except OSError as error:
            answers.append({"file": str(file), "error": error_of(error)})
        else:
            pictures.append(picture)
            answers.append({"file": str(file)})
    if not pictures:
        return answers
    rows = on_the_wire(extractor.extract(pictures))
    values = np.asarray(rows, np.float32)
    found = [(model.model.name.partition("-")[2], model.classify(values)) for model in classifiers]
    read = (answer for answer in answers if "error" not in answer)
    for index, answer in enumerate(read):
        answer["descriptors"] = rows[index]
        answer["predictions"] = [
            {"classifier": name, "label": of[index].label, "confidence": round(of[index].confidence, 6)}
            for name, of in found
        ]
    return answers


def _for_people(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"{answer['file']}: {answer['error']['message']} ({answer['error']['code']})"
    labels = ", ".join(
        f"{item['classifier']} {item['label']} {item['confidence']:.0%}" for item in answer["predictions"]
    )
    return f"{answer['file']}: {labels}"
