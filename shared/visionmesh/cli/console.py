"""What all commands share: where they print, and how they find the running mesh."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from visionmesh.settings import ROOT

DIRECTORY: Final = ROOT / ".mesh"

INGEST_URL: Final = "http://127.0.0.1:8001"


def complain(text: str) -> None:
    """One line (or a few) for people, on standard error."""
    sys.stderr.write(f"mesh: {text}\n")


def fail(text: str, status: int = 1) -> NoReturn:
    """Says why and ends the program."""
    complain(text)
    raise SystemExit(status)


def running(directory: Path = DIRECTORY) -> dict[str, Any] | None:
    """What `mesh up` or `mesh demo` wrote down, None when neither runs in that folder."""
    try:
        state: dict[str, Any] = json.loads((directory / "running.json").read_text())
        os.kill(state["pid"], 0)
    except (OSError, ValueError, KeyError):
        return None
    return state


def connect(directory: Path = DIRECTORY) -> None:
    """Points the settings at the running mesh, unless the environment points elsewhere.

    To be called before `get_settings`: the embedded stack's servers have other ports every time.
    """
    state = running(directory)
    for name, value in ({} if state is None else state["environment"]).items():
        os.environ.setdefault(name, value)


def ingest_url(directory: Path = DIRECTORY) -> str:
    """Where uploads go: the running mesh's ingest-api, else its published port."""
    state = running(directory)
    for replica in [] if state is None else state["replicas"]:
        if replica["service"] == "ingest-api":
            return str(replica["url"])
    return INGEST_URL
