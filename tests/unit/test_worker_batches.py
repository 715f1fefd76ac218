"""How much of its topic a worker holds: batches and what waits for them are bounded in bytes as well."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import msgspec
import pytest
from prometheus_client import REGISTRY

import waiting
from visionmesh.contracts import ImageUploaded
from visionmesh.kafka import Record
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.testing.results import MemoryResultStore
from visionmesh.topics import Topic
from visionmesh.worker.loop import Worker
from visionmesh.worker.step import Done, Verdict

DEADLINE = 20.0
MIB = 1024 * 1024

eventually = partial(waiting.eventually, seconds=DEADLINE)

Step = Callable[[Sequence[ImageUploaded]], list[Verdict]]


class Mesh:
    """A topic with messages of a size, and one worker."""

    def __init__(self, messages: int, size: int) -> None:
        self.broker = MemoryBroker()
        self.name = f"sized-{uuid.uuid4().hex[:8]}"
        self.topic = Topic(f"in-{self.name}", ImageUploaded, "image_id", "", (self.name,))
        self.put(messages, size)

    def put(self, messages: int, size: int, key: bytes = b"one") -> None:
        value = msgspec.json.encode(ImageUploaded("one", "b/" + "x" * (size - 40)))
        assert abs(len(value) - size) < 20
        for _ in range(messages):
            self.broker.append(Record(self.topic.name, key, value))

    @contextmanager
    def worker(self, step: Step, max_batch: int) -> Iterator[Worker[ImageUploaded]]:
        worker = Worker(
            name=self.name,
            topic=self.topic,
            step=step,
            consumer=self.broker.consumer(self.name),
            publisher=self.broker.publisher(),
            store=MemoryResultStore(),
            max_batch=max_batch,
        )
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        try:
            yield worker
        finally:
            worker.stop()
            thread.join(DEADLINE)

    def lag(self) -> int:
        return self.broker.lag(self.topic.name, self.name)

    def in_flight(self) -> float:
        return REGISTRY.get_sample_value("mesh_messages_in_flight", {"worker": self.name}) or 0.0


@pytest.mark.parametrize(
    ("size", "batches"),
    [(MIB - 1000, [4, 4, 2]), (3 * MIB, [1] * 10), (5 * MIB, [1] * 10), (1000, [10])],
)
def test_a_batch_is_as_large_as_its_bytes_allow_and_has_one_message_at_least(
    size: int, batches: list[int]
) -> None:
    mesh = Mesh(10, size)
    seen: list[int] = []

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        seen.append(len(batch))
        return [Done()] * len(batch)

    with mesh.worker(step, max_batch=10):
        eventually(lambda: mesh.lag() == 0, "an end of all messages")
    assert seen == batches


@contextmanager
def held() -> Iterator[tuple[Mesh, Worker[ImageUploaded], threading.Event]]:
    """A worker with sixteen large messages, the first of which are in a step until the event is set."""
    mesh = Mesh(16, MIB - 1000)
    go_on = threading.Event()

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        go_on.wait(DEADLINE)
        return [Done()] * len(batch)

    with mesh.worker(step, max_batch=16) as worker:
        eventually(lambda: mesh.in_flight() == 16, "the first poll")
        yield mesh, worker, go_on


def test_of_a_partition_that_had_delivered_nothing_one_message_comes_while_a_slow_step_runs() -> None:
    with held() as (mesh, worker, go_on):
        eventually(lambda: worker._paused, "the partition paused")
        for key in (b"two", b"four"):
            mesh.put(8, MIB - 1000, key)
        eventually(lambda: len(worker._paused) == 3, "the others paused")
        assert mesh.in_flight() == 18
        go_on.set()
        eventually(lambda: mesh.lag() == 0, "an end of all messages, after a resume")


def test_nothing_more_is_polled_while_large_messages_wait_for_a_slow_step() -> None:
    with held() as (mesh, worker, go_on):
        mesh.put(64, MIB - 1000)
        eventually(lambda: worker._paused, "the partitions are paused")
        assert mesh.in_flight() == 16, "four under way, and twelve that wait are more than two batches"
        go_on.set()
        eventually(lambda: mesh.lag() == 0, "an end of all messages, after a resume")
