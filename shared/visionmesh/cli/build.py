"""`mesh models build`: models that do not come with the mesh, made on this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from visionmesh.cli.console import fail
from visionmesh.cli.environments import python_of, run
from visionmesh.settings import ROOT

# What builds a model, by the name that is asked for.
BUILDS: Final[Mapping[str, str]] = {"resnet50-pca": "training.resnet50"}

PYTHON_VARIABLE: Final = "MESH_TRAIN_PYTHON"

_SOURCES: Final = (ROOT / "shared", ROOT / "services", ROOT / "models")
_CLASSIFIERS: Final = ("fast", "balanced", "accurate")


def build(
    name: Annotated[str, typer.Argument(help=f"What to build: {', '.join(BUILDS)}.")],
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Pictures to fit on: an .npz of JPEG files; else CIFAR-10 is downloaded.",
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="imagenet (downloaded by Keras), a file saved by Keras, or none.")
    ] = "imagenet",
    origin: Annotated[
        str | None, typer.Option(help="What the weights of a file are, for the table; else its name.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(help="Folder to write to; that of the setting MESH_BUILT_MODELS_DIR if absent."),
    ] = None,
    fine_tune: Annotated[int, typer.Option(min=0, metavar="EPOCHS", help="Train the net itself.")] = 0,
    side: Annotated[
        int, typer.Option(min=32, help="Pixels of a picture; the work grows with its square.")
    ] = 224,
    descriptors: Annotated[int, typer.Option(min=1, help="How many numbers describe a picture.")] = 20,
    limit: Annotated[int | None, typer.Option(min=1, help="Use this many training pictures only.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantize, if that is faster and loses nothing.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of the training and of all that is fitted.")] = None,
) -> None:
    """Build a model, its classifiers included, in the environment of `make train`."""
    from visionmesh.settings import get_settings

    module = BUILDS.get(name)
    if module is None:
        fail(f"There is no model {name!r} to build; there are {', '.join(BUILDS)}.", 2)
    # Here as well as in the training, because TensorFlow takes seconds before it comes to that.
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        fail(f"There is no file {weights}; --weights takes imagenet, none or a file.", 2)
    usual = get_settings().built_models_dir
    folder = (usual if into is None else into).resolve()
    chosen = {
        "--data": data,
        "--into": folder,
        "--weights": weights,
        "--origin": origin,
        "--fine-tune": fine_tune,
        "--side": side,
        "--descriptors": descriptors,
        "--limit": limit,
        "--seed": seed,
    }
    arguments = [f"{option}={value}" for option, value in chosen.items() if value is not None]
    run(
        [str(_python()), "-m", module, *arguments, *(["--int8"] if int8 else [])],
        sources=_SOURCES,
        doing=f"building {name}",
        failed=f"{name} was not built, or MLflow was not told of it",
    )
    sys.stdout.write(_how_to_use(name, None if folder == usual.resolve() else folder))


def _python() -> Path:
    """The interpreter that has TensorFlow. Ends the program when there is none."""
    if not (ROOT / "models" / "training").is_dir():
        fail(f"{ROOT} has no models/training; models are built from a copy of the repository.")
    return python_of(
        "train", PYTHON_VARIABLE, "Models are built in an environment of their own, with TensorFlow"
    )


def _how_to_use(name: str, folder: Path | None) -> str:
    """folder: when it is not the one that services look into anyway."""
    models = {classifier: f"classifier-{classifier}-{name}" for classifier in _CLASSIFIERS}
    where = [] if folder is None else [f"MESH_BUILT_MODELS_DIR={shlex.quote(str(folder))}"]
    command = [*where, f"MESH_EXTRACTOR_MODEL={name}", "mesh up"]
    options = [f"--classifier {classifier}={model}" for classifier, model in models.items()]
    settings = [
        *where,
        f"MESH_EXTRACTOR_MODEL={name} (feature-extractor)",
        *(f"MESH_CLASSIFIER_MODEL={model} (classifier-{classifier})" for classifier, model in models.items()),
    ]
    return (
        f"{name} is built. The mesh runs with it by\n\n  "
        + " \\\n    ".join([" ".join(command), *options])
        + "\n\nand services that are started otherwise by the settings\n\n  "
        + "\n  ".join(settings)
        + "\n"
    )
