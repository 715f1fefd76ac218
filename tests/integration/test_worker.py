"""The worker loop, on the in-memory Kafka and on the stack's: one suite for both."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from structlog.testing import capture_logs

import waiting
from visionmesh.contracts import ImageFeatures, ImageUploaded
from visionmesh.errors import Rejected, Unavailable
from visionmesh.kafka import (
    GroupConsumer,
    KafkaPublisher,
    Publisher,
    Record,
    client_config,
    consumer_config,
    open_consumer,
    partition_offsets,
)
from visionmesh.observability import tracing
from visionmesh.results import FeaturesRow
from visionmesh.settings import Settings
from visionmesh.stack import Stack
from visionmesh.testing.kafka import MemoryBroker, MemoryConsumer, MemoryMessage
from visionmesh.testing.results import MemoryResultStore
from visionmesh.topics import Topic
from visionmesh.worker import loop
from visionmesh.worker.dead_letters import (
    REPLAYED_FOR,
    Failure,
    dead_letter,
    read_dead_letters,
    replay,
)
from visionmesh.worker.loop import Worker
from visionmesh.worker.retry import Stopped
from visionmesh.worker.step import Done, Outgoing, Skipped, Step, Verdict

DEADLINE = 90.0
TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

eventually = partial(waiting.eventually, seconds=DEADLINE)


class Cluster(Protocol):
    """What the suite needs of a Kafka."""

    publisher: Publisher

    def create(self, *topics: str) -> None: ...
    def consumer(self, group: str) -> GroupConsumer: ...
    def records(self, topic: str) -> list[Record]: ...
    def lag(self, topic: str, group: str) -> int: ...


class MemoryCluster:
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.publisher = self.broker.publisher()

    def create(self, *topics: str) -> None:
        """Topics come into being at first use."""

    def consumer(self, group: str) -> GroupConsumer:
        return self.broker.consumer(group)

    def records(self, topic: str) -> list[Record]:
        return [
            Record(topic, m.key(), m.value(), tuple(m.headers() or ())) for m in self.broker.messages(topic)
        ]

    def lag(self, topic: str, group: str) -> int:
        return self.broker.lag(topic, group)


class RealCluster:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.publisher = KafkaPublisher(settings)

    def create(self, *topics: str) -> None:
        admin = AdminClient(client_config(self.settings))
        if makes_topics_by_itself(self.settings):
            for name in topics:
                admin.list_topics(name, timeout=10)
        else:
            for future in admin.create_topics([NewTopic(name, 12, 1) for name in topics]).values():
                future.result()

    def consumer(self, group: str) -> GroupConsumer:
        return open_consumer(self.settings, group)

    def records(self, topic: str) -> list[Record]:
        consumer = Consumer(
            client_config(self.settings)
            | {"group.id": uuid.uuid4().hex, "enable.auto.commit": False, "fetch.wait.max.ms": 10}
        )
        try:
            partitions = []
            found: list[Record] = []
            remaining = 0
            for place in partition_offsets(self.settings, topic, uuid.uuid4().hex):
                remaining += place.high - place.low
                partitions.append((place.partition, place.low))
            consumer.assign([TopicPartition(topic, n, low) for n, low in partitions])
            while len(found) < remaining:
                message = consumer.poll(10)
                assert message is not None, f"{topic} could not be read back"
                assert message.error() is None, message.error()
                found.append(Record(topic, message.key(), message.value(), tuple(message.headers() or ())))
            return found
        finally:
            consumer.close()

    def lag(self, topic: str, group: str) -> int:
        return sum(place.lag for place in partition_offsets(self.settings, topic, group))


def makes_topics_by_itself(settings: Settings) -> bool:
    """The cluster inside librdkafka makes topics when they are asked for; it has no administration."""
    return settings.kafka_fetch_wait_max_ms == 10


@pytest.fixture(scope="module")
def settings(session_stack: Stack) -> Settings:
    endpoints = session_stack.endpoints
    return Settings(
        kafka_bootstrap=endpoints.kafka_bootstrap,
        kafka_group_protocol=endpoints.group_protocol,
        kafka_fetch_wait_max_ms=endpoints.kafka_fetch_wait_max_ms or 100,
    )


@pytest.fixture(params=["memory", pytest.param("stack", marks=pytest.mark.servers)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if request.param == "memory":
        yield MemoryCluster()
    else:
        real = RealCluster(request.getfixturevalue("settings"))
        yield real
        real.publisher.close()


@dataclass
class Mesh:
    """A topic, where results go, and the workers of one group."""

    cluster: Cluster
    name: str = field(default_factory=lambda: f"worker-{uuid.uuid4().hex[:8]}")
    store: MemoryResultStore = field(default_factory=MemoryResultStore)
    threads: list[tuple[Worker[Any], threading.Thread]] = field(default_factory=list)
    # Of another group, which reads the same topic.
    beside: Mesh | None = None

    def __post_init__(self) -> None:
        own = Topic(f"in-{self.name}", ImageUploaded, "image_id", "", (self.name,))
        self.topic = own if self.beside is None else self.beside.topic
        self.out = Topic(f"out-{self.name}", ImageFeatures, "image_id", "", ())
        self.dlq = self.topic.dead_letters(self.name)
        self.cluster.create(*([own.name] if self.beside is None else []), self.out.name, self.dlq)

    def put(self, *ids: str) -> None:
        self.put_raw(
            *((i.encode(), msgspec.json.encode(ImageUploaded(image_id=i, minio_path=f"b/{i}"))) for i in ids)
        )

    def put_raw(self, *records: tuple[bytes | None, bytes | None]) -> None:
        assert not self.cluster.publisher.publish(
            [Record(self.topic.name, key, value, (("traceparent", TRACE),)) for key, value in records]
        )

    def worker(self, step: Step[ImageUploaded], **options: Any) -> Worker[ImageUploaded]:
        return Worker(
            name=self.name,
            topic=self.topic,
            step=step,
            consumer=options.pop("consumer", None) or self.cluster.consumer(self.name),
            publisher=options.pop("publisher", self.cluster.publisher),
            store=self.store,
            **options,
        )

    def start(self, step: Step[ImageUploaded], **options: Any) -> Worker[ImageUploaded]:
        worker = self.worker(step, **options)
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        self.threads.append((worker, thread))
        return worker

    def stop(self) -> None:
        for worker, _ in self.threads:
            worker.stop()
        for _, thread in self.threads:
            thread.join(15)
            assert not thread.is_alive(), "the worker did not stop"
        self.threads.clear()

    def finished(self, count: int) -> bool:
        return (
            len(self.states()) == count
            and "running" not in self.states().values()
            and self.cluster.lag(self.topic.name, self.name) == 0
        )

    def states(self) -> dict[str, str]:
        return {o.image_id: o.state for o in self.store.outcomes() if o.worker == self.name}

    def letters(self) -> list[dict[str, str]]:
        return [
            {name: str(value, "utf-8") for name, value in record.headers}
            for record in self.cluster.records(self.dlq)
        ]


@pytest.fixture
def mesh(cluster: Cluster) -> Iterator[Mesh]:
    mesh = Mesh(cluster)
    yield mesh
    mesh.stop()


def describe(mesh: Mesh, value: ImageUploaded) -> Done:
    features = (float(len(value.image_id)),) * 20
    return Done(
        rows=(FeaturesRow(value.image_id, features, "m@1"),),
        messages=(Outgoing(mesh.out, ImageFeatures(value.image_id, features, 20)),),
    )


class Held:
    """A step that says when it was entered, and describes pictures once it may go on."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, batch: Sequence[ImageUploaded]) -> list[Verdict]:
        self.entered.set()
        self.go_on.wait(DEADLINE)
        return [describe(self._mesh, value) for value in batch]


def put_with_one_key(mesh: Mesh, *image_ids: str, key: bytes = b"key") -> None:
    mesh.put_raw(
        *((key, msgspec.json.encode(ImageUploaded(image_id=i, minio_path="b/x"))) for i in image_ids)
    )


def ids(count: int) -> list[str]:
    return [f"image-{number}" for number in range(count)]


def test_stores_publishes_and_commits_everything(mesh: Mesh) -> None:
    mesh.put(*ids(300))
    mesh.start(lambda batch: [describe(mesh, value) for value in batch], max_batch=16)
    eventually(lambda: mesh.finished(300), "300 messages finished and committed")
    assert {row.image_id for row in mesh.store.features()} == set(ids(300))
    published = mesh.cluster.records(mesh.out.name)
    assert Counter(record.key for record in published) == Counter(i.encode() for i in ids(300))
    traces = [tracing.from_headers(record.headers) for record in published]  # type: ignore[arg-type]
    assert {trace.trace_id for trace in traces if trace} == {TRACE.decode().split("-")[1]}
    assert len({trace.span_id for trace in traces if trace}) == 300, "a span each"
    assert not mesh.cluster.records(mesh.dlq)


def test_processing_everything_again_changes_nothing(mesh: Mesh) -> None:
    mesh.put(*ids(40))
    worker = lambda batch: [describe(mesh, value) for value in batch]  # noqa: E731
    mesh.start(worker)
    eventually(lambda: mesh.finished(40), "first pass")
    before = sorted(map(repr, mesh.store.features()))
    mesh.put(*ids(40))
    eventually(lambda: mesh.cluster.lag(mesh.topic.name, mesh.name) == 0, "second pass")
    assert sorted(map(repr, mesh.store.features())) == before
    assert set(mesh.states().values()) == {"done"}


def test_a_message_that_cannot_be_decoded_is_a_dead_letter_with_its_reason(mesh: Mesh) -> None:
    mesh.put_raw(
        (b"a", b"{not json"),
        (b"b", b'{"image_id": "b", "minio_path": 7}'),
        (None, None),
        (b"c", b'{"image_id": "../x", "minio_path": "b/x"}'),
        (b"d", b"\xff\xfe"),
        (b"e", b'{"image_id":' * 10_000),
    )
    mesh.put("good")
    mesh.start(lambda batch: [describe(mesh, value) for value in batch])
    eventually(lambda: mesh.cluster.lag(mesh.topic.name, mesh.name) == 0, "all committed")
    letters = mesh.letters()
    assert len(letters) == 6
    assert {letter["x-error-code"] for letter in letters} == {"invalid_message"}
    assert {letter["x-original-topic"] for letter in letters} == {mesh.topic.name}
    assert all(letter["x-error"] and letter["x-original-offset"].isdigit() for letter in letters)
    assert {r.value for r in mesh.cluster.records(mesh.dlq)} >= {b"{not json", b"\xff\xfe"}
    # What is no JSON at all is told by its key; an image_id that is none has nobody to tell.
    assert mesh.states() == {"good": "done"} | dict.fromkeys("abcde", "failed")


def test_verdicts_end_in_their_states(mesh: Mesh) -> None:
    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        return [
            Skipped("not mine")
            if value.image_id == "skip"
            else Rejected("empty_file", "the picture has no bytes\0")
            if value.image_id == "bad"
            else describe(mesh, value)
            for value in batch
        ]

    mesh.put("skip", "bad", "good")
    mesh.start(step)
    eventually(lambda: mesh.finished(3), "three outcomes")
    assert mesh.states() == {"skip": "skipped", "bad": "failed", "good": "done"}
    (letter,) = mesh.letters()
    assert (letter["x-error-code"], letter["x-attempts"]) == ("empty_file", "1")
    assert "x-traceback" not in letter


def test_a_picture_that_was_deleted_meanwhile_is_no_failure(mesh: Mesh) -> None:
    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        return [Rejected("object_not_found", f"{value.minio_path} does not exist") for value in batch]

    mesh.store.delete(["deleted"])
    mesh.put("deleted", "lost")
    mesh.start(step)
    eventually(lambda: mesh.finished(1), "one outcome")
    assert mesh.states() == {"lost": "failed"}
    assert len(mesh.letters()) == 1


def test_a_bug_costs_only_the_guilty_message(mesh: Mesh) -> None:
    calls: list[int] = []

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        calls.append(len(batch))
        if any(value.image_id == "image-13" for value in batch):
            raise ZeroDivisionError("thirteen")
        return [describe(mesh, value) for value in batch]

    mesh.put(*ids(64))
    mesh.start(step)
    eventually(lambda: mesh.finished(64), "64 outcomes")
    assert [i for i, state in mesh.states().items() if state == "failed"] == ["image-13"]
    (letter,) = mesh.letters()
    assert letter["x-error-code"] == "bug"
    assert letter["x-attempts"] == "3"
    assert "ZeroDivisionError: thirteen" in letter["x-traceback"]


def test_a_bug_that_quotes_all_it_met_is_told_in_short(mesh: Mesh) -> None:
    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        raise ValueError("met " + "x" * 1_000_000)

    mesh.put("only")
    mesh.start(step)
    eventually(lambda: mesh.finished(1), "its outcome")
    (outcome,) = mesh.store.outcomes()
    assert len(outcome.error or "") < 3_000
    (letter,) = mesh.letters()
    assert letter["x-error"].startswith("ValueError: met x")


def test_a_bug_that_passes_costs_nothing(mesh: Mesh) -> None:
    failures = iter([True, True])

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        if next(failures, False):
            raise RuntimeError("once")
        return [describe(mesh, value) for value in batch]

    mesh.put("only")
    mesh.start(step)
    eventually(lambda: mesh.finished(1), "the message")
    assert mesh.states() == {"only": "done"}
    assert not mesh.cluster.records(mesh.dlq)


def test_a_server_that_is_away_is_waited_for_and_shown(mesh: Mesh) -> None:
    away = threading.Event()
    away.set()

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        if away.is_set():
            raise Unavailable("object_store", "connection refused")
        return [describe(mesh, value) for value in batch]

    mesh.put(*ids(5))
    worker = mesh.start(step, record_attempts=True)
    eventually(lambda: worker.status()["waiting_for"] is not None, "the outage shown")
    assert worker.status()["waiting_for"] == {"server": "object_store", "reason": "connection refused"}
    assert not worker.status()["ready"]
    away.clear()
    eventually(lambda: mesh.finished(5), "recovery")
    assert set(mesh.states().values()) == {"done"}
    assert worker.status()["ready"]
    assert not mesh.cluster.records(mesh.dlq)


def test_a_database_that_is_away_loses_nothing(mesh: Mesh) -> None:
    mesh.store.available = False
    mesh.put(*ids(5))
    worker = mesh.start(lambda batch: [describe(mesh, value) for value in batch])
    eventually(lambda: worker.status()["waiting_for"] is not None, "the outage shown")
    assert mesh.cluster.lag(mesh.topic.name, mesh.name) == 5
    mesh.store.available = True
    eventually(lambda: mesh.finished(5), "recovery")
    assert not mesh.cluster.records(mesh.dlq)


def test_stopping_during_an_outage_gives_the_work_back(mesh: Mesh) -> None:
    def unavailable(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        raise Unavailable("object_store", "away")

    mesh.put(*ids(5))
    for _ in range(4):  # more restarts than there are attempts
        worker = mesh.start(unavailable, record_attempts=True)
        eventually(lambda w=worker: w.status()["waiting_for"] is not None, "the outage shown")  # type: ignore[misc]
        mesh.stop()
    assert mesh.cluster.lag(mesh.topic.name, mesh.name) == 5
    mesh.start(lambda batch: [describe(mesh, value) for value in batch], record_attempts=True)
    eventually(lambda: mesh.finished(5), "the next worker finished")
    assert set(mesh.states().values()) == {"done"}


def test_a_message_that_kills_its_worker_is_given_up_and_its_neighbours_are_not(mesh: Mesh) -> None:
    """The attempts of three dead processes are written down; only the guilty one was ever alone."""
    mesh.put(*ids(8))
    mesh.store.begin(mesh.name, ids(8))  # the first death had the whole batch in flight
    mesh.store.begin(mesh.name, ["image-3"])
    mesh.store.begin(mesh.name, ["image-3"])
    batches: list[list[str]] = []

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        batches.append([value.image_id for value in batch])
        return [describe(mesh, value) for value in batch]

    mesh.start(step, record_attempts=True)
    eventually(lambda: mesh.finished(8), "8 outcomes")
    assert all(len(batch) == 1 for batch in batches), "a suspect must run alone"
    assert [i for i, state in mesh.states().items() if state == "failed"] == ["image-3"]
    (letter,) = mesh.letters()
    assert (letter["x-error-code"], letter["x-attempts"]) == ("worker_died", "3")


def test_a_result_that_is_too_large_for_its_topic_fails_alone(mesh: Mesh) -> None:
    class Refusing:
        """The broker's answer to a record over the limit, which the mock cluster does not know."""

        def publish(self, records: Sequence[Record], give_up: Any = None) -> dict[int, str]:
            large = {i: "Broker: Message size too large" for i, r in enumerate(records) if r.key == b"large"}
            large = {i: reason for i, reason in large.items() if records[i].topic == mesh.out.name}
            mesh.cluster.publisher.publish([r for i, r in enumerate(records) if i not in large])
            return large

    mesh.put("small", "large")
    mesh.start(lambda batch: [describe(mesh, value) for value in batch], publisher=Refusing())
    eventually(
        lambda: (
            mesh.states() == {"small": "done", "large": "failed"}
            and mesh.cluster.lag(mesh.topic.name, mesh.name) == 0
        ),
        "one failed, one done",
    )
    (letter,) = mesh.letters()
    assert letter["x-error-code"] == "cannot_publish"


def test_two_replicas_share_the_work_and_a_stopped_one_hands_its_share_over(mesh: Mesh) -> None:
    seen: dict[int, set[str]] = {0: set(), 1: set()}

    def step_of(replica: int) -> Step[ImageUploaded]:
        def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
            seen[replica] |= {value.image_id for value in batch}
            return [describe(mesh, value) for value in batch]

        return step

    first, second = mesh.start(step_of(0)), mesh.start(step_of(1))
    eventually(
        lambda: len(first.status()["partitions"]) == len(second.status()["partitions"]) > 0,
        "both have partitions",
    )
    mesh.put(*ids(100))
    eventually(lambda: mesh.finished(100), "100 done")
    assert seen[0]
    assert seen[1]
    assert not seen[0] & seen[1]
    first.stop()
    mesh.put(*(f"later-{number}" for number in range(100)))
    eventually(lambda: mesh.finished(200), "200 done")
    assert len(mesh.cluster.records(mesh.out.name)) == 200


def test_a_slow_step_keeps_its_partitions_and_order(mesh: Mesh) -> None:
    """Longer than the grace, so that partitions are paused, buffered and resumed."""
    order: list[str] = []

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        if not order:
            threading.Event().wait(1.5)
        order.extend(value.image_id for value in batch)
        return [describe(mesh, value) for value in batch]

    put_with_one_key(mesh, *ids(60))
    mesh.start(step, max_batch=4)
    eventually(lambda: mesh.finished(60), "60 done")
    assert order == ids(60), "one partition, one member: each message once, in order"


class Watched:
    """A consumer that notes which partitions were paused."""

    def __init__(self, consumer: GroupConsumer) -> None:
        self._consumer = consumer
        self.paused: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused |= {each.partition for each in partitions}
        self._consumer.pause(partitions)


def test_a_partition_is_paused_when_it_has_delivered_and_not_before(mesh: Mesh) -> None:
    """The client may lose the start of one that is paused too early, and never read it."""
    step = Held(mesh)

    consumer = Watched(mesh.cluster.consumer(mesh.name))
    mesh.start(step, consumer=consumer, max_batch=2)
    put_with_one_key(mesh, "first")
    assert step.entered.wait(DEADLINE)
    put_with_one_key(mesh, "two", "batches", "that", "wait")
    eventually(lambda: len(consumer.paused) == 1, "the one that delivered is paused")
    put_with_one_key(mesh, *(f"late-{number}" for number in range(5)), key=b"another")
    eventually(lambda: len(consumer.paused) == 2, "so is the other one, as soon as it delivers")
    step.go_on.set()
    eventually(lambda: mesh.finished(10), "all done")


def test_work_of_a_lost_partition_is_not_committed(mesh: Mesh) -> None:
    """A member that is declared dead in the middle of a step must not move the new owner's offsets."""
    if not isinstance(mesh.cluster, MemoryCluster):
        pytest.skip("only the in-memory broker can bury a member at a chosen moment")
    broker = mesh.cluster.broker
    step = Held(mesh)
    consumer = broker.consumer(mesh.name)
    worker = mesh.start(step, consumer=consumer)
    mesh.put(*ids(10))
    assert step.entered.wait(DEADLINE)
    broker.kill(consumer)
    eventually(lambda: worker.status()["partitions"] == [], "the loss noticed")
    step.go_on.set()
    mesh.stop()
    assert broker.lag(mesh.topic.name, mesh.name) == 10
    mesh.start(lambda batch: [describe(mesh, value) for value in batch])
    eventually(lambda: mesh.finished(10), "the new owner did the work")


def test_dead_letters_are_read_and_sent_home_once(settings: Settings) -> None:
    cluster = RealCluster(settings)
    mesh = Mesh(cluster)
    broken = threading.Event()
    broken.set()

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        bad = Rejected("not_yet", "the fix is not deployed")
        return [bad if broken.is_set() else describe(mesh, value) for value in batch]

    mesh.put(*ids(6))
    mesh.start(step)
    eventually(lambda: mesh.finished(6), "six failures")
    letters = list(read_dead_letters(settings, mesh.dlq))
    assert len(letters) == 6
    assert not any(letter.replayed for letter in letters)
    assert {letter.origin[0] for letter in letters} == {mesh.topic.name}

    broken.clear()
    assert replay(settings, mesh.dlq) == 6
    eventually(lambda: set(mesh.states().values()) == {"done"}, "all home")
    assert replay(settings, mesh.dlq) == 0
    assert all(letter.replayed for letter in read_dead_letters(settings, mesh.dlq))
    mesh.stop()
    cluster.publisher.close()


# Deaths: a process can end between any two effects. What is left behind by each, and how it is mended.


class Died(BaseException):
    """The process ended here."""


class Mortal:
    """Passes everything on to `inner`, and dies once, before or after a call of `method`."""

    def __init__(self, inner: Any, method: str, when: str, die: Callable[[], None]) -> None:
        self._inner, self._method, self._when, self._die = inner, method, when, die

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._method:
            return found

        def dying(*arguments: Any, **options: Any) -> Any:
            if self._when == "before":
                self._die()
            answer = found(*arguments, **options)
            if self._when == "after":
                self._die()
            return answer

        return dying


def run_until_death(mesh: Mesh, step: Step[ImageUploaded], method: str = "", when: str = "") -> None:
    """A worker that dies at a call of its store, publisher or consumer, or where `step` raises `Died`."""
    assert isinstance(mesh.cluster, MemoryCluster)
    broker = mesh.cluster.broker
    consumer = broker.consumer(mesh.name)

    def die() -> None:
        # An idle worker commits as well, and its death then would show nothing.
        if method in ("store_offsets", "commit") and not mesh.store.outcomes():
            return
        broker.kill(consumer)
        raise Died

    def mortal_step(batch: Sequence[ImageUploaded]) -> Sequence[Verdict]:
        try:
            return step(batch)
        except Died:
            die()
            raise

    def mortal(inner: Any) -> Any:
        return Mortal(inner, method, when, die)

    worker = Worker(
        name=mesh.name,
        topic=mesh.topic,
        step=mortal_step,
        consumer=mortal(consumer),
        publisher=mortal(mesh.cluster.publisher),
        store=mortal(mesh.store),
        record_attempts=True,
    )
    with pytest.raises(Died):
        worker.run()


@pytest.fixture
def memory_mesh() -> Iterator[Mesh]:
    mesh = Mesh(MemoryCluster())
    yield mesh
    mesh.stop()


@pytest.mark.parametrize(
    ("method", "when", "counted"),
    [
        ("interrupted", "before", 0),
        ("interrupted", "after", 0),
        ("begin", "before", 0),
        ("begin", "after", 1),
        ("withdraw", "before", 1),
        ("withdraw", "after", 0),
        ("save", "before", 1),
        ("save", "after", 0),
        ("publish", "before", 0),
        ("publish", "after", 0),
        ("store_offsets", "before", 0),
        ("commit", "before", 0),
        ("commit", "after", 0),
    ],
)
def test_a_death_between_any_two_effects_loses_nothing(
    memory_mesh: Mesh, method: str, when: str, counted: int
) -> None:
    mesh = memory_mesh
    tries = 0

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        nonlocal tries
        tries += 1
        if method == "withdraw" and tries == 1:
            raise Unavailable("object_store", "away")
        return [describe(mesh, value) for value in batch]

    mesh.put(*ids(8), "image-3")
    run_until_death(mesh, step, method, when)
    assert set(mesh.store.interrupted(mesh.name, ids(8))) == {counted}
    assert mesh.cluster.lag(mesh.topic.name, mesh.name) == (0 if (method, when) == ("commit", "after") else 9)
    mesh.start(step, record_attempts=True)
    eventually(lambda: mesh.finished(8), "the next process finished")
    assert set(mesh.states().values()) == {"done"}
    assert {record.key for record in mesh.cluster.records(mesh.out.name)} == {i.encode() for i in ids(8)}
    assert not mesh.cluster.records(mesh.dlq)


def test_a_message_that_kills_every_process_costs_three(memory_mesh: Mesh) -> None:
    mesh = memory_mesh

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        if any(value.image_id == "image-3" for value in batch):
            raise Died
        return [describe(mesh, value) for value in batch]

    mesh.put(*ids(8), "image-3")
    for _ in range(3):
        run_until_death(mesh, step)
    mesh.start(step, record_attempts=True)
    eventually(lambda: mesh.finished(8), "the fourth process finished")
    assert [i for i, state in mesh.states().items() if state == "failed"] == ["image-3"]
    assert {letter["x-error-code"] for letter in mesh.letters()} == {"worker_died"}


def test_a_stop_in_the_middle_of_a_step_is_not_a_death(memory_mesh: Mesh) -> None:
    mesh = memory_mesh
    step = Held(mesh)

    mesh.put(*ids(3))
    mesh.start(step, record_attempts=True)
    assert step.entered.wait(DEADLINE)
    mesh.stop()
    assert mesh.store.interrupted(mesh.name, ids(3)) == [0, 0, 0]
    assert mesh.cluster.lag(mesh.topic.name, mesh.name) == 3
    step.go_on.set()


def test_a_stop_that_meets_the_end_of_an_outage_commits_nothing_that_was_given_up(
    memory_mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop has looked whether it is to stop, and only then is it; the batch gives up at once."""
    mesh = memory_mesh

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        raise Unavailable("object_store", "away")

    worker = mesh.worker(step, consumer=scripted(mesh), max_batch=1)
    turn = worker._turn

    def stopped_just_before() -> None:
        job = worker._job
        if job is not None and worker.status()["waiting_for"] is not None:
            worker.stop()
            assert isinstance(job.future.exception(DEADLINE), Stopped)
            worker._commit_due = 0.0  # as it is after a second of waiting
        turn()

    monkeypatch.setattr(worker, "_turn", stopped_just_before)
    mesh.put("only")
    worker.run()
    assert mesh.states() == {}
    assert mesh.cluster.lag(mesh.topic.name, mesh.name) == 1


def test_an_attempt_that_could_not_be_withdrawn_counts_once(memory_mesh: Mesh) -> None:
    mesh = memory_mesh
    counted: list[int] = []

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        counted.extend(mesh.store.interrupted(mesh.name, ["only"]))
        if len(counted) < 4:
            mesh.store.fail_next(1)
            raise Unavailable("object_store", "away, and the database with it")
        return [describe(mesh, value) for value in batch]

    mesh.put("only")
    mesh.start(step, record_attempts=True)
    eventually(lambda: mesh.finished(1), "both came back")
    assert counted == [1, 1, 1, 1]


# Commits


class Scripted(MemoryConsumer):
    """Calls `script`, once and when it is set, in the middle of `consume`: where rebalances come from."""

    script: Callable[[], None] | None = None

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Any]:
        script, self.script = self.script, None
        if script is not None:
            script()
        return super().consume(num_messages, timeout)

    def give_up(self, *, idle: bool) -> None:
        """Gives up the partitions that delivered nothing yet, or those that did."""
        self._leave([key for key in self._owned() if (key not in self._delivered) is idle])


def scripted(mesh: Mesh) -> Scripted:
    assert isinstance(mesh.cluster, MemoryCluster)
    broker = mesh.cluster.broker
    return Scripted(broker, broker.consumer(mesh.name).group)


def test_a_revocation_inside_consume_commits_no_message_that_is_still_on_its_way(memory_mesh: Mesh) -> None:
    """The consumer counts a message as delivered before the loop has it."""
    mesh = memory_mesh
    step = Held(mesh)
    lags: list[int] = []

    def revoke_when_the_first_is_done() -> None:
        step.go_on.set()
        job = worker._job
        assert job is not None
        job.future.result(DEADLINE)
        consumer.give_up(idle=False)
        lags.append(mesh.cluster.lag(mesh.topic.name, mesh.name))

    consumer = scripted(mesh)
    worker = mesh.start(step, consumer=consumer, max_batch=1)
    put_with_one_key(mesh, "first")
    assert step.entered.wait(DEADLINE)
    consumer.script = revoke_when_the_first_is_done
    put_with_one_key(mesh, "second")
    eventually(lambda: mesh.finished(2), "both done")
    assert lags == [1], "the first is committed, the second is not"


def test_a_partition_that_is_paused_is_not_starved_by_one_that_is_not(
    memory_mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was paused is read again as soon as the slow step is over, whatever else has come."""
    mesh = memory_mesh
    # One message to a batch, and no whole number of batches to what waits.
    monkeypatch.setattr(loop, "_BATCH_BYTES", 4000)
    order: list[str] = []
    entered, go_on = threading.Event(), threading.Event()

    def put(key: bytes, *image_ids: str) -> None:
        large = "b/" + "x" * 2950
        mesh.put_raw(*((key, msgspec.json.encode(ImageUploaded(i, large))) for i in image_ids))

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        if not order:
            entered.set()
            go_on.wait(DEADLINE)
        elif len(order) == 1:
            # On a partition that had delivered nothing; of the two, the double reads the other one first.
            put(b"key", *(f"flood-{number}" for number in range(600)))
        order.extend(value.image_id for value in batch)
        return [Done() for _ in batch]

    worker = mesh.start(step)
    put(b"another", "first")
    assert entered.wait(DEADLINE)
    put(b"another", *ids(3))
    eventually(lambda: worker._paused, "the partition paused")
    put(b"another", "late")
    go_on.set()
    eventually(lambda: mesh.finished(605), "all done")
    assert order.index("late") < 100, "its turn came before the flood was over"


def test_a_pause_that_the_client_dropped_is_made_again(memory_mesh: Mesh) -> None:
    mesh = memory_mesh
    step = Held(mesh)

    class Dropping(Watched):
        dropped = False

        def pause(self, partitions: list[TopicPartition]) -> None:
            if self.dropped:
                super().pause(partitions)
            self.dropped = True

    consumer = Dropping(mesh.cluster.consumer(mesh.name))
    worker = mesh.start(step, consumer=consumer, max_batch=1)
    put_with_one_key(mesh, "first")
    assert step.entered.wait(DEADLINE)
    put_with_one_key(mesh, *ids(20))
    eventually(lambda: consumer.paused, "the second pause")
    assert len(worker._buffer) == 3, "two batches, and one message that came after the first pause"
    step.go_on.set()
    eventually(lambda: mesh.finished(21), "all done")


def test_a_message_of_a_partition_that_is_given_up_meanwhile_is_left_to_its_next_owner(
    memory_mesh: Mesh,
) -> None:
    mesh = memory_mesh
    steps: list[str] = []

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        steps.extend(value.image_id for value in batch)
        return [describe(mesh, value) for value in batch]

    consumer = scripted(mesh)
    # Between poll(), which returned the message, and the end of consume().
    consumer.script = lambda: consumer.give_up(idle=False)
    mesh.start(step, consumer=consumer, max_batch=1)
    put_with_one_key(mesh, "one")
    eventually(lambda: mesh.finished(1), "done by whoever has the partition next")
    assert steps == ["one"]


def test_a_partition_that_was_taken_while_paused_delivers_when_it_comes_back(memory_mesh: Mesh) -> None:
    mesh = memory_mesh
    step = Held(mesh)

    consumer = scripted(mesh)
    worker = mesh.start(step, consumer=consumer, max_batch=1)
    put_with_one_key(mesh, "first")
    assert step.entered.wait(DEADLINE)
    put_with_one_key(mesh, "two", "batches", "and-one")
    eventually(lambda: worker._paused, "the partition paused")
    given_up = threading.Event()

    def take_it() -> None:
        consumer.give_up(idle=False)
        given_up.set()

    consumer.script = take_it
    put_with_one_key(mesh, "other", key=b"another")
    assert given_up.wait(DEADLINE)
    step.go_on.set()
    eventually(lambda: mesh.finished(5), "all done")


def test_a_failed_batch_ends_the_worker_though_a_rebalance_sees_it_first(memory_mesh: Mesh) -> None:
    mesh = memory_mesh
    entered, go_on = threading.Event(), threading.Event()

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        if entered.is_set():
            return [describe(mesh, value) for value in batch]
        entered.set()
        go_on.wait(DEADLINE)
        raise Died

    def revoke_after_the_failure() -> None:
        go_on.set()
        job = worker._job
        assert job is not None
        assert isinstance(job.future.exception(DEADLINE), Died)
        consumer.give_up(idle=True)

    consumer = scripted(mesh)
    worker = mesh.worker(step, consumer=consumer, max_batch=1)
    ends: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    put_with_one_key(mesh, "first")
    assert entered.wait(DEADLINE)
    consumer.script = revoke_after_the_failure
    put_with_one_key(mesh, "second")
    thread.join(DEADLINE)
    assert [type(error) for error in ends] == [Died]
    assert mesh.cluster.lag(mesh.topic.name, mesh.name) == 2


def test_a_commit_that_an_outage_swallowed_is_made_up_for(memory_mesh: Mesh) -> None:
    mesh = memory_mesh
    assert isinstance(mesh.cluster, MemoryCluster)
    broker = mesh.cluster.broker

    def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
        broker.available = False
        return [Skipped("nothing to publish") for _ in batch]

    mesh.put(*ids(5))
    mesh.start(step)
    eventually(lambda: len(mesh.states()) == 5, "all done")
    assert mesh.cluster.lag(mesh.topic.name, mesh.name) == 5
    broker.available = True
    eventually(lambda: mesh.finished(5), "all committed")


class Refused:
    """A consumer whose commits are refused while `refused` is set, as the broker does in a rebalance."""

    def __init__(self, consumer: GroupConsumer) -> None:
        self._consumer = consumer
        self.refused = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def commit(self, *, asynchronous: bool) -> object:
        return None if self.refused else self._consumer.commit(asynchronous=asynchronous)


def test_a_refused_commit_is_made_up_for_though_nothing_was_delivered_since_a_resume(mesh: Mesh) -> None:
    """A resume seeks, and after a seek a consumer has no position until the next message."""
    step = Held(mesh)

    consumer = Refused(mesh.cluster.consumer(mesh.name))
    worker = mesh.start(step, consumer=consumer, max_batch=2)
    put_with_one_key(mesh, "first")
    assert step.entered.wait(DEADLINE)
    put_with_one_key(mesh, "two", "batches", "that", "wait")
    eventually(lambda: worker._paused, "the partitions paused")
    consumer.refused = True
    step.go_on.set()
    eventually(lambda: len(mesh.states()) == 5 and worker._job is None, "all done")
    assert mesh.cluster.lag(mesh.topic.name, mesh.name) == 5
    consumer.refused = False
    eventually(lambda: mesh.finished(5), "all committed")


@pytest.mark.servers
def test_a_commit_that_the_broker_refuses_is_told(settings: Settings) -> None:
    """One of a consumer that is no member of the group, which has one."""
    cluster = RealCluster(settings)
    mesh = Mesh(cluster)
    worker = mesh.start(lambda batch: [Done() for _ in batch])
    eventually(lambda: worker.status()["partitions"], "the group has a member")
    stranger = Consumer(consumer_config(settings, mesh.name, 1))
    stranger.assign([TopicPartition(mesh.topic.name, 0, 0)])

    def told() -> list[Any]:
        return [line for line in logs if line["event"] == "commit_refused"]

    with capture_logs() as logs:
        stranger.commit(offsets=[TopicPartition(mesh.topic.name, 0, 1)], asynchronous=True)
        eventually(lambda: stranger.poll(0.1) is None and told(), "the answer to the commit")
    stranger.close()
    (line,) = told()
    assert (line["worker"], line["partitions"]) == (mesh.name, [0])
    assert "member" in line["error"]
    mesh.stop()
    cluster.publisher.close()


def test_a_fatal_error_of_the_consumer_ends_the_worker(memory_mesh: Mesh) -> None:
    """Seen of a fenced static member: the code is _FATAL, and fatal() of it is False."""

    class Fatal:
        def error(self) -> KafkaError:
            return KafkaError(KafkaError._FATAL)

    class Fenced(MemoryConsumer):
        def poll(self, timeout: float = -1) -> Any:
            return Fatal()

    assert isinstance(memory_mesh.cluster, MemoryCluster)
    broker = memory_mesh.cluster.broker
    worker = Worker(
        name=memory_mesh.name,
        topic=memory_mesh.topic,
        step=lambda batch: [Done() for _ in batch],
        consumer=Fenced(broker, broker.consumer(memory_mesh.name).group),
        publisher=memory_mesh.cluster.publisher,
    )
    with pytest.raises(KafkaException):
        worker.run()


@pytest.mark.native
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_holes_in_the_log_are_committed(settings: Settings, protocol: Any) -> None:
    """Aborted transactions leave offsets that no message has, at the end and alone in a partition."""
    cluster = RealCluster(settings.model_copy(update={"kafka_group_protocol": protocol}))
    mesh = Mesh(cluster)
    producer = Producer(client_config(settings) | {"transactional.id": mesh.name})
    producer.init_transactions()
    for partition, image_id, end in (
        (0, "kept", producer.commit_transaction),
        (0, "aborted", producer.abort_transaction),
        (1, "aborted-alone", producer.abort_transaction),
    ):
        producer.begin_transaction()
        value = msgspec.json.encode(ImageUploaded(image_id=image_id, minio_path="b/x"))
        producer.produce(mesh.topic.name, value, partition=partition)
        producer.flush()
        end()
    mesh.start(lambda batch: [describe(mesh, value) for value in batch])
    eventually(lambda: mesh.finished(1), "no lag left")
    assert mesh.states() == {"kept": "done"}
    mesh.stop()
    cluster.publisher.close()


# Dead letters


def test_a_dead_letter_keeps_the_headers_of_its_message_and_a_reason_of_bounded_length() -> None:
    headers = (("x-request-id", b"7"), ("x-error", b"of a letter sent on"), ("none", None))
    message = MemoryMessage(Record("images", None, None, headers), 3, 14)
    record = dead_letter(message, "dlq", "w", Failure("bug", "r" * 100_000, 3, 0.0, 0.0, "t" * 100_000))
    assert (record.key, record.value) == (None, None)
    assert record.headers[:2] == (("x-request-id", b"7"), ("none", None))
    assert [name for name, _ in record.headers].count("x-error") == 1
    assert sum(len(value or b"") for _, value in record.headers) < 20_000


def test_headers_that_the_client_cannot_read_stop_nothing(memory_mesh: Mesh) -> None:
    """What confluent-kafka does with a header's name that is no UTF-8."""

    class Unreadable(MemoryMessage):
        def headers(self) -> Any:
            raise SystemError("returned a result with an exception set")

    mesh = memory_mesh
    assert isinstance(mesh.cluster, MemoryCluster)
    log = mesh.cluster.broker.log(mesh.topic.name)[0]
    good = msgspec.json.encode(ImageUploaded(image_id="good", minio_path="b/x"))
    for offset, value in enumerate((b"{bad", good)):
        log.append(Unreadable(Record(mesh.topic.name, None, value), 0, offset))
    mesh.start(lambda batch: [describe(mesh, value) for value in batch])
    eventually(lambda: mesh.finished(1), "both committed")
    assert mesh.states() == {"good": "done"}
    assert [letter["x-error-code"] for letter in mesh.letters()] == ["invalid_message"]


@pytest.mark.native
def test_dead_letters_of_a_topic_that_is_missing(settings: Settings) -> None:
    with pytest.raises(Unavailable, match="mesh topics create"):
        list(read_dead_letters(settings, "no-such.dlq"))
    with pytest.raises(Unavailable, match="mesh topics create"):
        replay(settings, "no-such.dlq")


@pytest.mark.native
def test_what_came_in_compressed_fits_into_a_dead_letter(settings: Settings) -> None:
    """The broker's limits are on compressed batches."""
    cluster = RealCluster(settings)
    mesh = Mesh(cluster)
    producer = Producer(
        client_config(settings) | {"compression.type": "gzip", "message.max.bytes": 100_000_000}
    )
    producer.produce(mesh.topic.name, b" " * 20_000_000, b"bomb")
    assert producer.flush(30) == 0
    mesh.start(lambda batch: [describe(mesh, value) for value in batch])
    eventually(lambda: cluster.lag(mesh.topic.name, mesh.name) == 0, "committed")
    (letter,) = cluster.records(mesh.dlq)
    assert letter.value == b" " * 20_000_000
    mesh.stop()
    cluster.publisher.close()


def test_replay_stops_at_its_limit_goes_on_there_and_passes_over_what_is_no_letter(
    settings: Settings,
) -> None:
    cluster = RealCluster(settings)
    home, letters = f"home-{uuid.uuid4().hex[:8]}", f"letters-{uuid.uuid4().hex[:8]}"
    cluster.create(home, letters)

    def letter(number: int) -> Record:
        message = MemoryMessage(Record(home, f"{number}".encode(), b"v", (("x-mine", b"1"),)), 0, number)
        return dead_letter(message, letters, "w", Failure("bug", "r", 1, 0.0, 0.0))

    twice = [letter(number) for number in range(10) for _ in range(2)]
    assert not cluster.publisher.publish([Record(letters, b"1", b"no letter"), *twice])
    assert replay(settings, letters, limit=3) == 3
    assert len(cluster.records(home)) == 3
    assert replay(settings, letters) == 7
    assert replay(settings, letters) == 0
    records = cluster.records(home)
    assert Counter(record.key for record in records) == {f"{n}".encode(): 1 for n in range(10)}
    assert all(record.headers == (("x-mine", b"1"), (REPLAYED_FOR, b"w")) for record in records)


def test_what_is_sent_home_is_for_the_group_that_gave_it_up_alone(settings: Settings) -> None:
    cluster = RealCluster(settings)
    mine = Mesh(cluster)
    other = Mesh(cluster, beside=mine)
    refuse = threading.Event()
    refuse.set()
    seen: dict[str, list[str]] = {mine.name: [], other.name: []}

    def step_of(mesh: Mesh) -> Step[ImageUploaded]:
        def step(batch: Sequence[ImageUploaded]) -> list[Verdict]:
            seen[mesh.name].extend(value.image_id for value in batch)
            bad = Rejected("not_yet", "the fix is not deployed")
            return [bad if refuse.is_set() else describe(mesh, value) for value in batch]

        return step

    mine.put(*ids(4))
    for mesh in (mine, other):
        mesh.start(step_of(mesh))
        eventually(lambda mesh=mesh: mesh.finished(4), "four failures")
    # It fails again in the group it is for, and there alone.
    assert replay(cluster.settings, mine.dlq) == 4
    eventually(lambda: len(cluster.records(mine.dlq)) == 8, "the same letters again")
    refuse.clear()
    assert replay(cluster.settings, mine.dlq) == 4
    eventually(lambda: set(mine.states().values()) == {"done"}, "home in this group")
    eventually(lambda: cluster.lag(mine.topic.name, other.name) == 0, "passed over by the other")
    assert set(other.states().values()) == {"failed"}
    assert sorted(seen[mine.name]) == sorted(3 * ids(4))
    assert sorted(seen[other.name]) == sorted(ids(4))
    for mesh in (mine, other):
        mesh.stop()
    cluster.publisher.close()
    cluster.publisher.close()
