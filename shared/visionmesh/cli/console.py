"""What all commands share: where they print, and how they find the running mesh."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from visionmesh.settings import ROOT

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

DIRECTORY: Final = ROOT / ".mesh"

DIRECTORY_VARIABLE: Final = "MESH_DIRECTORY"

Directory = Annotated[
    Path,
    typer.Option(
        envvar=DIRECTORY_VARIABLE,
        help="A mesh's own folder: its logs, its data, and the addresses by which commands find it.",
    ),
]

Compose = Annotated[
    bool,
    typer.Option("--compose", help="The containers of the compose file, instead of what `mesh up` runs."),
]

INGEST_URL: Final = "http://127.0.0.1:8001"

_FILE_COLUMNS: Final = 200


def complain(text: str) -> None:
    """One line (or a few) for people, on standard error."""
    sys.stderr.write(f"mesh: {text}\n")


def fail(text: str, status: int = 1) -> NoReturn:
    """Says why and ends the program."""
    complain(text)
    raise SystemExit(status)


def progress() -> Progress:
    """A bar on standard error, where that is a terminal; nothing is left of it in the end."""
    from rich.console import Console
    from rich.progress import Progress

    # Rich prints what goes to standard output above the bar, and so on standard error. That is right where
    # both are the terminal, and would leave a file or a pipe empty.
    return Progress(console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())


def print_table(table: Table) -> None:
    """On standard output; whole where that is no terminal, which Rich takes to be 80 columns wide."""
    from rich.console import Console

    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(width=None if narrow else _FILE_COLUMNS).print(table)


def running(directory: Path) -> dict[str, Any] | None:
    """What `mesh up` or `mesh demo` wrote down, None when neither runs in that folder."""
    from visionmesh import mesh

    return mesh.running(directory)


def connect(directory: Path, *, compose: bool = False) -> None:
    """Points the settings at the mesh that runs in `directory`, unless the environment points elsewhere.

    To be called before `get_settings`: the embedded stack's servers have other ports every time.
    compose: at the one in containers, whose ports and passwords are those of `.env`.
    """
    if compose:
        from visionmesh.compose import ComposeError, ComposeProject

        try:
            ComposeProject().connect()
        except ComposeError as error:
            fail(str(error))
        return
    state = _expected(directory)
    for name, value in ({} if state is None else state["environment"]).items():
        os.environ.setdefault(name, value)


def ingest_url(directory: Path) -> str:
    """Where uploads go: the ingest-api of the mesh that runs there, else its published port."""
    state = _expected(directory)
    for replica in [] if state is None else state["replicas"]:
        if replica["service"] == "ingest-api":
            return str(replica["url"])
    return INGEST_URL


def api_key_headers() -> Mapping[str, str]:
    """How this user's API key is shown to a mesh that asks for one."""
    from visionmesh.api_keys import client_headers
    from visionmesh.settings import get_settings

    key = get_settings().api_key
    return client_headers(None if key is None else key.get_secret_value())


def _expected(directory: Path) -> dict[str, Any] | None:
    """What runs there. Ends the program when a folder was named and nothing does.

    The published ports may be those of another mesh than the one that was meant.
    """
    state = running(directory)
    if state is None and directory.resolve() != DIRECTORY.resolve():
        fail(f"No mesh runs in {directory}.")
    return state
