"""`mesh classify`: extractor and all classifiers in one process, without servers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from visionmesh.cli.console import fail, progress
from visionmesh.cli.pictures import Paths, error_of, pictures_of
from visionmesh.cli.up import Classifiers
from visionmesh.errors import Rejected

if TYPE_CHECKING:
    from classifier.domain import Classifier
    from feature_extractor.domain import Extractor
    from visionmesh.mesh import Service
    from visionmesh.settings import Settings

# Pictures decoded and run at once: 3 KB each once decoded.
_BATCH: Final = 256


def classify(
    paths: Paths,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per picture.")] = False,
    chosen: Classifiers = [],  # noqa: B006 - how typer wants the default of a repeatable option
) -> None:
    """Classify pictures here and now; no server is needed.

    With the models that `mesh up` would start: those of the same settings and of the same options. The exit
    status is 1 when any picture could not be read.
    """
    extractor, classifiers = _models(chosen)
    files = list(pictures_of(paths))
    unread = 0
    with progress() as bars:
        bar = bars.add_task("classifying", total=len(files))
        for batch in _batches(files):
            answers = _classify(batch, extractor, classifiers)
            unread += sum("error" in answer for answer in answers)
            lines = [json.dumps(answer) if as_json else _for_people(answer) for answer in answers]
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            bars.advance(bar, len(batch))
    if unread:
        fail(f"{unread} of {len(files)} could not be read.")


def _models(chosen: Sequence[str]) -> tuple[Extractor, dict[str, Classifier]]:
    """The extractor, and by name the classifiers. Ends the program when one can't be had or does not fit."""
    from feature_extractor.domain import Extractor
    from visionmesh.errors import Unavailable
    from visionmesh.mesh import MeshError, parse_services
    from visionmesh.model_store import ModelError
    from visionmesh.registry import load
    from visionmesh.settings import get_settings

    settings = get_settings()
    try:
        extractor = Extractor(load(settings, settings.extractor_model, kind="extractor"))
        return extractor, {
            service.environment["MESH_CLASSIFIER"]: _classifier(service, settings, extractor)
            for service in parse_services(chosen)
            if service.package == "classifier"
        }
    except (MeshError, ModelError, ValueError) as error:
        fail(str(error))
    except Unavailable as error:
        fail(error.reason)


def _classifier(service: Service, settings: Settings, extractor: Extractor) -> Classifier:
    """With the model that the service would load. Raises `ModelError` for one that would refuse whatever the
    extractor gives.
    """
    from classifier.domain import Classifier, validate
    from visionmesh.model_store import ModelError
    from visionmesh.registry import load

    usual = settings.classifier_model or service.name
    model = load(settings, service.environment.get("MESH_CLASSIFIER_MODEL", usual), kind="classifier")
    try:
        validate(model, [0.0] * extractor.model.descriptor_count, space=extractor.model.space)
    except Rejected as error:
        name = service.environment["MESH_CLASSIFIER"]
        hint = f"Name a model that was trained on these: --classifier {name}=MODEL."
        raise ModelError(f"{error.reason} {hint}") from error
    return Classifier(model)


def _batches(files: Iterable[Path]) -> Iterator[list[Path]]:
    remaining = iter(files)
    while batch := list(islice(remaining, _BATCH)):
        yield batch


def _classify(
    batch: Sequence[Path], extractor: Extractor, classifiers: Mapping[str, Classifier]
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
    found = [(name, classifier.classify(values)) for name, classifier in classifiers.items()]
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
