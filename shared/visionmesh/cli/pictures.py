"""The pictures that a command is given: files, and what folders hold."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

# What is taken out of a folder. A file that is named is always tried, whatever its ending.
_ENDINGS: Final = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")
)

Paths = Annotated[list[Path], typer.Argument(help="Pictures, or folders (their pictures, to any depth).")]


def pictures_of(paths: Iterable[Path], *, also: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files that are named, and the pictures of the folders, in order.

    also: endings of other files that are taken out of folders (`.pdf`). A folder without any stands for
    itself: opening it is the error that tells of it.
    """
    for path in paths:
        found = False
        for picture in _files_below(path, _ENDINGS | also) if path.is_dir() else (path,):
            found = True
            yield picture
        if not found:
            yield path


def _files_below(path: Path, endings: frozenset[str]) -> Iterator[Path]:
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if Path(name).suffix.lower() in endings)


def error_of(error: OSError) -> dict[str, str]:
    """What a command prints of a file that could not be opened: `code` and `message`."""
    if isinstance(error, IsADirectoryError):
        return {"code": "no_pictures", "message": "The folder has no pictures."}
    code = "file_not_found" if isinstance(error, FileNotFoundError) else "unreadable_file"
    return {"code": code, "message": error.strerror or str(error)}
