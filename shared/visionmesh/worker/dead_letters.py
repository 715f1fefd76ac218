"""Dead letters: what they carry, how they are read and sent home.

A dead letter holds the original key and bytes; headers say where it came from and what went wrong. It is
at-least-once like everything else: readers tell two letters of one message apart from two messages by
origin topic, partition and offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from visionmesh.errors import Unavailable
from visionmesh.kafka import (
    Header,
    KafkaPublisher,
    Message,
    Record,
    asked_again,
    client_config,
    committed,
    headers_of,
    onlooker,
    unavailable,
)
from visionmesh.settings import Settings

log = structlog.get_logger()

# A traceback is for people; the end of it names the cause. The letter must fit its topic.
_TRACEBACK_BYTES: Final = 8 * 1024
_REASON_BYTES: Final = 8 * 1024

# On a message that was sent home: the group that could not process it. The others have had it, or have a
# letter of their own: were it read by all, what can't be mended would come back from each at every replay.
REPLAYED_FOR: Final = "x-replayed-for"

# The headers of a letter that are not the original message's own.
_OURS: Final = frozenset(
    {
        REPLAYED_FOR,
        "x-original-topic",
        "x-original-partition",
        "x-original-offset",
        "x-worker",
        "x-error-code",
        "x-error",
        "x-attempts",
        "x-first-failure-at",
        "x-last-failure-at",
        "x-traceback",
    }
)

# The group whose committed offsets say which letters were sent home already.
REPLAY_GROUP: Final = "mesh-dlq-replay"

_READ_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a message could not be processed. Times are UNIX seconds."""

    code: str
    reason: str
    attempts: int
    first_failed_at: float
    last_failed_at: float
    traceback: str | None = None


def dead_letter(message: Message, topic: str, worker: str, failure: Failure) -> Record:
    """The record for `topic` that holds `message` and says why it failed."""
    headers: dict[str, str] = {
        "x-original-topic": message.topic(),
        "x-original-partition": str(message.partition()),
        "x-original-offset": str(message.offset()),
        "x-worker": worker,
        "x-error-code": failure.code,
        "x-error": _cut(failure.reason, slice(_REASON_BYTES)),
        "x-attempts": str(failure.attempts),
        "x-first-failure-at": _iso(failure.first_failed_at),
        "x-last-failure-at": _iso(failure.last_failed_at),
    }
    if failure.traceback is not None:
        headers["x-traceback"] = _cut(failure.traceback, slice(-_TRACEBACK_BYTES, None))
    kept = tuple((name, value) for name, value in headers_of(message) if name not in _OURS)
    return Record(
        topic,
        message.key(),
        message.value(),
        kept + tuple((name, value.encode(errors="replace")) for name, value in headers.items()),
    )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as read back. `replayed` says whether it was sent home already."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, str]
    others: tuple[Header, ...]
    replayed: bool

    @property
    def origin(self) -> tuple[str, str, str]:
        """Topic, partition and offset of the original message, which name it once and for all."""
        return (
            self.headers.get("x-original-topic", ""),
            self.headers.get("x-original-partition", ""),
            self.headers.get("x-original-offset", ""),
        )

    def record(self) -> Record:
        """The original message, as it was before it failed, for the group that gave it up."""
        worker = self.headers.get("x-worker")
        addressee = ((REPLAYED_FOR, worker.encode()),) if worker else ()
        return Record(self.origin[0], self.key, self.value, self.others + addressee)


def is_for(message: Message, worker: str) -> bool:
    """Whether this worker is to have the message: any but what was sent home for another one."""
    for name, value in headers_of(message):
        if name == REPLAYED_FOR:
            return _text(value) == worker
    return True


def read_dead_letters(settings: Settings, topic: str) -> Iterator[DeadLetter]:
    """Every letter of a dead-letter topic, partition by partition, oldest first. Raises `Unavailable`."""
    consumer = Consumer(reader_config(settings, REPLAY_GROUP))
    try:
        metadata = consumer.list_topics(topic, timeout=_READ_SECONDS).topics[topic]
        if metadata.error is not None:
            raise unavailable(metadata.error)
        partitions = [TopicPartition(topic, number) for number in sorted(metadata.partitions)]
        for position in asked_again(lambda: committed(consumer, partitions, _READ_SECONDS)):
            low, high = consumer.get_watermark_offsets(position, timeout=_READ_SECONDS)
            for message in read_partition(consumer, TopicPartition(topic, position.partition, low), high):
                yield _letter(message, replayed=message.offset() < position.offset)
    except KafkaException as error:
        raise unavailable(error.args[0]) from error
    finally:
        consumer.close()


def _letter(message: Message, *, replayed: bool) -> DeadLetter:
    headers = headers_of(message)
    return DeadLetter(
        message.topic(),
        message.partition(),
        message.offset(),
        message.key(),
        message.value(),
        {name: _text(value) for name, value in headers if name in _OURS},
        tuple((name, value) for name, value in headers if name not in _OURS),
        replayed=replayed,
    )


def reader_config(settings: Settings, group: str) -> dict[str, Any]:
    """Of a consumer for `read_partition`."""
    return client_config(settings) | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        # Where retention took the first of them since somebody looked. The default would go to the end.
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": 10,
    }


def read_partition(consumer: Consumer, begin: TopicPartition, end: int) -> Iterator[Message]:
    """Messages from the offset of `begin`, or the first that is still there, to before `end`. Raises
    `Unavailable`.
    """
    if begin.offset >= end:
        return
    consumer.assign([begin])
    while True:
        message = cast(Message | None, consumer.poll(_READ_SECONDS))
        if message is None:
            raise Unavailable("kafka", f"no answer while reading {begin.topic}")
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                return
            raise unavailable(error)
        if message.offset() >= end:
            return
        yield message
        if message.offset() == end - 1:
            return


def replay(settings: Settings, topic: str, *, limit: int | None = None) -> int:
    """Publishes the letters that were not yet sent home to the topics they came from; returns how many.

    A second letter of the same message is passed over, as is a record that is no dead letter. Raises
    `Unavailable` at the first that cannot be sent; those before it stay sent. Killed half-way, the next
    replay sends again at most what this one had not yet written down: readers bear a message twice.
    """
    publisher = KafkaPublisher(settings)
    consumer = onlooker(settings, REPLAY_GROUP)
    done: dict[int, int] = {}
    seen: set[tuple[str, str, str]] = set()
    sent = 0
    try:
        for letter in read_dead_letters(settings, topic):
            if letter.replayed:
                seen.add(letter.origin)
                continue
            if limit is not None and sent >= limit:
                break
            if not letter.origin[0]:
                log.warning("no_dead_letter", topic=topic, partition=letter.partition, offset=letter.offset)
            elif letter.origin not in seen:
                refused = publisher.publish([letter.record()])
                if refused:
                    raise Unavailable("kafka", f"{letter.origin[0]} does not take it back: {refused[0]}")
                seen.add(letter.origin)
                sent += 1
            done[letter.partition] = letter.offset + 1
        return sent
    finally:
        if done:
            _write_down(consumer, [TopicPartition(topic, *place) for place in done.items()])
        consumer.close()
        publisher.close()


def _write_down(consumer: Consumer, offsets: list[TopicPartition]) -> None:
    try:
        consumer.commit(offsets=offsets, asynchronous=False)
    except KafkaException as error:
        raise unavailable(error.args[0]) from error


def _cut(text: str, part: slice) -> str:
    return text.encode(errors="replace")[part].decode(errors="replace")


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
