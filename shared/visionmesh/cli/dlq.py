"""`mesh dlq`: what could not be processed, why, and sending it home."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Annotated

import typer

from visionmesh.cli.console import DIRECTORY, Compose, Directory, connect, fail, print_table

app = typer.Typer(help="Dead letters: list, show, replay.", no_args_is_help=True)

TopicArgument = Annotated[str, typer.Argument(help="A dead-letter topic, as `mesh dlq list` names it.")]


@app.command("list")
def list_letters(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per topic.")] = False,
    compose: Compose = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Count the dead letters of every topic, by reason."""
    connect(directory, compose=compose)
    from rich.table import Column, Table

    from visionmesh.settings import get_settings
    from visionmesh.topics import dead_letter_topics
    from visionmesh.worker.dead_letters import read_dead_letters

    table = Table(Column("topic", no_wrap=True), "waiting", "replayed", "reasons of those waiting")
    for topic in dead_letter_topics(get_settings().extra_classifiers):
        reasons: Counter[str] = Counter()
        replayed = 0
        # Counted as they are read: a month of them, with what they carry, is more than memory.
        for letter in read_dead_letters(get_settings(), topic):
            if letter.replayed:
                replayed += 1
            else:
                reasons[letter.headers.get("x-error-code", "unknown")] += 1
        if as_json:
            row = {"topic": topic, "waiting": reasons.total(), "replayed": replayed}
            sys.stdout.write(json.dumps({**row, "reasons": dict(reasons)}) + "\n")
        text = ", ".join(f"{count} {code}" for code, count in reasons.most_common())
        table.add_row(topic, str(reasons.total()), str(replayed), text)
    if not as_json:
        print_table(table)


@app.command("show")
def show(
    topic: TopicArgument,
    limit: Annotated[int, typer.Option(help="At most so many.")] = 20,
    all_letters: Annotated[bool, typer.Option("--all", help="Also those that were replayed.")] = False,
    compose: Compose = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Print dead letters with their reasons, one JSON line each."""
    connect(directory, compose=compose)
    _check(topic)
    from visionmesh.settings import get_settings
    from visionmesh.worker.dead_letters import read_dead_letters

    shown = 0
    for letter in read_dead_letters(get_settings(), topic):
        if letter.replayed and not all_letters:
            continue
        if shown == limit:
            break
        shown += 1
        line = {
            "partition": letter.partition,
            "offset": letter.offset,
            "replayed": letter.replayed,
            "key": None if letter.key is None else letter.key.decode(errors="replace"),
            "value": None if letter.value is None else letter.value.decode(errors="replace"),
            "headers": dict(letter.headers),
        }
        sys.stdout.write(json.dumps(line) + "\n")


@app.command("replay")
def replay(
    topic: TopicArgument,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    compose: Compose = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Publish the original messages again to the topics they came from, each of them once."""
    connect(directory, compose=compose)
    _check(topic)
    from visionmesh.settings import get_settings
    from visionmesh.worker import dead_letters

    if not yes:
        typer.confirm(f"Send the dead letters of {topic} back to where they came from?", abort=True)
    count = dead_letters.replay(get_settings(), topic, limit=limit)
    sys.stdout.write(f"{count} sent back\n")


def _check(topic: str) -> None:
    from visionmesh.settings import get_settings
    from visionmesh.topics import dead_letter_topics

    known = dead_letter_topics(get_settings().extra_classifiers)
    if topic not in known:
        names = "\n  ".join(known)
        fail(f"{topic!r} is no dead-letter topic; there are\n  {names}", 2)
