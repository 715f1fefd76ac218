"""The weights of QReader's detectors: a folder with `qrdet-<size>.pt`, as the package itself keeps it.

The package (requirements/qreader.in) is imported by what loads a detector, and by nothing else here. A file
of weights is a pickle: whoever wrote it runs code in the process that loads it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from visionmesh.errors import Rejected

if TYPE_CHECKING:
    from qreader import QReader

SIZES: Final = ("n", "s", "m", "l")

# ultralytics asks for updates, installs packages and reports to its makers unless told not to. It has to be
# told before it is imported, so these belong into the environment of the process.
QUIET: Final[Mapping[str, str]] = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS": "true",
}


def file_of(size: str, folder: Path) -> Path:
    """Where the weights of a size are, or would be."""
    return folder / f"qrdet-{size}.pt"


def placed(size: str, file: Path, folder: Path) -> None:
    """Makes a file of weights, whatever its name, the one of that size in a folder."""
    shutil.copyfile(file, file_of(size, folder))


def fetch(size: str, folder: Path) -> None:
    """Downloads the weights of a size by the package's own means, unless the folder has them.

    Raises `Rejected`: `package_missing`, `weights_missing`.
    """
    reader, file = _package(), file_of(size, folder)
    if file.is_file():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Apart, so that half a file never takes the place of one, nor a page that says 404.
        with TemporaryDirectory(dir=folder, prefix=".download-") as new:
            reader(model_size=size, weights_folder=new)
            file_of(size, Path(new)).replace(file)
    # Of the network, the disk, the pickle or the package's assertions: each has a kind of its own.
    except Exception as error:
        raise Rejected(
            "weights_missing",
            f"{file} is not there and could not be downloaded ({_in_a_line(error)}). Put a file of that name "
            "there, from the releases of the qrdet package.",
        ) from error


def opened(size: str, folder: Path) -> QReader:
    """The package's reader with the weights of a folder, which has them.

    Raises `Rejected`: `package_missing`, and `weights_broken` when they can't be loaded.
    """
    reader, file = _package(), file_of(size, folder)
    try:
        _mark(folder)
        return reader(model_size=size, weights_folder=str(folder))
    except Exception as error:
        raise Rejected("weights_broken", f"QReader can't load {file}: {_in_a_line(error)}") from error


def _package() -> type[QReader]:
    try:
        import qreader
    except ImportError as error:
        raise Rejected(
            "package_missing",
            f"The package qreader is not installed here ({error}); requirements/qreader.txt lists it all.",
        ) from error
    reader: type[QReader] = qreader.QReader
    return reader


def _mark(folder: Path) -> None:
    """Writes down which release the weights are of: without it the package downloads them over these."""
    from qrdet import qrdet

    marker, release = folder / "current_release.txt", qrdet._WEIGHTS_URL_FOLDER
    if not (marker.is_file() and marker.read_text() == release):
        marker.write_text(release)


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
