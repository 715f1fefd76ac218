"""`mesh backup` and `mesh restore`: the whole mesh into a folder, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionmesh.cli.console import DIRECTORY, Directory, complain, connect, fail


def backup(
    folder: Annotated[Path, typer.Argument(help="A folder that is empty, or not there yet.")],
    directory: Directory = DIRECTORY,
) -> None:
    """Write tables, objects and what only Kafka has into a folder. The mesh may go on meanwhile."""
    connect(directory)
    from visionmesh.backup import BackupError
    from visionmesh.backup import backup as write
    from visionmesh.settings import get_settings

    try:
        write(get_settings(), folder, complain)
    except BackupError as error:
        fail(str(error))
    complain(f"the backup is complete: {folder}")


def restore(
    folder: Annotated[Path, typer.Argument(help="What `mesh backup` wrote.", exists=True, file_okay=False)],
    replace: Annotated[
        bool, typer.Option("--replace", help="Empty the tables first; else they have to be empty.")
    ] = False,
    no_records: Annotated[
        bool, typer.Option("--no-records", help="Leave out Kafka's part: it was not lost.")
    ] = False,
    ask_again: Annotated[
        int, typer.Option(min=0, help="At most so many pictures are asked for again; mesh reconcile goes on.")
    ] = 10_000,
    directory: Directory = DIRECTORY,
) -> None:
    """Put a backup into the mesh that runs. What was not finished then is asked for again."""
    connect(directory)
    from visionmesh.backup import BackupError
    from visionmesh.backup import restore as read
    from visionmesh.settings import get_settings

    try:
        manifest = read(
            get_settings(),
            folder,
            replace=replace,
            with_records=not no_records,
            ask_again=ask_again,
            say=complain,
        )
    except BackupError as error:
        fail(str(error))
    complain(f"the mesh is as it was at {manifest.made_at:%Y-%m-%d %H:%M:%S} UTC")
