"""What runs in an environment of its own, because it can't share one with the services."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from visionmesh.cli.console import complain, fail
from visionmesh.settings import ROOT


def python_of(environment: str, variable: str, purpose: str) -> Path:
    """The interpreter of `.venv-<environment>`, or the one that the variable names.

    Ends the program when there is none, with `purpose`, a sentence on what it is for.
    """
    named = os.environ.get(variable)
    folder = ROOT / f".venv-{environment}"
    python = Path(named) if named else folder / "bin" / "python"
    # The stamp is what `make` leaves behind when everything is installed.
    complete = python if named else folder / "installed"
    if not complete.is_file():
        fail(
            f"There is no {complete}. {purpose}: `make .venv-{environment}/installed` makes it, or "
            f"{variable} names the Python of another."
        )
    return python


def run(command: Sequence[str], *, sources: Sequence[Path], doing: str, failed: str) -> None:
    """Runs it with its output passed on as it comes. Ends the program when it fails.

    sources: folders that it imports from. doing: for people. failed: the beginning of a sentence.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, sources)),
        "PYTHONUNBUFFERED": "1",
    }
    complain(f"{doing}: {shlex.join(command)}")
    try:
        status = subprocess.run(command, env=environment, check=False).returncode
    except OSError as error:
        fail(f"{command[0]} can't be run: {error.strerror}")
    if status < 0:
        fail(f"{failed}: it was ended by {signal.Signals(-status).name}.")
    if status:
        fail(f"{failed}.", status)
