"""The `mesh` command: one module per group of commands.

Every module imports what it needs inside its commands, so that `mesh --help` and shell completion answer
at once.
"""

from __future__ import annotations

import sys

import typer

from visionmesh.cli import bench, classify, dlq, doctor, settings, topics, up, upload
from visionmesh.cli.console import complain
from visionmesh.errors import Rejected, Unavailable

app = typer.Typer(
    name="mesh",
    help="A self-hosted mesh of small vision services joined by Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("demo")(up.demo)
app.command("upload")(upload.upload)
app.command("classify")(classify.classify)
app.add_typer(topics.app, name="topics")
app.add_typer(dlq.app, name="dlq")
app.command("doctor")(doctor.doctor)
app.command("settings")(settings.settings)
app.command("bench")(bench.bench)


def main() -> None:
    """The console script. A failure that is nobody's bug is one sentence, not a traceback."""
    try:
        app()
    except Unavailable as error:
        complain(f"{error}\n`mesh doctor` says what is reachable; `mesh up` starts everything.")
    except Rejected as error:
        complain(error.reason)
    sys.exit(1)
