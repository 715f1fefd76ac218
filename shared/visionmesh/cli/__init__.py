"""The `mesh` command: one module per group of commands.

Every module imports what it needs inside its commands, so that `mesh --help` and shell completion answer
at once.
"""

from __future__ import annotations

import logging
import sys

import typer
from pydantic import ValidationError

from visionmesh.cli import dlq, edge, keys, models, topics
from visionmesh.cli.backup import backup, restore
from visionmesh.cli.bench import bench
from visionmesh.cli.classify import classify
from visionmesh.cli.console import complain
from visionmesh.cli.doctor import doctor
from visionmesh.cli.ocr import ocr
from visionmesh.cli.profile import profile
from visionmesh.cli.qr import qr
from visionmesh.cli.reconcile import reconcile
from visionmesh.cli.scale import autoscale, restart, scale
from visionmesh.cli.settings import settings
from visionmesh.cli.up import demo, up
from visionmesh.cli.upload import upload
from visionmesh.errors import Rejected, Unavailable
from visionmesh.settings import problems

app = typer.Typer(
    name="mesh",
    help="A self-hosted mesh of small vision services joined by Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("up")(up)
app.command("demo")(demo)
app.command("scale")(scale)
app.command("restart")(restart)
app.command("autoscale")(autoscale)
app.command("upload")(upload)
app.command("classify")(classify)
app.command("qr")(qr)
app.command("ocr")(ocr)
app.add_typer(topics.app, name="topics")
app.add_typer(dlq.app, name="dlq")
app.add_typer(models.app, name="models")
app.add_typer(edge.app, name="edge")
app.add_typer(keys.app, name="keys")
app.command("reconcile")(reconcile)
app.command("backup")(backup)
app.command("restore")(restore)
app.command("doctor")(doctor)
app.command("settings")(settings)
app.command("profile")(profile)
app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)


def main() -> None:
    """The console script. A failure that is nobody's bug is one sentence, not a traceback."""
    # librdkafka repeats at every attempt what the sentence below says once.
    logging.getLogger("librdkafka").addHandler(logging.NullHandler())
    try:
        app()
    except Unavailable as error:
        complain(f"{error}\n`mesh doctor` says what is reachable; `mesh up` starts everything.")
    except Rejected as error:
        complain(error.reason)
    except ValidationError as error:
        complain(problems(error))
    sys.exit(1)
