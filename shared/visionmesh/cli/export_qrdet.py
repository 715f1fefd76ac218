"""`mesh models export-qrdet`: a detector of the qreader package as a locator of the qr-decoder."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer

from visionmesh.cli.console import fail
from visionmesh.cli.environments import python_of, run
from visionmesh.settings import ROOT

PYTHON_VARIABLE: Final = "MESH_QREADER_PYTHON"

# Centre, size, one score and 32 mask coefficients of each place; and the prototypes of the masks.
_OUTPUTS: Final = [[1, 37, 8400], [1, 32, 160, 160]]


class Size(StrEnum):
    """Of the detector."""

    NANO = "n"
    SMALL = "s"
    MEDIUM = "m"
    LARGE = "l"


def export_qrdet(
    size: Annotated[Size, typer.Option(help="Nano, small, medium or large.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="A weights file of QRDet (.pt) that you trust: loading it runs what is in it. Else the "
            "package downloads its own.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="Folder to write to; that of the setting MESH_MODELS_DIR if absent."
        ),
    ] = None,
) -> None:
    """Make the ONNX of a QRDet detector, which qr-decoder looks for codes with; it works without it too.

    Runs the qreader package in an environment of its own. Its detectors are trained with ultralytics, which
    is AGPL-3.0: the file is yours to use, and no part of the mesh.
    """
    from qr_decoder.domain.locator import FILES
    from visionmesh.settings import get_settings

    settings = get_settings()
    python = python_of(
        "qreader", PYTHON_VARIABLE, "Detectors are exported in an environment of their own, with torch"
    )
    file = (settings.models_dir if out is None else out).resolve() / FILES[size]
    if weights is None:
        source = ["--weights-folder", str(settings.qr_reader_weights.resolve())]
    else:
        source = ["--weights", str(weights.resolve())]
    with TemporaryDirectory() as folder:
        made = Path(folder) / file.name
        run(
            [str(python), "-m", "qr_decoder.export_qrdet", "--size", size, *source, "--onnx", str(made)],
            sources=(ROOT / "shared", ROOT / "services"),
            doing=f"exporting {file.name}",
            failed=f"{file.name} was not made",
        )
        _must_be_a_locator(made)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Beside it first: a service that starts meanwhile sees the old file or the new one.
        beside = file.with_name(f".{file.name}.new")
        beside.write_bytes(made.read_bytes())
        beside.replace(file)
    sys.stdout.write(
        f"{file} is there: level locator-{size}, which `mesh qr` and qr-decoder use by their profiles "
        "or by its name (--profile, MESH_QR_PROFILE).\n"
    )


def _must_be_a_locator(file: Path) -> None:
    """Ends the program when the file is no QRDet detector, by having it look at a picture without codes."""
    import numpy as np

    from qr_decoder.domain.locator import load, open_session

    try:
        shapes = [list(output.shape) for output in open_session(file).get_outputs()]
        if shapes != _OUTPUTS:
            raise ValueError(f"its outputs are {shapes}, and not {_OUTPUTS}")
        load(file.stem, file).locate(np.full((64, 64, 3), 255, np.uint8))
    # ONNX Runtime's own errors have no common base but this.
    except Exception as error:
        fail(f"{file.name} was not made: the weights are of no QRDet detector: {error}")
