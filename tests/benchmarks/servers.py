"""The servers a benchmark runs on: its own native stack, or a Kafka that is already there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from confluent_kafka.admin import AdminClient, NewTopic

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


def new_topic(bootstrap: str, partitions: int = 12) -> str:
    """A fresh topic of a random name."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 3})
    for future in admin.create_topics([NewTopic(name, partitions, 1)]).values():
        future.result()
    return name


def peer_python() -> str | None:
    """The interpreter that has the peers, or None when they were not installed."""
    chosen = Path(os.environ.get("MESH_BENCH_PYTHON", PEER_PYTHON))
    return str(chosen) if chosen.exists() else None
