"""`mesh keys`: who is let in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from visionmesh.api_keys import PER_MINUTE, Scope
from visionmesh.cli.console import complain, fail, print_table
from visionmesh.settings import ROOT

app = typer.Typer(help="API keys: who is let in, and what for.", no_args_is_help=True)

# Where `make env` puts it, and where compose takes it from.
FILE: Final = ROOT / "keys" / "api-keys.json"

File = Annotated[
    Path, typer.Option("--file", envvar="MESH_API_KEYS_FILE", help="The file that the services read.")
]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is; it stands in the logs.")],
    scope: Annotated[list[Scope], typer.Option(help="What it is good for; repeatable.")],
    per_minute: Annotated[int, typer.Option(min=1, help="Requests to one replica.")] = PER_MINUTE,
    file: File = FILE,
) -> None:
    """Make a key and print it; it is not kept in clear. Services take it within a second."""
    from visionmesh.api_keys import KeysError, new_key, read_keys, write_keys

    try:
        keys = read_keys(file) if file.exists() else ()
        if name in {key.name for key in keys}:
            fail(f"There is a key {name} already; revoke it first, or take another name.")
        text, key = new_key(name, scope, per_minute)
        write_keys(file, (*keys, key))
    except KeysError as error:
        fail(str(error))
    sys.stdout.write(f"{text}\n")


@app.command("list")
def list_keys(file: File = FILE) -> None:
    """List the keys, without the keys themselves."""
    from rich.table import Table

    from visionmesh.api_keys import KeysError, read_keys

    table = Table("name", "scopes", "requests a minute", "made")
    try:
        for key in read_keys(file):
            made = "" if key.created_at is None else f"{key.created_at:%Y-%m-%d}"
            table.add_row(key.name, " ".join(key.scopes), str(key.per_minute), made)
    except KeysError as error:
        fail(str(error))
    print_table(table)


@app.command("revoke")
def revoke(name: str, file: File = FILE) -> None:
    """Take a key out; services refuse it within a second."""
    from visionmesh.api_keys import KeysError, read_keys, write_keys

    try:
        keys = read_keys(file)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            fail(f"There is no key {name}.")
        write_keys(file, left)
    except KeysError as error:
        fail(str(error))
    if not left:
        complain("that was the last one; without any, a published mesh does not start")
