"""The servers a benchmark runs on: its own native stack, or a Kafka that is already there."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from visionmesh.cli.bench import TESTS
from visionmesh.database import migrate
from visionmesh.kafka import create_topics
from visionmesh.object_store import S3ObjectStore
from visionmesh.settings import Settings
from visionmesh.stack import Endpoints, open_stack

# The peers' packages live in an environment of their own, made by `make bench`.
PEER_PYTHON = Path(__file__).resolve().parents[2] / ".venv-bench" / "bin" / "python"


@contextmanager
def native() -> Iterator[Endpoints]:
    """A native stack for the time of the benchmark."""
    with (
        TemporaryDirectory(prefix="mesh-bench-") as directory,
        open_stack("native", Path(directory)) as stack,
    ):
        yield stack.endpoints


def prepared(endpoints: Endpoints, *, make_topics: bool = True) -> Settings:
    """The settings for a stack that has just started, after making its tables, buckets and topics.

    make_topics: False for an embedded broker, which has them from the start.
    """
    settings = Settings.model_validate(
        {
            "kafka_bootstrap": endpoints.kafka_bootstrap,
            "kafka_group_protocol": endpoints.group_protocol,
            "s3_endpoint": endpoints.s3_endpoint,
            "s3_access_key": endpoints.s3_access_key,
            "s3_secret_key": endpoints.s3_secret_key,
        }
    )
    migrate(endpoints.postgres_dsn)
    if make_topics:
        create_topics(settings)
    S3ObjectStore.from_settings(settings).ensure_buckets()
    return settings


def measure_on_kafka(
    description: str | None, arguments: Sequence[str], measure: Callable[..., None], **numbers: int
) -> None:
    """The `main` of a benchmark that needs Kafka alone. numbers: its options, with their defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bootstrap", help="a Kafka that runs already; a native stack when absent")
    for name, usual in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    options = vars(parser.parse_args(arguments))
    bootstrap = options.pop("bootstrap")
    if bootstrap:
        measure(bootstrap, **options)
        return
    with native() as endpoints:
        measure(endpoints.kafka_bootstrap, **options)


def new_topic(bootstrap: str, partitions: int = 12) -> str:
    """A fresh topic of a random name."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 3})
    for future in admin.create_topics([NewTopic(name, partitions, 1)]).values():
        future.result()
    return name


def own_process(module: str, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
    """A benchmark's module as a process of its own, wherever `mesh bench` was called.

    options: those of `subprocess.Popen`.
    """
    where = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": where}, **options)


def peer_python() -> str | None:
    """The interpreter that has the peers, or None when they were not installed."""
    chosen = Path(os.environ.get("MESH_BENCH_PYTHON", PEER_PYTHON))
    return str(chosen) if chosen.exists() else None
