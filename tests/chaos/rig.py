"""A whole mesh whose processes and servers can be killed."""

from __future__ import annotations

import io
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
from PIL import Image

from running_mesh import PATIENCE
from visionmesh.database import migrate
from visionmesh.kafka import create_topics, partition_offsets
from visionmesh.mesh import Mesh, Replica, hold
from visionmesh.object_store import S3ObjectStore
from visionmesh.settings import Settings
from visionmesh.stack import Stack, StackKind, open_stack
from visionmesh.topics import FEATURES, IMAGES, TOPICS, AnyTopic, dead_letter_topics, readers

# How long everything may take to come home after the last blow. Not a measurement: a hang must fail.
HOME_SECONDS = 240.0


def size(variable: str, usual: int) -> int:
    """How hard this run strikes; the figures in the README are from larger runs than CI's."""
    return int(os.environ.get(variable, usual))


def picture(number: int) -> bytes:
    """A small JPEG, different for each number."""
    pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass
class Rig:
    """The running mesh with what the tests do to it and read from it. directory: the mesh's own."""

    stack: Stack
    mesh: Mesh
    settings: Settings
    directory: Path
    _stop: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.mesh.url_of("ingest-api"), timeout=60)
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        self.mesh.keep(self._stop.is_set)
        # Linux takes the end of the thread that started a process for the end of its parent, and the
        # replicas are to be stopped by the mesh.
        self._ended.wait()

    def leave(self) -> None:
        """No replica is restarted any more; the mesh may stop them."""
        self._stop.set()

    def close(self) -> None:
        self._ended.set()
        self._keeper.join()
        self.client.close()

    def upload(self, image_id: str, data: bytes) -> httpx.Response:
        return self.client.post(
            "/upload", data={"image_id": image_id}, files={"file": ("p.jpg", data, "image/jpeg")}
        )

    def upload_all(self, prefix: str, count: int, pause: float = 0.0, *, first: int = 0) -> list[int]:
        """The status of each upload, made by four clients; `pause` seconds between one client's.

        first: the number of the first picture.
        """

        def one(number: int) -> int:
            status = self.upload(f"{prefix}-{number}", picture(number)).status_code
            time.sleep(pause)
            return status

        with ThreadPoolExecutor(4) as clients:
            return list(clients.map(one, range(first, first + count)))

    def query(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.stack.endpoints.postgres_dsn, connect_timeout=5) as connection:
            return connection.execute(statement, arguments).fetchall()  # type: ignore[arg-type]

    def predicted(self, prefix: str) -> int:
        """Pictures of `prefix` that have all three predictions."""
        (row,) = self.query(
            "SELECT count(*) FROM (SELECT image_id FROM predictions WHERE image_id LIKE %s "
            "GROUP BY image_id HAVING count(*) = 3) AS complete",
            f"{prefix}-%",
        )
        return int(row[0])

    def wait_home(self, prefix: str, count: int) -> None:
        """Until every picture has its predictions and every group has committed everything."""
        eventually(lambda: self.predicted(prefix) == count, f"{count} pictures predicted")
        self.wait_committed()

    def wait_committed(self) -> None:
        """Until every group has committed everything; else says which has not and what its replicas wrote."""
        behind: dict[str, int] = {}

        def committed() -> bool:
            lags = self.lags((IMAGES, FEATURES))
            behind.clear()
            behind.update({group: lag for group, lag in lags.items() if lag})
            return not behind

        try:
            eventually(committed, "all offsets committed")
        except AssertionError as error:
            logs = [
                f"{path.name}:\n" + "\n".join(path.read_text().splitlines()[-20:])
                for path in sorted((self.directory / "logs").glob("*.log"))
                if path.name.rpartition("-")[0] in behind
            ]
            raise AssertionError("\n".join([f"{error}; behind: {behind}", *logs])) from error

    def decoded(self, prefix: str) -> int:
        """Pictures of `prefix` whose codes were read, or that have none."""
        (row,) = self.query(
            "SELECT count(*) FROM task_outcomes "
            "WHERE image_id LIKE %s AND worker = 'qr-decoder' AND state = 'done'",
            f"{prefix}-%",
        )
        return int(row[0])

    def replicas_of(self, *services: str) -> list[Replica]:
        return [replica for replica in self.mesh.replicas if replica.service.name in services]

    def kill_one_of(self, service: str, chance: random.Random) -> Replica | None:
        """SIGKILL to one of a service's replicas, None when none of them runs. Returns when it is known to be
        dead, so that nobody kills it twice.
        """
        alive = [replica for replica in self.replicas_of(service) if replica.pid is not None]
        if not alive:
            return None
        victim = chance.choice(alive)
        pid, restarts = victim.pid, victim.restarts
        if pid is None:
            return None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: victim.restarts > restarts, f"the end of {victim.name}")
        return victim

    def lags(self, topics: Collection[AnyTopic] = TOPICS) -> dict[str, int]:
        """Messages that each running group has not finished."""
        running = {replica.service.name for replica in self.mesh.replicas}
        return {
            group: sum(place.lag for place in partition_offsets(self.settings, topic.name, group))
            for topic, group in readers()
            if topic in topics and group in running
        }

    def dead_letters(self) -> int:
        return sum(
            place.high - place.low
            for topic in dead_letter_topics()
            for place in partition_offsets(self.settings, topic, "nobody")
        )

    def check_exact(self, prefix: str, count: int) -> None:
        """One features row, three predictions, five outcomes `done` for each picture; nothing else."""
        like = f"{prefix}-%"
        for table, rows in (("images", 1), ("image_features", 1), ("predictions", 3), ("task_outcomes", 5)):
            found = self.query(
                f"SELECT count(*), count(DISTINCT image_id) FROM {table} WHERE image_id LIKE %s", like
            )
            assert found == [(rows * count, count)], table
        assert self.query("SELECT DISTINCT state FROM task_outcomes WHERE image_id LIKE %s", like) == [
            ("done",)
        ]
        assert self.query(
            "SELECT count(*) FROM images WHERE image_id LIKE %s AND published_at IS NULL", like
        ) == [(0,)]


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """As `mesh up` does it, so that the other commands find the mesh that runs there."""
    lock = hold(directory)
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def open_rig(
    directory: Path,
    kind: StackKind,
    *,
    scale: Mapping[str, int],
    settings: Mapping[str, str],
) -> Iterator[Rig]:
    """A mesh on a stack of its own.

    scale: replicas of services, else one of each; of ocr-worker none, for reading text takes a hundred times
    as long as anything else, and none of what is about sensors. settings: variables of the services beyond
    those that connect them.
    """
    with open_stack(kind, directory / "stack") as stack, held(directory):
        endpoints = stack.endpoints
        connected = Settings(
            kafka_bootstrap=endpoints.kafka_bootstrap,
            kafka_group_protocol=endpoints.group_protocol,
            s3_endpoint=endpoints.s3_endpoint,
            s3_access_key=endpoints.s3_access_key,  # type: ignore[arg-type]
            s3_secret_key=endpoints.s3_secret_key,  # type: ignore[arg-type]
        )
        migrate(endpoints.postgres_dsn)
        if kind == "native":
            create_topics(connected)
        S3ObjectStore.from_settings(connected).ensure_buckets()
        # Text and sensors have tests of their own.
        replicas = {"ocr-worker": 0, "edge-publisher": 0, "sensor-sink": 0, **scale}
        mesh = Mesh(directory, scale=replicas, ports="free")
        # Nor is a busy machine a cache that is away.
        patient = PATIENCE | {
            "MESH_CACHE_URL": f"{endpoints.cache_url}?socket_timeout=10&socket_connect_timeout=10"
        }
        with mesh.started({**endpoints.environment(), **patient, **settings}):
            mesh.wait_until_ready(120)
            rig = Rig(stack, mesh, connected, directory)
            yield rig
            rig.leave()
        rig.close()


def eventually(holds: Callable[[], bool], what: str, seconds: float = HOME_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except Exception:  # the servers are being killed; what counts is the end
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.25)
