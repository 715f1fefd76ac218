"""A mesh in a process of its own, for the tests that see it as its users do."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import httpx
import psutil
from confluent_kafka import Producer
from minio import Minio

import waiting
from visionmesh.settings import Settings
from visionmesh.worker.dead_letters import DeadLetter, read_dead_letters

# How long anything may take on a busy machine; nothing is asserted about how long it did take.
DEADLINE_SECONDS = 180.0

# A machine that stalls for seconds while a child has a picture is no fault of the picture, and every code is
# read. What is done in time is done no later.
PATIENCE = {"MESH_ISOLATED_DEADLINE_SECONDS": "60", "MESH_QR_BUDGET_MS": "60000"}

T = TypeVar("T")


def until(question: Callable[[], T | None], what: str) -> T:
    """The first answer of `question` that is not None."""
    return waiting.answer_of(question, what, seconds=DEADLINE_SECONDS, pause=0.02)


@dataclass(frozen=True)
class RunningMesh:
    """A mesh in a process of its own, as `running.json` describes it."""

    process: subprocess.Popen[bytes]
    directory: Path
    environment: dict[str, str]
    http: httpx.Client

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.directory / "running.json").read_text())
        return state

    def settings(self) -> Settings:
        with mock.patch.dict(os.environ, self.environment):
            return Settings()

    def url_of(self, service: str) -> str:
        return str(next(one["url"] for one in self.state()["replicas"] if one["service"] == service))

    def publish(self, topic: str, key: str, value: bytes) -> None:
        """As a plain producer would, that knows nothing of the mesh."""
        producer = Producer({"bootstrap.servers": self.environment["MESH_KAFKA_BOOTSTRAP"]})
        producer.produce(topic, value, key)
        assert producer.flush(30) == 0

    def store(self, key: str, data: bytes) -> str:
        client = Minio(
            self.environment["MESH_S3_ENDPOINT"],
            self.environment["MESH_S3_ACCESS_KEY"],
            self.environment["MESH_S3_SECRET_KEY"],
            secure=False,
        )
        client.put_object("raw-images", key, io.BytesIO(data), len(data))
        return f"raw-images/{key}"

    def outcome(self, image_id: str) -> dict[str, Any]:
        """`GET /predictions/{image_id}` once the work has come to an end."""

        def ended() -> dict[str, Any] | None:
            answer = self.http.get(f"/predictions/{image_id}")
            found: dict[str, Any] = answer.json()
            return found if answer.status_code == 200 and found["status"] != "processing" else None

        return until(ended, f"end of {image_id}")

    def result_of(self, worker: str, image_id: str) -> dict[str, Any]:
        """`GET /results/{image_id}` once this worker has looked at it."""

        def ended() -> dict[str, Any] | None:
            answer = self.http.get(f"/results/{image_id}")
            if answer.status_code != 200:
                return None
            found: dict[str, Any] = answer.json()
            states = {one["worker"]: one["state"] for one in found["outcomes"]}
            return found if states.get(worker, "running") != "running" else None

        return until(ended, f"end of {worker} with {image_id}")

    def dead_letter(self, topic: str, group: str, key: str) -> DeadLetter:
        def found() -> DeadLetter | None:
            letters = read_dead_letters(self.settings(), f"{topic}.{group}.dlq")
            return next((letter for letter in letters if letter.key == key.encode()), None)

        return until(found, f"dead letter of {key}")


@contextmanager
def running_mesh(
    directory: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[RunningMesh]:
    """`mesh up` on free ports and on the stack that MESH_TEST_STACK names."""
    stack = os.environ.get("MESH_TEST_STACK", "embedded")
    command = ["up", "--ports", "free", "--stack", stack, "--directory", str(directory), *options]
    with (directory / "mesh.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "visionmesh.cli", *command],
            env=os.environ | PATIENCE | dict(environment or {}),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:

        def up() -> bool | None:
            text = (directory / "mesh.log").read_text()
            assert process.poll() is None, text
            return True if "visionmesh is up" in text else None

        until(up, "mesh")
        state = json.loads((directory / "running.json").read_text())
        url = next(one["url"] for one in state["replicas"] if one["service"] == "ingest-api")
        # Whoever calls at once with others waits for their work as well.
        with httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
            yield RunningMesh(process, directory, state["environment"], client)
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE_SECONDS)
        _, left = psutil.wait_procs(family, timeout=10)
        for one in left:
            one.kill()
        assert not left, "mesh up left processes behind"
        assert not (directory / "running.json").exists()
