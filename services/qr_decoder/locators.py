"""Which learned locators a profile asks and which versions they are: told without loading one.

The service's own process has no numpy; what decodes is in its children.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_TABLE: Final = "models.toml"

# Profiles whose levels ask a locator, beside those that are named like the level.
_LEVELS: Final = {"onnx": ("locator-n",), "cascade": ("locator-n",)}

# The level that asks two of them; each other one that asks any is named like its locator.
_HYBRID: Final = ("locator-s", "locator-m")

_DIGEST_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class LocatorFile:
    """A locator that lies there.

    version: of models.toml, where the file is the one that it was written for; the beginning of the file's
    SHA-256 in hex otherwise. family: what was learned, of models.toml as well; empty otherwise.
    """

    name: str
    version: str
    family: str


def asked_by(profile: str, folder: Path) -> list[LocatorFile]:
    """Those that a profile, or level names with commas between them, asks and that lie in a folder.

    Locators that the folder's models.toml does not name are left out.
    """
    try:
        tables = tomllib.loads((folder / _TABLE).read_text())
    except (OSError, ValueError):
        return []
    levels = _LEVELS.get(profile) or [level.strip() for level in profile.split(",")]
    names = dict.fromkeys(name for level in levels for name in (_HYBRID if level == "hybrid" else (level,)))
    return [
        _listed(name, tables[name], folder / tables[name]["file"])
        for name in names
        if name in tables and (folder / tables[name]["file"]).is_file()
    ]


def unlisted(name: str, file: Path) -> LocatorFile:
    """Of a file that no table was written for."""
    return LocatorFile(name, _digest(file)[:_DIGEST_DIGITS], "")


def _listed(name: str, table: Mapping[str, Any], file: Path) -> LocatorFile:
    if _digest(file) != table["sha256"]:
        return unlisted(name, file)
    return LocatorFile(name, table["version"], table["family"])


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
