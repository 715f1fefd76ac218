"""The outbox: nothing that was stored stays unannounced, and nothing that was not stored stays at all.

First on the doubles, call by call; then the service as a process, on the embedded stack whose servers are
stopped under it.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException
from minio import Minio
from PIL import Image

import waiting
from ingest_api.outbox import Outbox
from visionmesh.database import Database, migrate
from visionmesh.errors import Unavailable
from visionmesh.kafka import Delivered, Record
from visionmesh.results import ImageRow, PostgresImages
from visionmesh.stack import EmbeddedStack, open_stack
from visionmesh.stack.ports import free_port
from visionmesh.testing.kafka import MemoryBroker, MemoryPublisher
from visionmesh.testing.object_store import MemoryObjectStore
from visionmesh.testing.results import MemoryImages, MemoryResultStore
from visionmesh.topics import IMAGES

DEADLINE = 30.0

eventually = partial(waiting.eventually, seconds=DEADLINE)


class SlowPublisher(MemoryPublisher):
    """Reports on a `send` only when told to, as a producer does whose broker is away."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.waiting: list[tuple[Record, Delivered]] = []
        self.fails: Exception | None = None

    def send(self, record: Record, on_delivery: Delivered) -> None:
        if self.fails is not None:
            raise self.fails
        self.waiting.append((record, on_delivery))

    def deliver(self) -> None:
        waiting, self.waiting = self.waiting, []
        for record, on_delivery in waiting:
            super().send(record, on_delivery)

    def time_out(self) -> None:
        waiting, self.waiting = self.waiting, []
        for _, on_delivery in waiting:
            on_delivery("timed out")


@dataclass
class Mesh:
    """An outbox that is called by hand, its threads not started."""

    broker: MemoryBroker = field(default_factory=MemoryBroker)
    store: MemoryObjectStore = field(default_factory=MemoryObjectStore)
    images: MemoryImages = field(default_factory=lambda: MemoryImages(MemoryResultStore()))

    def __post_init__(self) -> None:
        self.publisher = SlowPublisher(self.broker)
        self.outbox = Outbox(self.images, self.store, self.publisher, relay_after_seconds=0, orphan_seconds=0)

    def add(self, image_id: str) -> ImageRow:
        path = f"raw-images/{image_id}.jpg"
        self.store.put(path, [b"x"], media_type="image/jpeg")
        return self.images.add_image(ImageRow(image_id, path, "00", 1, "image/jpeg")).image

    def announced(self) -> list[str]:
        return sorted(str(message.key(), "ascii") for message in self.broker.messages(IMAGES.name))


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


def test_an_acknowledged_record_leaves_the_outbox(mesh: Mesh) -> None:
    mesh.outbox.announce(mesh.add("a"))
    mesh.outbox.report()
    assert mesh.images.pending() == 1
    mesh.publisher.deliver()
    mesh.outbox.report()
    assert mesh.images.pending() == 0
    assert mesh.announced() == ["a"]


def test_the_relay_leaves_alone_what_is_on_its_way(mesh: Mesh) -> None:
    mesh.outbox.announce(mesh.add("a"))
    mesh.outbox.relay()
    mesh.publisher.deliver()
    mesh.outbox.relay()
    mesh.outbox.report()
    mesh.outbox.relay()
    assert mesh.announced() == ["a"]


def test_announced_twice_at_once_is_announced_once(mesh: Mesh) -> None:
    row = mesh.add("a")
    mesh.outbox.announce(row)
    mesh.outbox.announce(row)
    mesh.publisher.deliver()
    assert mesh.announced() == ["a"]


def test_what_timed_out_is_relayed(mesh: Mesh) -> None:
    mesh.outbox.announce(mesh.add("a"))
    mesh.publisher.time_out()
    mesh.outbox.relay()
    assert mesh.announced() == ["a"]
    assert mesh.images.pending() == 0


def test_what_found_no_room_in_the_queue_is_relayed(mesh: Mesh) -> None:
    mesh.publisher.fails = Unavailable("kafka", "the queue is full")
    mesh.outbox.announce(mesh.add("a"))
    mesh.outbox.relay()
    assert mesh.announced() == ["a"]


def test_what_could_not_be_sent_for_a_bug_is_relayed(mesh: Mesh) -> None:
    mesh.publisher.fails = KafkaException(KafkaError(KafkaError._INVALID_ARG))
    mesh.outbox.announce(mesh.add("a"))
    mesh.outbox.relay()
    assert mesh.announced() == ["a"]


def test_what_no_report_comes_on_is_relayed(mesh: Mesh) -> None:
    """As of a producer that was replaced."""
    patient, forgetful = (
        Outbox(mesh.images, mesh.store, mesh.publisher, relay_after_seconds=0, overdue_seconds=seconds)
        for seconds in (3600, 0)
    )
    row = mesh.add("a")
    for outbox in (patient, forgetful):
        outbox.announce(row)
    patient.relay()
    assert mesh.announced() == []
    forgetful.relay()
    assert mesh.announced() == ["a"]
    assert mesh.images.pending() == 0


def test_what_a_dead_process_left_is_relayed(mesh: Mesh) -> None:
    for number in range(1200):
        mesh.add(f"{number:04}")
    mesh.outbox.relay()
    assert mesh.announced() == [f"{number:04}" for number in range(1200)]
    assert mesh.images.pending() == 0
    mesh.outbox.relay()
    assert len(mesh.announced()) == 1200


def test_a_relay_that_finds_no_kafka_locks_nothing_and_says_so(mesh: Mesh) -> None:
    mesh.add("a")
    mesh.broker.available = False
    with pytest.raises(Unavailable):
        mesh.outbox.relay()
    assert mesh.outbox.status() == {"pending": 1, "kafka": "the broker is away"}
    with mesh.images.unpublished(older_than_seconds=0, limit=10) as claim:
        assert len(claim.images) == 1
    mesh.broker.available = True
    mesh.outbox.relay()
    assert mesh.outbox.status()["kafka"] == "reachable"
    assert mesh.announced() == ["a"]


def test_an_acknowledgement_outlives_an_absent_database(mesh: Mesh) -> None:
    mesh.outbox.announce(mesh.add("a"))
    mesh.publisher.deliver()
    mesh.images.available = False
    with pytest.raises(Unavailable):
        mesh.outbox.report()
    mesh.images.available = True
    mesh.outbox.report()
    assert mesh.images.pending() == 0


def test_an_orphan_is_deleted_once_the_servers_are_back(mesh: Mesh) -> None:
    mesh.store.put("raw-images/orphan.jpg", [b"x"], media_type="image/jpeg")
    mesh.outbox.discard_unless_named("orphan", "raw-images/orphan.jpg")
    for server in (mesh.images, mesh.store):
        server.available = False
        with pytest.raises(Unavailable):
            mesh.outbox.relay()
        server.available = True
    mesh.outbox.relay()
    assert mesh.store.paths() == []


def test_neither_the_store_nor_kafka_waits_for_the_other(mesh: Mesh) -> None:
    mesh.add("a")
    mesh.store.put("raw-images/orphan.jpg", [b"x"], media_type="image/jpeg")
    mesh.outbox.discard_unless_named("orphan", "raw-images/orphan.jpg")
    mesh.store.available = False
    with pytest.raises(Unavailable):
        mesh.outbox.relay()
    assert mesh.announced() == ["a"]
    mesh.store.available, mesh.broker.available = True, False
    mesh.add("b")
    with pytest.raises(Unavailable):
        mesh.outbox.relay()
    assert mesh.outbox.status() == {"pending": 1, "kafka": "the broker is away"}
    assert "raw-images/orphan.jpg" not in mesh.store.paths()


def test_an_object_whose_row_was_written_after_all_stays(mesh: Mesh) -> None:
    row = mesh.add("a")
    mesh.outbox.discard_unless_named("a", row.minio_path)
    mesh.store.put("raw-images/a2.jpg", [b"x"], media_type="image/jpeg")
    mesh.outbox.discard_unless_named("a", "raw-images/a2.jpg")
    mesh.outbox.relay()
    assert mesh.store.paths() == [row.minio_path]


def test_an_orphan_is_left_alone_while_its_row_may_still_come(mesh: Mesh) -> None:
    patient = Outbox(mesh.images, mesh.store, mesh.publisher, orphan_seconds=3600)
    mesh.store.put("raw-images/a.jpg", [b"x"], media_type="image/jpeg")
    patient.discard_unless_named("a", "raw-images/a.jpg")
    patient.relay()
    assert mesh.store.paths() == ["raw-images/a.jpg"]


def test_the_threads_do_both_and_end(mesh: Mesh) -> None:
    row = mesh.add("sent")
    mesh.add("left")
    mesh.outbox.start()
    mesh.outbox.announce(row)
    mesh.publisher.deliver()
    eventually(lambda: mesh.images.pending() == 0, "both announced")
    mesh.outbox.stop(5)
    assert mesh.announced() == ["left", "sent"]


class Service:
    """`python -m ingest_api` on an embedded stack of its own."""

    def __init__(self, stack: EmbeddedStack, directory: Path) -> None:
        self.stack = stack
        self.port = free_port()
        self.images = PostgresImages(Database(stack.endpoints.postgres_dsn))
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self.log_path = directory / "ingest.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | self.stack.endpoints.environment()
        environment |= {"MESH_HTTP_PORT": str(self.port), "MESH_UPLOAD_MAX_BYTES": str(200 * 1024 * 1024)}
        with self.log_path.open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", "ingest_api"], env=environment, stderr=log)
        eventually(self._is_up, "the service answers")
        return process

    def _is_up(self) -> bool:
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)

    def upload(self, data: bytes, **query: str) -> httpx.Response:
        return self.http.post("/upload", files={"file": ("a.jpg", data)}, params=query)

    def memory(self) -> int:
        """Bytes that the process holds, without the code of libraries, which comes in as it runs."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    def objects(self) -> dict[str, int]:
        """Size by path of every object, and of every upload that is not complete."""
        endpoints = self.stack.endpoints
        client = Minio(
            endpoints.s3_endpoint,
            access_key=endpoints.s3_access_key,
            secret_key=endpoints.s3_secret_key,
            secure=False,
        )
        if not client.bucket_exists("raw-images"):
            return {}
        unfinished = client._list_multipart_uploads("raw-images").uploads
        return {
            f"raw-images/{entry.object_name}": entry.size or 0
            for entry in client.list_objects("raw-images", recursive=True)
        } | {f"unfinished/{upload.object_name}": 0 for upload in unfinished}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("ingest")
    with open_stack("embedded", directory) as stack:
        assert isinstance(stack, EmbeddedStack)
        migrate(stack.endpoints.postgres_dsn)
        service = Service(stack, directory)
        yield service
        if service.process.poll() is None:
            assert service.stop() == 0


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (64, 48), random.Random(seed).randbytes(64 * 48 * 3)).save(file, "JPEG")
    return file.getvalue()


def announced(stack: EmbeddedStack, image_ids: Sequence[str]) -> Counter[str]:
    """How often each of these images was announced; waits until none is missing."""
    found: Counter[str] = Counter()
    consumer = Consumer(
        {
            "bootstrap.servers": stack.endpoints.kafka_bootstrap,
            "group.id": f"test-{time.monotonic_ns()}",
            "group.protocol": "consumer",
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 10,
        }
    )
    try:
        consumer.subscribe([IMAGES.name])
        deadline = time.monotonic() + DEADLINE
        while not set(image_ids) <= found.keys():
            assert time.monotonic() < deadline, f"not announced: {set(image_ids) - found.keys()}"
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                found[json.loads(message.value() or b"")["image_id"]] += 1
    finally:
        consumer.close()
    return found


def accepted(response: httpx.Response) -> str:
    assert response.status_code == 202, response.text
    return str(response.json()["image_id"])


def test_uploads_reach_all_three_servers(service: Service) -> None:
    pictures = [jpeg(number) for number in range(20)]
    responses = [service.upload(data) for data in pictures]
    image_ids = [accepted(response) for response in responses]
    assert announced(service.stack, image_ids) == Counter(image_ids)
    eventually(lambda: service.images.pending() == 0, "all marked as published")
    objects = service.objects()
    for data, response in zip(pictures, responses, strict=True):
        assert objects[response.json()["minio_path"]] == len(data)


def large_body(size: int) -> Iterator[bytes]:
    yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + jpeg(0)
    for _ in range(size // 65536):
        yield bytes(65536)
    yield b"\r\n--x--\r\n"


def upload_large(service: Service, size: int) -> httpx.Response:
    return service.http.post(
        "/upload", content=large_body(size), headers={"content-type": "multipart/form-data; boundary=x"}
    )


def test_100_mb_stream_through_little_memory(service: Service) -> None:
    for number in range(20):
        # What a process takes once: threads and connections.
        accepted(service.upload(jpeg(500 + number)))
    before = peak = service.memory()
    size = 100 * 1024 * 1024

    def watched() -> Iterator[bytes]:
        nonlocal peak
        for piece in large_body(size):
            yield piece
            peak = max(peak, service.memory())

    answers: list[httpx.Response] = []

    def is_answered() -> bool:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        answers.append(service.http.post("/upload", content=watched(), headers=headers))
        return answers[-1].status_code != 503

    # On a busy machine this S3 may put 100 MB together for longer than it is waited for.
    eventually(is_answered, "the object store keeps it", seconds=6 * DEADLINE)
    accepted(answers[-1])
    assert service.objects()[answers[-1].json()["minio_path"]] > size
    print(f"memory before {before / 1e6:.1f} MB, peak +{(peak - before) / 1e6:.1f} MB")
    assert peak - before <= 16e6


def test_a_large_upload_over_the_limit_is_taken_back(service: Service) -> None:
    before = service.objects()
    response = upload_large(service, 210 * 1024 * 1024)
    assert (response.status_code, response.json()["code"]) == (413, "too_many_bytes")
    assert service.objects() == before


def test_a_killed_service_leaves_nothing_unannounced(service: Service) -> None:
    service.stack.kafka.stop()
    image_ids = [accepted(service.upload(jpeg(number))) for number in range(100, 110)]
    service.kill()
    service.stack.kafka.start()
    service.restart()
    assert set(image_ids) <= announced(service.stack, image_ids).keys()
    eventually(lambda: service.images.pending() == 0, "all marked as published")


def test_kafka_away(service: Service) -> None:
    service.stack.kafka.stop()
    image_ids = [accepted(service.upload(jpeg(number))) for number in range(200, 220)]
    eventually(lambda: service.http.get("/ready").status_code == 200, "ready without Kafka")
    service.stack.kafka.start()
    announced(service.stack, image_ids)
    eventually(lambda: service.images.pending() == 0, "all marked as published")


def expect_unavailable(response: httpx.Response, server: str) -> None:
    assert (response.status_code, response.json()["code"]) == (503, f"{server}_unavailable")
    assert int(response.headers["retry-after"]) > 0


def not_ready(service: Service) -> set[str]:
    checks: dict[str, Any] = service.http.get("/ready").json()["checks"]
    return {name for name, check in checks.items() if not check["ready"]}


def test_the_database_away(service: Service) -> None:
    service.stack.postgres.stop()
    for number in range(300, 305):
        expect_unavailable(service.upload(jpeg(number)), "database")
    eventually(lambda: not_ready(service) == {"database"}, "readiness says which")
    service.stack.postgres.start()
    eventually(lambda: not_ready(service) == set(), "ready again")
    accepted(service.upload(jpeg(300)))

    def stored_paths() -> set[str]:
        return {row.minio_path for row in service.images.images(limit=1000)}

    eventually(lambda: set(service.objects()) <= stored_paths(), "no object without a row stays")


def test_the_object_store_away(service: Service) -> None:
    rows = len(service.images.images(limit=1000))
    service.stack.s3.stop()
    expect_unavailable(service.upload(jpeg(400)), "object_store")
    expect_unavailable(upload_large(service, 6 * 1024 * 1024), "object_store")
    eventually(lambda: not_ready(service) == {"object_store"}, "readiness says which")
    assert len(service.images.images(limit=1000)) == rows
    service.stack.s3.start()
    # This S3 came back without its buckets.
    eventually(lambda: service.upload(jpeg(400)).status_code == 202, "uploads are taken again")
