"""The loop of every service: consume → step → store → publish → commit.

Effects happen here alone, in this order, for one batch after the other:

1. poll; a batch is up to `max_batch` messages and 4 MiB, and what cannot be decoded is a dead letter;
2. run the step on a worker thread while the loop goes on polling, so that no rebalance waits for it;
3. store all rows of the batch in one transaction (idempotent upserts);
4. publish results and dead letters, each acknowledged by the broker;
5. store the offsets and commit them, for the partitions that are still the ones the batch came from.

A crash anywhere replays from the last commit, and the replay changes nothing: at-least-once delivery,
effectively-once results.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Final, Generic, TypeVar

import msgspec
import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from visionmesh.kafka import GroupConsumer, KafkaPublisher, Message, Publisher, open_consumer
from visionmesh.observability import metrics
from visionmesh.results import ResultStore
from visionmesh.settings import Settings
from visionmesh.topics import Topic
from visionmesh.worker.batch import BatchRunner
from visionmesh.worker.retry import Stopped
from visionmesh.worker.step import Step

log = structlog.get_logger()

C = TypeVar("C", bound=msgspec.Struct)

# A step that outlasts this has its partitions paused. Pausing throws the prefetched records away, so it
# must not happen on every batch; and a member that is silent much longer holds up every rebalance.
GRACE_SECONDS: Final = 0.5

# While a batch is under way and messages are still wanted: how often its end is looked for.
_TICK_SECONDS: Final = 0.005
_SLOW_TICK_SECONDS: Final = 0.05

# After SIGTERM the partitions must move within 1 s: work that needs longer is given back.
DRAIN_SECONDS: Final = 0.7

# Leaving a group takes milliseconds, unless Kafka is away.
CLOSE_SECONDS: Final = 3.0

# The client repeats an error event for as long as its cause lasts; after this it is taken to be over.
_ERROR_SHOWN_SECONDS: Final = 10.0

# How often the loop makes sure that all it has passed is committed.
_COMMIT_SECONDS: Final = 1.0

# How many batches may wait while one is under way.
_BATCHES_AHEAD: Final = 2

# Where messages are large, a batch ends here: decoded and encoded again they take several times as much, and
# a batch that did not fit into memory would come again after each death. Usual ones are a tenth of it.
_BATCH_BYTES: Final = 4 * 1024 * 1024

Partition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Job:
    """A batch under way. size: messages. ends: per partition, the offset to commit after it, and the
    assignment's epoch.
    """

    size: int
    ends: Mapping[Partition, tuple[int, int | None]]
    started: float
    future: Future[None]


class _Buffer:
    """What was polled and is in no batch yet, oldest first."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._messages: deque[Message] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def batches(self) -> float:
        """For how many batches it suffices, by messages or by bytes, whichever is more."""
        return max(len(self._messages) / self._max_batch, self._bytes / _BATCH_BYTES)

    def append(self, message: Message) -> None:
        self._messages.append(message)
        self._bytes += _size(message)

    def take_batch(self) -> list[Message]:
        """The first one, however large it is, and those behind it that a batch has room for."""
        batch: list[Message] = []
        room = _BATCH_BYTES
        while self._messages and len(batch) < self._max_batch:
            size = _size(self._messages[0])
            if batch and size > room:
                break
            room -= size
            batch.append(self._messages.popleft())
        self._bytes -= _BATCH_BYTES - room
        return batch

    def partitions(self) -> set[Partition]:
        return set(map(_partition, self._messages))

    def forget(self, partitions: Collection[Partition]) -> None:
        self._messages = deque(each for each in self._messages if _partition(each) not in partitions)
        self._bytes = sum(map(_size, self._messages))


class _StepThread:
    """One daemon thread that runs batches in turn. A pool of the standard library would keep the process
    from ending until a step that hangs has ended.
    """

    def __init__(self, name: str, run: Callable[[Sequence[Message]], None]) -> None:
        self._run = run
        self._work: SimpleQueue[tuple[Sequence[Message], Future[None]] | None] = SimpleQueue()
        Thread(target=self._serve, name=name, daemon=True).start()

    def submit(self, messages: Sequence[Message]) -> Future[None]:
        future: Future[None] = Future()
        self._work.put((messages, future))
        return future

    def end(self) -> None:
        """Ends the thread after the batch under way; does not wait for it."""
        self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            messages, future = work
            try:
                self._run(messages)
            except BaseException as error:  # handed to the loop, which decides
                future.set_exception(error)
            else:
                future.set_result(None)


class Worker(Generic[C]):
    """Runs one step over one topic in one consumer group, whose name is the worker's name."""

    def __init__(
        self,
        *,
        name: str,
        topic: Topic[C],
        step: Step[C],
        consumer: GroupConsumer,
        publisher: Publisher,
        store: ResultStore | None = None,
        record_attempts: bool = False,
        max_batch: int = 64,
        max_wait: float = 0.1,
        max_attempts: int = 3,
    ) -> None:
        """store: None for a step that returns no rows; then no outcomes are written either.
        record_attempts: for steps that run native code, which may take the process with it.
        max_batch: messages; large ones make it smaller.
        max_wait: seconds one poll waits for a first message; a batch never waits to become full.
        """
        self.name = name
        self._topic = topic
        self._consumer = consumer
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._stop = Event()
        self._runner = BatchRunner(
            name=name,
            topic=topic,
            step=step,
            publisher=publisher,
            store=store,
            record_attempts=record_attempts,
            max_attempts=max_attempts,
            stop=self._stop,
        )
        self._step_thread = _StepThread(f"{name}-step", self._runner.run)
        self._buffer = _Buffer(max_batch)
        self._job: _Job | None = None
        # Partitions that have delivered since they were assigned, and those of them that are paused.
        self._delivering: set[Partition] = set()
        self._paused: set[Partition] = set()
        # Every assignment of a partition gets a number of its own: work begun under an older one is not
        # committed, for the partition may have been with another member in between.
        self._epochs: dict[Partition, int] = {}
        self._assignments = 0
        self._in_flight = metrics.IN_FLIGHT.labels(name)
        self._consumed = metrics.CONSUMED.labels(name, topic.name)
        # A replica that has yet to be given any is there, and its worker has too few.
        metrics.PARTITIONS.labels(name).set(0)
        self._commit_due = 0.0
        self._kafka_error: tuple[str, float] | None = None

    @classmethod
    def from_settings(
        cls,
        name: str,
        topic: Topic[C],
        step: Step[C],
        settings: Settings,
        *,
        store: ResultStore | None,
        record_attempts: bool = False,
        max_batch: int | None = None,
    ) -> Worker[C]:
        """A worker on the real servers that `settings` name."""
        max_batch = max_batch or settings.worker_max_batch
        return cls(
            name=name,
            topic=topic,
            step=step,
            consumer=open_consumer(settings, name, max_batch=max_batch),
            publisher=KafkaPublisher(settings),
            store=store,
            record_attempts=record_attempts,
            max_batch=max_batch,
            max_wait=settings.worker_max_wait_ms / 1000,
            max_attempts=settings.worker_max_attempts,
        )

    def run(self) -> None:
        """Works until `stop` is called; then gives the partitions back within a second."""
        self._consumer.subscribe(
            [self._topic.name],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )
        log.info("worker_started", worker=self.name, topic=self._topic.name)
        try:
            while not self._stop.is_set():
                self._turn()
            self._drain()
        finally:
            self._stop.set()
            self._step_thread.end()
            self._close()
            self._runner.give_back()
            log.info("worker_stopped", worker=self.name)

    def stop(self) -> None:
        """Asks the loop to end; safe to call from a signal handler or another thread."""
        self._stop.set()

    def status(self) -> dict[str, Any]:
        """What `/ready` says of the worker: whether it can work, its partitions, what it waits for."""
        waiting = self._runner.waiting_for
        error = self._kafka_error
        recent = error is not None and time.monotonic() - error[1] < _ERROR_SHOWN_SECONDS
        reason = error[0] if error is not None and recent else None
        return {
            "ready": waiting is None and reason is None and not self._stop.is_set(),
            "partitions": sorted(number for _, number in list(self._epochs)),
            "waiting_for": {"server": waiting.server, "reason": waiting.reason}
            if waiting is not None
            else {"server": "kafka", "reason": reason}
            if reason is not None
            else None,
        }

    # One turn of the loop

    def _turn(self) -> None:
        if self._job is not None and self._job.future.done():
            self._finish(self._job)
            if self._stop.is_set():
                # The batch may have been given up: it was delivered, and must not count as passed.
                return
        if self._job is None and time.monotonic() >= self._commit_due:
            self._commit_passed()
        if self._job is None and self._buffer:
            self._job = self._start()
        if self._paused and self._buffer.batches <= 1:
            self._resume()
        job = self._job
        if job is None:
            self._poll(self._max_wait)
            return
        grace = job.started + GRACE_SECONDS - time.monotonic()
        # What is paused waits until the rest is worked off, so a partition that is not must not add to it.
        full = bool(self._paused) or self._buffer.batches >= _BATCHES_AHEAD
        if not self._buffer:
            self._poll(_TICK_SECONDS if grace > 0 else _SLOW_TICK_SECONDS)
        elif grace > 0:
            # Work is waiting for the batch under way, so its end is what is looked for.
            wait([job.future], min(grace, self._max_wait) if full else _TICK_SECONDS)
            if not full:
                self._poll(0)
        else:
            # Polling goes on, so that the group stays whole. With the partitions paused nothing comes of it,
            # but for the first message of one that had delivered none.
            if full:
                self._pause()
            self._poll(_SLOW_TICK_SECONDS)

    def _poll(self, timeout: float) -> None:
        """Takes what is there, after waiting up to `timeout` seconds for the first message. While partitions
        are paused that is all: its own is to be paused before it delivers more.
        """
        first = self._consumer.poll(timeout)
        if first is None:
            return
        # consume() with a timeout waits until the batch is full, which would hold back a lone message.
        more = 0 if self._paused else self._max_batch - 1
        for message in [first, *self._consumer.consume(more, 0)]:
            error = message.error()
            if error is None:
                self._take(message)
            else:
                self._note(error)
        self._count_in_flight()

    def _take(self, message: Message) -> None:
        partition = _partition(message)
        # Its partition may have been given up within consume(); whoever has it next gets the message again.
        if partition not in self._epochs:
            return
        self._delivering.add(partition)
        self._buffer.append(message)
        if partition in self._paused:
            # The client drops a pause that meets one of its own, which it makes for a rebalance.
            self._consumer.pause(_places([partition]))

    def _count_in_flight(self) -> None:
        under_way = 0 if self._job is None else self._job.size
        self._in_flight.set(len(self._buffer) + under_way)

    def _note(self, error: KafkaError) -> None:
        """A consumer's error event: the client goes on trying by itself, so it is told, not raised."""
        # A consumer's fatal error comes as _FATAL, whose .fatal() is False.
        if error.fatal() or error.code() == KafkaError._FATAL:
            raise KafkaException(error)
        if error.code() != KafkaError._PARTITION_EOF:
            self._kafka_error = error.str(), time.monotonic()
            log.warning("kafka_error", worker=self.name, error=error.str())

    def _start(self) -> _Job:
        messages = self._buffer.take_batch()
        self._consumed.inc(len(messages))
        ends = {_partition(message): message.offset() + 1 for message in messages}
        epochs = self._epochs
        job_ends = {partition: (end, epochs.get(partition)) for partition, end in ends.items()}
        return _Job(len(messages), job_ends, time.monotonic(), self._step_thread.submit(messages))

    def _finish(self, job: _Job) -> None:
        self._job = None
        self._count_in_flight()
        try:
            job.future.result()
        except Stopped:
            return  # not committed: whoever gets the partitions next does it again
        self._commit(job)

    def _commit(self, job: _Job) -> None:
        """Commits the batch for every partition whose assignment is still the one it came from."""
        self._commit_up_to(
            {
                partition: end
                for partition, (end, epoch) in job.ends.items()
                if epoch is not None and self._epochs.get(partition) == epoch
            }
        )

    def _commit_passed(self) -> None:
        """Commits holes that no message followed, and again what the broker did not take.

        An outage swallows commits, and the broker refuses those that meet a rebalance.

        Only between batches: where nothing waits, all that was delivered is done. Never from a rebalance,
        for consume() counts messages as delivered that it has yet to return.
        """
        self._commit_due = time.monotonic() + _COMMIT_SECONDS
        idle = self._epochs.keys() - self._buffer.partitions()
        positions = self._consumer.position(_places(idle))
        # It is negative as long as there was no delivery.
        passed = [each for each in positions if each.offset >= 0]
        # After a seek there are none of them until the next message, but commits to make up for.
        self._commit_up_to({(each.topic, each.partition): each.offset for each in passed})

    def _commit_up_to(self, ends: Mapping[Partition, int]) -> None:
        """Commits these, and whatever was stored before and is not committed yet."""
        try:
            # Storing first makes the client refuse what is not ours any more; a bare commit would be
            # accepted by the broker and rewind the new owner. Nor is the answer waited for: close() does,
            # and the request is ahead of the one that gives the partition back.
            self._consumer.store_offsets(offsets=[TopicPartition(*each, end) for each, end in ends.items()])
            self._consumer.commit(asynchronous=True)
        except KafkaException as error:
            # Nothing is lost: the next commit covers this one, or the messages come again.
            log.info("commit_refused", worker=self.name, error=str(error))

    # Pausing

    def _pause(self) -> None:
        """Pauses the partitions that have delivered; another one is paused when it does.

        One that meets the client's own start of fetching can displace it, and the partition then stays silent
        for as long as it is assigned (confluentinc/librdkafka#5591).
        """
        if fresh := self._delivering - self._paused:
            self._paused |= fresh
            self._consumer.pause(_places(fresh))

    def _resume(self) -> None:
        """Resumes, and seeks to where delivery stopped: without it the fetcher takes 0.8 s to wake up."""
        paused = _places(self._paused)
        self._paused = set()
        self._consumer.resume(paused)
        for position in self._consumer.position(paused):
            # It is negative as long as there was no delivery.
            if position.offset >= 0:
                try:
                    self._consumer.seek(position)
                except KafkaException as error:
                    log.info("seek_refused", worker=self.name, error=str(error))

    # Rebalances, called from within poll()

    def _on_assign(self, consumer: GroupConsumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        for partition in partitions:
            self._assignments += 1
            self._epochs[partition.topic, partition.partition] = self._assignments
        self._tell_assignment("partitions_assigned", partitions)

    def _on_revoke(self, consumer: GroupConsumer, partitions: list[TopicPartition]) -> None:
        job = self._job
        # One that failed is left to the loop, which ends by it: the partitions that stay may not go on.
        if job is not None and job.future.done() and job.future.exception() is None:
            self._finish(job)
        self._forget(partitions)
        consumer.incremental_unassign(partitions)
        self._tell_assignment("partitions_revoked", partitions)

    def _on_lost(self, consumer: GroupConsumer, partitions: list[TopicPartition]) -> None:
        self._forget(partitions)
        consumer.incremental_unassign(partitions)
        self._tell_assignment("partitions_lost", partitions)

    def _forget(self, partitions: list[TopicPartition]) -> None:
        gone = {(partition.topic, partition.partition) for partition in partitions}
        # It would come back paused.
        if paused := gone & self._paused:
            self._consumer.resume(_places(paused))
        self._paused -= gone
        self._delivering -= gone
        for key in gone:
            self._epochs.pop(key, None)
        self._buffer.forget(gone)
        self._count_in_flight()

    def _tell_assignment(self, event: str, partitions: list[TopicPartition]) -> None:
        metrics.PARTITIONS.labels(self.name).set(len(self._epochs))
        log.info(event, worker=self.name, partitions=[p.partition for p in partitions])

    # The end

    def _drain(self) -> None:
        """Finishes the batch under way if that takes no longer than the takeover may."""
        if self._job is not None:
            wait([self._job.future], DRAIN_SECONDS)
            if self._job.future.done():
                self._finish(self._job)

    def _close(self) -> None:
        """Leaves the group. While Kafka is away, close() would wait up to 45 s to have a commit answered."""
        closing = Thread(target=self._consumer.close, name=f"{self.name}-close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        if closing.is_alive():
            log.warning("left_without_goodbye", worker=self.name)


def _partition(message: Message) -> Partition:
    return message.topic(), message.partition()


def _places(partitions: Collection[Partition]) -> list[TopicPartition]:
    return [TopicPartition(*each) for each in partitions]


def _size(message: Message) -> int:
    """In bytes."""
    return len(message.value() or b"") + len(message.key() or b"")
