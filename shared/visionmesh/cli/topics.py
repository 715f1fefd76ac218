"""`mesh topics`: what lies in Kafka and how far its readers are."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from visionmesh.cli.console import (
    DIRECTORY,
    DIRECTORY_VARIABLE,
    Compose,
    Directory,
    complain,
    connect,
    fail,
    print_table,
)

app = typer.Typer(help="Topics, groups and lag.", invoke_without_command=True)

_SECONDS: Final = 5.0


@app.callback()
def list_topics(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per topic and group.")] = False,
    compose: Compose = False,
    directory: Directory = DIRECTORY,
) -> None:
    """List topics with their partitions, messages, consumer groups and lag."""
    if context.invoked_subcommand is not None:
        # `mesh topics --directory X tail T`: the subcommand's option is X too, unless it has its own;
        # so with --compose.
        os.environ[DIRECTORY_VARIABLE] = str(directory)
        context.default_map = {context.invoked_subcommand: {"compose": compose}}
        return
    connect(directory, compose=compose)
    from rich.table import Column, Table

    from visionmesh.kafka import partition_offsets
    from visionmesh.settings import get_settings
    from visionmesh.topics import readers
    from visionmesh.worker.dead_letters import REPLAY_GROUP

    reading = readers(get_settings().extra_classifiers)
    groups = [(topic.name, group) for topic, group in reading]
    groups += [(topic.dead_letters(group), REPLAY_GROUP) for topic, group in reading]
    table = Table(Column("topic", no_wrap=True), "partitions", "messages", "group", "lag")
    for name, group in groups:
        offsets = partition_offsets(get_settings(), name, group)
        row: dict[str, Any] = {
            "topic": name,
            "partitions": len(offsets),
            "messages": sum(partition.high - partition.low for partition in offsets),
            "group": group,
            "lag": sum(partition.lag for partition in offsets),
        }
        if as_json:
            sys.stdout.write(json.dumps(row) + "\n")
        table.add_row(*(str(value) for value in row.values()))
    if not as_json:
        print_table(table)


@app.command("create")
def create(compose: Compose = False, directory: Directory = DIRECTORY) -> None:
    """Create the topics of the table and their dead-letter topics; those that exist stay as they are."""
    connect(directory, compose=compose)
    from visionmesh.kafka import create_topics
    from visionmesh.settings import get_settings

    created = create_topics(get_settings())
    sys.stdout.write("".join(f"created {name}\n" for name in created) or "all topics exist\n")


@app.command("tail")
def tail(
    topics: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TOPIC...]", help="Every topic and its dead letters when none is named."),
    ] = None,
    beginning: Annotated[bool, typer.Option("--from-beginning", help="Also what is there already.")] = False,
    limit: Annotated[int | None, typer.Option(help="End after so many messages.")] = None,
    compose: Compose = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Print messages as they arrive, one JSON line each; Ctrl-C ends it. Commits nothing."""
    connect(directory, compose=compose)
    from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaException, TopicPartition

    from visionmesh.errors import Unavailable
    from visionmesh.kafka import onlooker
    from visionmesh.settings import get_settings
    from visionmesh.topics import TOPICS, dead_letter_topics

    settings = get_settings()
    named = topics or [*(topic.name for topic in TOPICS), *dead_letter_topics(settings.extra_classifiers)]
    # The client demands a group; nothing is ever committed for it.
    consumer = onlooker(settings, "mesh-topics-tail")
    try:
        start = OFFSET_BEGINNING if beginning else OFFSET_END
        places = []
        for topic in named:
            metadata = consumer.list_topics(topic, timeout=_SECONDS).topics[topic]
            if metadata.error is not None:
                fail(f"There is no topic {topic!r}; `mesh topics` lists them.")
            places += [TopicPartition(topic, number, start) for number in metadata.partitions]
        consumer.assign(places)
        seen = 0
        while limit is None or seen < limit:
            message = consumer.poll(0.5)
            if message is None:
                continue
            if message.error() is not None:
                complain(str(message.error()))
                continue
            sys.stdout.write(json.dumps(_line(message)) + "\n")
            sys.stdout.flush()
            seen += 1
    except KafkaException as error:
        raise Unavailable("kafka", error.args[0].str()) from error
    finally:
        consumer.close()


def _line(message: Any) -> dict[str, Any]:
    """time: when it was written, by its producer. value: as an object where it is one."""
    line: dict[str, Any] = {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "time": _time(message),
        "key": _text(message.key()),
        "value": _value(message.value()),
    }
    if message.headers():
        line["headers"] = {name: _text(value) for name, value in message.headers()}
    return line


def _time(message: Any) -> str | None:
    _, milliseconds = message.timestamp()
    if milliseconds <= 0:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _value(value: bytes | None) -> Any:
    """A message of the mesh as JSON; of anything else, which dead letters may be, the text."""
    try:
        return None if value is None else json.loads(value)
    except (ValueError, RecursionError):
        return _text(value)


def _text(value: bytes | str | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
