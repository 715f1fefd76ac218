"""The thin module over confluent-kafka: consumers, a publisher that knows success from silence, topics."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from pydantic import SecretStr

from visionmesh.errors import Unavailable
from visionmesh.settings import Settings, settings_or_exit
from visionmesh.topics import (
    DEAD_LETTER_MAX_BYTES,
    DEAD_LETTER_RETENTION_MS,
    PARTITIONS,
    TOPICS,
    dead_letter_topics,
)

log = structlog.get_logger()

# The broker's word that a record, not the world, is at fault. Anything else is worth another try.
_RECORD_ERRORS: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD})

# flush() is called in slices so that a stopping process is not held for a whole message timeout.
_FLUSH_SLICE_SECONDS: Final = 0.2

_PING_SECONDS: Final = 2.0

# Its lines become log lines like all others, instead of text on stderr.
_LIBRARY_LOG: Final = logging.getLogger("librdkafka")
_REPEAT_SECONDS: Final = 60.0
_REMEMBERED_LINES: Final = 1000

# Copies of a topic: as many as the broker is set to make of one, which differs from one node to three.
_AS_THE_BROKER: Final = -1

# How many batches a consumer has fetched ahead, per partition.
_BATCHES_FETCHED: Final = 20

# And how much at most, of all partitions: the loop takes what is there at once, whatever its size.
_FETCHED_KIB: Final = 16 * 1024

# What a broker says while a topic is made, or while another one takes its work over.
_PASSING: Final = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
    }
)
_PASSING_SECONDS: Final = 5.0
_PASSING_WAIT_SECONDS: Final = 0.2

# As confluent-kafka types them; the mesh writes bytes alone.
Header = tuple[str, str | bytes | None]
Delivered = Callable[[str | None], None]
Answer = TypeVar("Answer")


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record to publish: bytes only, its partition chosen by the key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()


class Message(Protocol):
    """A delivered message: `confluent_kafka.Message` where it holds a record and no error event."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Sequence[Header] | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def error(self) -> KafkaError | None: ...


def headers_of(message: Message) -> Sequence[Header]:
    """The headers of a message; none of them where a name is no UTF-8, which the client cannot read."""
    try:
        return message.headers() or ()
    except (SystemError, UnicodeDecodeError):
        return ()


class GroupConsumer(Protocol):
    """What the worker loop uses of `confluent_kafka.Consumer`; the double in `visionmesh.testing` has it."""

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None: ...
    def poll(self, timeout: float) -> Message | None: ...
    def consume(self, num_messages: int, timeout: float) -> Sequence[Message]: ...
    def pause(self, partitions: list[TopicPartition]) -> None: ...
    def resume(self, partitions: list[TopicPartition]) -> None: ...
    def seek(self, partition: TopicPartition) -> None: ...
    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]: ...
    def store_offsets(self, *, offsets: list[TopicPartition]) -> None: ...
    def commit(self, *, asynchronous: bool) -> object: ...
    def incremental_assign(self, partitions: list[TopicPartition]) -> None: ...
    def incremental_unassign(self, partitions: list[TopicPartition]) -> None: ...
    def close(self) -> None: ...


class Publisher(Protocol):
    """What the worker loop needs to publish; `KafkaPublisher`, or the double in `visionmesh.testing`."""

    def publish(
        self, records: Sequence[Record], give_up: Callable[[], bool] = lambda: False
    ) -> Mapping[int, str]:
        """Publishes and waits until the broker acknowledged every record.

        Returns the records that no broker will ever take, as index → reason; empty when all is well.
        Raises `Unavailable` when others were not acknowledged: publish the batch again (a record may then
        be there twice, which every reader of the mesh bears).
        """


class OnceInAWhile(logging.Filter):
    """Lets a line through that was not there for a minute, but for how long it took.

    A broker that is away is tried up to twenty times a second, with a line each time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        line, _, _ = record.getMessage().partition(" (after ")
        now = self._clock()
        if now - self._last.get(line, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
            return False
        if len(self._last) >= _REMEMBERED_LINES:
            self._last.clear()
        self._last[line] = now
        return True


_LIBRARY_LOG.addFilter(OnceInAWhile())


def client_config(settings: Settings) -> dict[str, Any]:
    """What every client of the mesh shares."""
    return {
        "bootstrap.servers": settings.kafka_bootstrap,
        **_security_config(settings),
        "logger": _LIBRARY_LOG,
        # The broker is waited for; a line per refused connection would drown the log.
        "log.connection.close": False,
        "reconnect.backoff.max.ms": 1000,
        "socket.keepalive.enable": True,
    }


def _security_config(settings: Settings) -> dict[str, Any]:
    """What the settings say of TLS and SASL; librdkafka knows what is missing and says so itself."""
    protocol = settings.kafka_security_protocol
    if protocol == "plaintext":
        return {}
    config: dict[str, Any] = {"security.protocol": protocol}
    if protocol.startswith("sasl"):
        config |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_sasl_username,
            "sasl.password": _clear(settings.kafka_sasl_password),
        }
    if protocol.endswith("ssl"):
        config |= {
            # Without it a certificate of anybody whom the authority knows would do.
            "ssl.endpoint.identification.algorithm": "https",
            "ssl.ca.location": _text(settings.kafka_tls_ca),
            "ssl.certificate.location": _text(settings.kafka_tls_certificate),
            "ssl.key.location": _text(settings.kafka_tls_key),
            "ssl.key.password": _clear(settings.kafka_tls_key_password),
        }
    return {name: value for name, value in config.items() if value is not None}


def _clear(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def consumer_config(settings: Settings, group: str, max_batch: int) -> dict[str, Any]:
    """Settings of a worker's consumer; the reasons stand in the design's Kafka facts."""
    config = client_config(settings) | {
        "group.id": group,
        "group.protocol": settings.kafka_group_protocol,
        # Both off: an offset is stored only after the results are, and a stored offset of a partition
        # that was lost is refused by the client instead of rewinding its new owner.
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "on_commit": partial(_tell_refused, group),
        "auto.offset.reset": "earliest",
        # A topic that is made, or made anew, while the worker runs is found this soon; 5 minutes by default.
        "topic.metadata.refresh.interval.ms": 10_000,
        "fetch.wait.max.ms": settings.kafka_fetch_wait_max_ms,
        # Enough that the next batch is always there; not more, for pause() throws it away.
        "queued.min.messages": _BATCHES_FETCHED * max_batch,
        "queued.max.messages.kbytes": _FETCHED_KIB,
        "fetch.queue.backoff.ms": 10,
    }
    if settings.kafka_group_protocol == "classic":
        config |= {
            "session.timeout.ms": settings.kafka_session_timeout_ms,
            "heartbeat.interval.ms": settings.kafka_heartbeat_interval_ms,
            "partition.assignment.strategy": "cooperative-sticky",
        }
    return config


def _tell_refused(group: str, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
    """Called from poll() or consume() with the answer to a commit that nobody waited for."""
    errors = [each for each in (error, *(partition.error for partition in partitions)) if each is not None]
    # Negative ones are the client's own: there was nothing new to commit, or no broker.
    if errors and errors[0].code() > 0:
        numbers = sorted(partition.partition for partition in partitions)
        log.info("commit_refused", worker=group, partitions=numbers, error=errors[0].str())


def producer_config(settings: Settings) -> dict[str, Any]:
    """Settings of every producer: nothing is acknowledged before it is safe, nothing is reordered."""
    return client_config(settings) | {
        "enable.idempotence": True,
        "acks": "all",
        # Of several, librdkafka takes the answer to a later one for the answer to those before, and a broker
        # that knows nothing of a producer takes a later one first. While a partition had no leader, records
        # were acknowledged that no broker had (confluentinc/confluent-kafka-go#921).
        "max.in.flight.requests.per.connection": 1,
        "compression.type": "zstd",
        "linger.ms": 2,
        # The most there is: the brokers' limits are on the compressed size, this one is not, and what
        # came in compressed must fit into a dead letter.
        "message.max.bytes": 1_000_000_000,
        "message.timeout.ms": settings.kafka_message_timeout_ms,
        # A topic that is still unknown after this is missing, and the error can say so.
        "topic.metadata.propagation.max.ms": 5000,
    }


def open_consumer(settings: Settings, group: str, *, max_batch: int = 64) -> GroupConsumer:
    """A consumer of `group`, read in batches of up to `max_batch`, that commits nothing by itself."""
    return cast(GroupConsumer, Consumer(consumer_config(settings, group, max_batch)))


class KafkaPublisher:
    """Publishes records and tells success from silence. Safe to share between threads."""

    def __init__(self, settings: Settings, **overrides: Any) -> None:
        self._config = producer_config(settings) | overrides
        self._lock = Lock()
        self._producer = Producer(self._config)

    def send(self, record: Record, on_delivery: Delivered) -> None:
        """Queues one record and returns; `on_delivery(None | error text)` is called by a later `poll`.

        Raises `Unavailable` when the local queue is full, which happens only while Kafka is away, when its
        topic is missing, or when the producer had to be replaced. Reports of one that was replaced may never
        come.
        """
        try:
            self._produce(
                self._producer, record, lambda error, _: on_delivery(None if error is None else error.str())
            )
        except KafkaException as error:
            raise unavailable(error.args[0]) from error

    def poll(self, timeout: float) -> None:
        """Serves the delivery reports of `send`, waiting up to `timeout` seconds for the first."""
        self._producer.poll(timeout)

    def publish(
        self, records: Sequence[Record], give_up: Callable[[], bool] = lambda: False
    ) -> Mapping[int, str]:
        """See `Publisher`. Records are acknowledged together or, when one is too large, one by one:
        the broker refuses the whole batch that a too large record travelled in.
        """
        failed = self._publish(records, range(len(records)), give_up)
        refused: dict[int, str] = {}
        for index in sorted(failed):
            if failed[index].code() not in _RECORD_ERRORS:
                continue
            alone = self._publish(records, [index], give_up).get(index)
            if alone is None:
                del failed[index]
            else:
                failed[index] = alone
                if alone.code() in _RECORD_ERRORS:
                    refused[index] = alone.str()
        for index, error in failed.items():
            if index not in refused:
                raise unavailable(error)
        return refused

    def ping(self) -> None:
        """Raises `Unavailable` unless a broker answers."""
        try:
            self._producer.list_topics(timeout=_PING_SECONDS)
        except KafkaException as error:
            raise unavailable(error.args[0]) from error

    def close(self, timeout: float = 5.0) -> None:
        """Waits up to `timeout` seconds for what is still on its way."""
        self._producer.flush(timeout)

    def _publish(
        self, records: Sequence[Record], indices: Sequence[int], give_up: Callable[[], bool]
    ) -> dict[int, KafkaError]:
        """One try of these records; what was not acknowledged, as index → error."""
        # The same throughout: another thread may replace it, and each serves only its own reports.
        producer = self._producer
        waiting = len(indices)
        failed: dict[int, KafkaError] = {}

        def report(index: int, error: KafkaError | None, _: Any) -> None:
            nonlocal waiting
            waiting -= 1
            if error is not None:
                failed[index] = error

        for index in indices:
            try:
                self._produce(producer, records[index], partial(report, index))
            except KafkaException as error:
                waiting -= 1
                failed[index] = error.args[0]
        # flush() returning 0 would only say that the queue is empty; the reports say what became of it.
        while waiting:
            producer.flush(_FLUSH_SLICE_SECONDS)
            if waiting and give_up():
                raise Unavailable("kafka", "stopped while waiting for an acknowledgement")
        return failed

    def _produce(
        self, producer: Producer, record: Record, report: Callable[[KafkaError | None, Any], None]
    ) -> None:
        headers = list(record.headers) or None
        try:
            producer.produce(record.topic, record.value, record.key, headers=headers, on_delivery=report)
        except BufferError as error:
            raise Unavailable("kafka", "the producer's queue is full") from error
        except KafkaException as error:
            # A fatal idempotence error shows as _FATAL here (its own .fatal() is False). Only a new producer
            # goes on, and with the whole batch: nobody would serve the reports of the old one.
            if error.args[0].code() != KafkaError._FATAL:
                raise
            self._replace(producer)
            raise Unavailable("kafka", f"the producer was replaced: {error.args[0].str()}") from error

    def _replace(self, broken: Producer) -> None:
        with self._lock:
            if self._producer is broken:
                log.warning("producer_replaced")
                self._producer = Producer(self._config)


def unavailable(error: KafkaError) -> Unavailable:
    """`error` as the outcome that the mesh knows."""
    if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
        return Unavailable("kafka", f"{error.str()} (create the topics with `mesh topics create`)")
    return Unavailable("kafka", error.str())


def asked_again(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns, asked again for 5 s while what a broker says will pass. Raises `Unavailable`."""
    deadline = time.monotonic() + _PASSING_SECONDS
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _PASSING or time.monotonic() > deadline:
                raise unavailable(error.args[0]) from error
        time.sleep(_PASSING_WAIT_SECONDS)


@dataclass(frozen=True)
class PartitionOffsets:
    """One partition as a group sees it. `committed` is None where the group never committed."""

    partition: int
    low: int
    high: int
    committed: int | None

    @property
    def lag(self) -> int:
        """Messages that the group has not finished."""
        # A topic that was made anew may end before what was committed of the old one.
        return max(0, self.high - max(self.low, self.committed or 0))


def onlooker(settings: Settings, group: str) -> Consumer:
    """A consumer that looks up or commits a group's offsets and joins nothing."""
    return Consumer(client_config(settings) | {"group.id": group, "enable.auto.commit": False})


def committed(consumer: Consumer, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
    """What the consumer's group has committed; a negative offset is that of a group that never did.

    Raises `KafkaException`, for the error of a single partition as well: its offset is negative too.
    """
    found = consumer.committed(partitions, timeout=timeout)
    for position in found:
        if position.error is not None:
            raise KafkaException(position.error)
    return found


class GroupOffsets:
    """The offsets of a group, looked up again and again over the same connection; it joins nothing.

    Not for two threads at once.
    """

    def __init__(self, settings: Settings, topic: str, group: str) -> None:
        self._topic = topic
        self._consumer = onlooker(settings, group)

    def read(self) -> list[PartitionOffsets]:
        """Watermarks and committed offsets of every partition. Raises `Unavailable`."""
        return asked_again(self._read)

    def _read(self) -> list[PartitionOffsets]:
        metadata = self._consumer.list_topics(self._topic, timeout=5).topics[self._topic]
        if metadata.error is not None:
            raise unavailable(metadata.error)
        partitions = [TopicPartition(self._topic, number) for number in sorted(metadata.partitions)]
        found = []
        for position in committed(self._consumer, partitions, 5):
            low, high = self._consumer.get_watermark_offsets(position, timeout=5)
            passed = position.offset if position.offset >= 0 else None
            found.append(PartitionOffsets(position.partition, low, high, passed))
        return found

    def close(self) -> None:
        self._consumer.close()


def partition_offsets(settings: Settings, topic: str, group: str) -> list[PartitionOffsets]:
    """Watermarks and committed offsets of every partition. Raises `Unavailable`."""
    with closing(GroupOffsets(settings, topic, group)) as offsets:
        return offsets.read()


def create_topics(settings: Settings, *, wait_seconds: float = 60.0) -> list[str]:
    """Creates the topics of the table and their dead-letter topics; returns the names that were new.

    Waits for the broker up to `wait_seconds`, then raises `Unavailable`. Topics that exist are left as
    they are.
    """
    wanted = [
        NewTopic(
            topic.name,
            num_partitions=topic.partitions,
            replication_factor=_AS_THE_BROKER,
            config={
                "retention.ms": str(topic.retention_ms),
                "max.message.bytes": str(topic.max_message_bytes),
            },
        )
        for topic in TOPICS
    ] + [
        NewTopic(
            name,
            num_partitions=PARTITIONS,
            replication_factor=_AS_THE_BROKER,
            config={
                "retention.ms": str(DEAD_LETTER_RETENTION_MS),
                "max.message.bytes": str(DEAD_LETTER_MAX_BYTES),
            },
        )
        for name in dead_letter_topics(settings.extra_classifiers)
    ]
    admin = AdminClient(client_config(settings))
    _wait_for_broker(admin, wait_seconds)
    created = []
    for name, future in admin.create_topics(wanted, request_timeout=30).items():
        try:
            future.result()
            created.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise unavailable(error.args[0]) from error
    return created


def _wait_for_broker(admin: AdminClient, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            admin.list_topics(timeout=_PING_SECONDS)
            return
        except KafkaException as error:
            if time.monotonic() > deadline:
                raise unavailable(error.args[0]) from error


def main(arguments: Sequence[str]) -> int:
    """`python -m visionmesh.kafka create-topics`: what the one-shot `topics` container runs."""
    if list(arguments) != ["create-topics"]:
        sys.stderr.write("usage: python -m visionmesh.kafka create-topics\n")
        return 2
    try:
        sys.stdout.write(json.dumps({"created": create_topics(settings_or_exit())}) + "\n")
    except Unavailable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
