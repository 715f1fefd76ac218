"""What training writes of a model: its file, and its table in `models.toml`."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

TABLE = "models.toml"

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def tables_in(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables of a folder's `models.toml`; none when it has no such file."""
    path = folder / TABLE
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def written(path: Path, graph: onnx.ModelProto) -> dict[str, Any]:
    """Writes the graph; returns what its table says of the file."""
    content = graph.SerializeToString()
    path.write_bytes(content)
    return {"file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def toml(table: Mapping[str, Any], *path: str) -> str:
    """A table as TOML, under a header where `path` names it; the tables inside it after its own lines.

    JSON's strings, numbers and truths are valid TOML as they stand, and so are lists of them.
    """
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = [f"[{'.'.join(map(_key, path))}]\n"] if path else []
    lines += [f"{_key(key)} = {_value(value)}\n" for key, value in table.items() if key not in inner]
    lines += [f"\n{toml(values, *path, key)}" for key, values in inner.items()]
    return "".join(lines)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    # JSON's way of writing an emoji in ASCII, as two halves, is not TOML's.
    return json.dumps(value, ensure_ascii=False)
