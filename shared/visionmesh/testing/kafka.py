"""A Kafka of one process: partitions, groups, commits and rebalances, in memory.

It keeps the rules that the worker loop lives by: a partition has one owner in a group, revocation comes
before assignment, a paused partition delivers nothing, offsets can be stored only for what is assigned,
and whatever was not committed is delivered again.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Condition
from typing import Any

from confluent_kafka import OFFSET_INVALID, TIMESTAMP_CREATE_TIME, KafkaError, KafkaException, TopicPartition

from visionmesh.errors import Unavailable
from visionmesh.kafka import Delivered, Header, Record
from visionmesh.topics import DEAD_LETTER_MAX_BYTES, PARTITIONS, TOPICS

Partition = tuple[str, int]


class MemoryMessage:
    """A stored record, read through the methods of `confluent_kafka.Message`."""

    def __init__(self, record: Record, partition: int, offset: int) -> None:
        self._record = record
        self._partition = partition
        self._offset = offset
        self._timestamp = int(time.time() * 1000)

    def topic(self) -> str:
        return self._record.topic

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._record.key

    def value(self) -> bytes | None:
        return self._record.value

    def headers(self) -> list[Header] | None:
        return list(self._record.headers) or None

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_CREATE_TIME, self._timestamp

    def error(self) -> None:
        return None


class _Group:
    def __init__(self) -> None:
        self.members: list[MemoryConsumer] = []
        self.owners: dict[Partition, MemoryConsumer] = {}
        self.committed: dict[Partition, int] = {}


class MemoryBroker:
    """Topics and groups. `available = False` is a broker that is away."""

    def __init__(self, partitions: int = PARTITIONS) -> None:
        self.available = True
        self.changed = Condition()
        self._partitions = partitions
        self._topics: dict[str, list[list[MemoryMessage]]] = {}
        self._groups: dict[str, _Group] = {}
        self._limits = {topic.name: topic.max_message_bytes for topic in TOPICS}

    def consumer(self, group: str) -> MemoryConsumer:
        return MemoryConsumer(self, self._groups.setdefault(group, _Group()))

    def publisher(self) -> MemoryPublisher:
        return MemoryPublisher(self)

    def append(self, record: Record) -> None:
        """Stores a record in the partition of its key."""
        with self.changed:
            number = zlib.crc32(record.key or b"") % self._partitions
            log = self.log(record.topic)[number]
            log.append(MemoryMessage(record, number, len(log)))
            self.changed.notify_all()

    def log(self, topic: str) -> list[list[MemoryMessage]]:
        return self._topics.setdefault(topic, [[] for _ in range(self._partitions)])

    def messages(self, topic: str) -> list[MemoryMessage]:
        """Everything a topic holds, partition by partition."""
        return [message for log in self.log(topic) for message in log]

    def lag(self, topic: str, group: str) -> int:
        """Messages that `group` has not committed."""
        committed = self._groups[group].committed if group in self._groups else {}
        return sum(len(log) - committed.get((topic, n), 0) for n, log in enumerate(self.log(topic)))

    def kill(self, consumer: MemoryConsumer) -> None:
        """The member dies without a word: its partitions are free, its later commits are refused."""
        with self.changed:
            consumer.group.members.remove(consumer)
            consumer.group.owners = {p: o for p, o in consumer.group.owners.items() if o is not consumer}
            consumer.dead = True
            self.changed.notify_all()

    def refuses(self, record: Record) -> bool:
        limit = self._limits.get(record.topic, DEAD_LETTER_MAX_BYTES)
        return len(record.value or b"") > limit


class MemoryConsumer:
    """A member of a group, with the methods of `confluent_kafka.Consumer` that the loop uses."""

    def __init__(self, broker: MemoryBroker, group: _Group) -> None:
        self.group = group
        self.dead = False
        self._broker = broker
        self._topic = ""
        self._on_assign: Callable[..., None] | None = None
        self._on_revoke: Callable[..., None] | None = None
        self._on_lost: Callable[..., None] | None = None
        self._positions: dict[Partition, int] = {}
        self._delivered: set[Partition] = set()
        self._stored: dict[Partition, int] = {}
        self._paused: set[Partition] = set()

    def subscribe(
        self, topics: list[str], *, on_assign: Any = None, on_revoke: Any = None, on_lost: Any = None
    ) -> None:
        (self._topic,) = topics
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost
        with self._broker.changed:
            self.group.members.append(self)
            self._broker.changed.notify_all()

    def poll(self, timeout: float = -1) -> MemoryMessage | None:
        deadline = time.monotonic() + timeout
        while True:
            self._rebalance()
            with self._broker.changed:
                message = self._next()
                if message is not None:
                    return message
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._broker.changed.wait(min(left, 0.05))

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[MemoryMessage]:
        found: list[MemoryMessage] = []
        while len(found) < num_messages:
            message = self.poll(timeout)
            if message is None:
                break
            found.append(message)
        return found

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._paused |= set(map(_key, partitions))

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._paused -= set(map(_key, partitions))

    def seek(self, partition: TopicPartition) -> None:
        self._require(_key(partition))
        self._positions[_key(partition)] = partition.offset
        self._delivered.discard(_key(partition))

    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        known = {key: self._positions[key] for key in self._delivered}
        return [TopicPartition(*_key(p), known.get(_key(p), OFFSET_INVALID)) for p in partitions]

    def store_offsets(self, *, offsets: Sequence[TopicPartition]) -> None:
        for partition in offsets:
            self._require(_key(partition))
            self._stored[_key(partition)] = partition.offset

    def commit(self, *, asynchronous: bool = True) -> None:
        """Does not tell whether it was of use, nor does an asynchronous one of the client."""
        if self.dead or not self._broker.available:
            return  # unanswered; a later commit covers it
        with self._broker.changed:
            self.group.committed |= self._stored
            self._stored = {}

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._positions[_key(partition)] = self.group.committed.get(_key(partition), 0)
            self._delivered.discard(_key(partition))

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._positions.pop(_key(partition), None)
            self._delivered.discard(_key(partition))
            self._stored.pop(_key(partition), None)

    def close(self) -> None:
        if not self.dead and self in self.group.members:
            self._leave(list(self._owned()))
            with self._broker.changed:
                self.group.members.remove(self)
                self._broker.changed.notify_all()

    def _rebalance(self) -> None:
        """Gives back what another member shall have, then takes what is free and meant for this one."""
        if self.dead:
            lost = [TopicPartition(*key) for key in self._positions]
            if lost and self._on_lost is not None:
                self._on_lost(self, lost)
            return
        target = self._target()
        self._leave([key for key in self._owned() if key not in target])
        with self._broker.changed:
            if self.dead:
                return  # buried by another thread at this moment; the next poll tells of it
            new = [key for key in target if key not in self.group.owners]
            self.group.owners |= dict.fromkeys(new, self)
        if new and self._on_assign is not None:
            self._on_assign(self, [TopicPartition(*key) for key in new])

    def _leave(self, keys: list[Partition]) -> None:
        if not keys:
            return
        if self._on_revoke is not None:
            self._on_revoke(self, [TopicPartition(*key) for key in keys])
        with self._broker.changed:
            for key in keys:
                self.group.owners.pop(key, None)
            self._broker.changed.notify_all()

    def _target(self) -> list[Partition]:
        members = list(self.group.members)
        if self not in members:
            return []
        mine = members.index(self)
        count = len(self._broker.log(self._topic))
        return [(self._topic, number) for number in range(count) if number % len(members) == mine]

    def _owned(self) -> Iterable[Partition]:
        return [key for key, owner in self.group.owners.items() if owner is self]

    def _next(self) -> MemoryMessage | None:
        if self.dead or not self._broker.available:
            return None
        for key, position in self._positions.items():
            log = self._broker.log(key[0])[key[1]]
            if key not in self._paused and position < len(log):
                self._positions[key] = position + 1
                self._delivered.add(key)
                return log[position]
        return None

    def _require(self, key: Partition) -> None:
        if self.dead or key not in self._positions:
            raise KafkaException(KafkaError(KafkaError._STATE))


class MemoryPublisher:
    """Publishes into a `MemoryBroker`, with the outcomes of `KafkaPublisher`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def send(self, record: Record, on_delivery: Delivered) -> None:
        if not self._broker.available:
            on_delivery("the broker is away")
        elif self._broker.refuses(record):
            on_delivery("the record is too large")
        else:
            self._broker.append(record)
            on_delivery(None)

    def poll(self, timeout: float) -> None:
        """Nothing waits: `send` reports at once."""

    def publish(
        self, records: Sequence[Record], give_up: Callable[[], bool] = lambda: False
    ) -> Mapping[int, str]:
        self.ping()
        refused = {}
        for index, record in enumerate(records):
            if self._broker.refuses(record):
                refused[index] = "the record is too large"
            else:
                self._broker.append(record)
        return refused

    def ping(self) -> None:
        if not self._broker.available:
            raise Unavailable("kafka", "the broker is away")

    def close(self, timeout: float = 5.0) -> None:
        """Nothing is on its way."""


def _key(partition: TopicPartition) -> Partition:
    return partition.topic, partition.partition
