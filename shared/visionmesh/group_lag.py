"""How far consumer groups are behind, in messages and in seconds, whether or not a member of theirs lives.

Offsets are asked of the broker, and joined is nothing. A lag in seconds is the age of the first message that
a group has not finished; to know it, one batch of that partition is fetched, once per committed offset.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, Final, Protocol, cast

import structlog
from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

# Its stubs do not export what its documentation does.
from confluent_kafka.admin import OffsetSpec as OffsetSpec  # type: ignore[attr-defined]

from visionmesh.errors import Unavailable
from visionmesh.kafka import Message, asked_again, client_config, committed, onlooker
from visionmesh.observability import metrics
from visionmesh.settings import Settings

log = structlog.get_logger()

# Two scrapes long: a look is a handful of small requests, whatever the traffic.
_LOOK_SECONDS: Final = 10.0

_REQUEST_SECONDS: Final = 5.0
# Whose first message was not there by then is asked again at the next look.
_FETCH_SECONDS: Final = 2.0

# It never joins, commits nothing, and no such group exists.
_NO_GROUP: Final = "visionmesh-lag"

_EARLIEST: Final[OffsetSpec] = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: Final[OffsetSpec] = OffsetSpec.latest()  # type: ignore[no-untyped-call]

Partition = tuple[str, int]
Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class GroupLag:
    """Of one group on one topic.

    seconds: age of the oldest message that is not finished; 0 without one, None if not known.
    """

    group: str
    topic: str
    messages: int
    seconds: float | None


class Lags(Protocol):
    """What the exporter needs of `GroupLags`."""

    def read(self) -> list[GroupLag]: ...

    def close(self) -> None: ...


class GroupLags:
    """Looks at the groups again and again over the same connections. Not for two threads at once."""

    def __init__(
        self,
        settings: Settings,
        readers: Sequence[tuple[str, str]],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """readers: topics with the groups that read them."""
        self._readers = readers
        self._now = now
        self._admin = AdminClient(client_config(settings))
        # Each asks for its group's offsets and joins nothing. The admin client could ask for all, but ends
        # the process when a broker answers that it is not a group's coordinator (librdkafka issue 5315).
        self._groups = {group: onlooker(settings, group) for group in {group for _, group in readers}}
        self._consumer = Consumer(
            client_config(settings)
            | {
                "group.id": _NO_GROUP,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                # A broker sends one batch however small this is: enough for its first message.
                "max.partition.fetch.bytes": 1,
                "queued.min.messages": 1,
            }
        )
        self._sent_at: dict[Place, float] = {}

    def read(self) -> list[GroupLag]:
        """One for each reader whose topic exists. Raises `Unavailable`."""
        return asked_again(self._read)

    def close(self) -> None:
        for consumer in (*self._groups.values(), self._consumer):
            consumer.close()

    def _read(self) -> list[GroupLag]:
        partitions = self._partitions()
        everything = [each for some in partitions.values() for each in some]
        lows = self._offsets(everything, _EARLIEST)
        highs = self._offsets(everything, _LATEST)
        firsts: dict[tuple[str, str], list[Place]] = {}
        lags: dict[tuple[str, str], int] = {}
        for topic, group in self._readers:
            if topic not in partitions:
                continue
            behind = firsts[topic, group] = []
            lags[topic, group] = 0
            for position in committed(self._groups[group], partitions[topic], _REQUEST_SECONDS):
                where = topic, position.partition
                low, high = lows.get(where, 0), highs.get(where, 0)
                # Never committed is a negative number: the group begins with what the topic still holds.
                first = max(low, position.offset)
                if first < high:
                    lags[topic, group] += high - first
                    behind.append((topic, position.partition, first))
        self._look_up(firsts.values())
        return [
            GroupLag(group, topic, messages, self._age(firsts[topic, group]))
            for (topic, group), messages in lags.items()
        ]

    def _partitions(self) -> dict[str, list[TopicPartition]]:
        known = self._admin.list_topics(timeout=_REQUEST_SECONDS).topics
        return {
            topic: [TopicPartition(topic, number) for number in sorted(known[topic].partitions)]
            for topic in {topic for topic, _ in self._readers}
            if topic in known and known[topic].error is None
        }

    def _offsets(self, partitions: Iterable[TopicPartition], spec: OffsetSpec) -> dict[Partition, int]:
        asked: Mapping[TopicPartition, Future[Any]] = self._admin.list_offsets(
            dict.fromkeys(partitions, spec), request_timeout=_REQUEST_SECONDS
        )
        return {(each.topic, each.partition): future.result().offset for each, future in asked.items()}

    # Lag in seconds

    def _age(self, places: Sequence[Place]) -> float | None:
        if not places:
            return 0.0
        sent_at = [self._sent_at[place] for place in places if place in self._sent_at]
        return max(0.0, self._now() - min(sent_at)) if sent_at else None

    def _look_up(self, groups: Iterable[Sequence[Place]]) -> None:
        """Makes sure of `_sent_at` for these places, and forgets all others."""
        wanted = list(dict.fromkeys(place for group in groups for place in group))
        self._sent_at = {place: self._sent_at[place] for place in wanted if place in self._sent_at}
        unknown = [place for place in wanted if place not in self._sent_at]
        # A consumer is at one place of a partition at a time, and groups are at several.
        while unknown:
            now = {(topic, number): offset for topic, number, offset in reversed(unknown)}
            self._fetch([(*where, offset) for where, offset in now.items()])
            unknown = [place for place in unknown if now[place[:2]] != place[2]]

    def _fetch(self, places: Sequence[Place]) -> None:
        self._consumer.assign([TopicPartition(*place) for place in places])
        try:
            waiting = {place[:2]: place for place in places}
            deadline = time.monotonic() + _FETCH_SECONDS
            while waiting and (left := deadline - time.monotonic()) > 0:
                message = cast(Message | None, self._consumer.poll(left))
                if message is None:
                    return
                place = waiting.pop((message.topic(), message.partition()), None)
                error = message.error()
                if error is not None:
                    # At its end nothing is left to read: what is missing are holes of transactions.
                    if place is None and error.code() != KafkaError._PARTITION_EOF:
                        raise KafkaException(error)
                    continue
                kind, milliseconds = message.timestamp()
                if place is not None and kind != TIMESTAMP_NOT_AVAILABLE:
                    self._sent_at[place] = milliseconds / 1000
        finally:
            self._consumer.unassign()


class LagExporter:
    """Sets the gauges from a thread of its own, as long as the block lasts.

    Every replica of a service that runs it sets them to the same values; while Kafka does not answer there
    are none, and none of a topic that is gone, since old ones would say that all is well.
    """

    def __init__(self, open_lags: Callable[[], Lags], *, look_seconds: float = _LOOK_SECONDS) -> None:
        self._open_lags = open_lags
        self._look_seconds = look_seconds
        self._stop = Event()
        self._away = False
        self._shown: set[tuple[str, str]] = set()
        self._thread = Thread(target=self._run, name="group-lag", daemon=True)

    def __enter__(self) -> LagExporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _run(self) -> None:
        lags = self._open_lags()
        try:
            while not self._stop.is_set():
                # A bug must not end the thread: the alerts on lag would never fire again.
                try:
                    self._look(lags)
                except Exception:
                    _forget()
                    log.exception("lag_failed")
                self._stop.wait(self._look_seconds)
        finally:
            with suppress(Unavailable):
                lags.close()

    def _look(self, lags: Lags) -> None:
        try:
            found = lags.read()
        except Unavailable as error:
            _forget()
            # Once per outage, not once per look.
            if not self._away:
                log.warning("lag_unknown", server=error.server, reason=error.reason)
            self._away = True
            return
        self._away = False
        shown = {(lag.group, lag.topic) for lag in found}
        for gone in self._shown - shown:
            metrics.GROUP_LAG.remove(*gone)
            metrics.GROUP_LAG_SECONDS.remove(*gone)
        self._shown = shown
        for lag in found:
            metrics.GROUP_LAG.labels(lag.group, lag.topic).set(lag.messages)
            # A busy broker may not tell in time, just when somebody waits: what was known stands.
            if lag.seconds is not None:
                metrics.GROUP_LAG_SECONDS.labels(lag.group, lag.topic).set(lag.seconds)


def _forget() -> None:
    metrics.GROUP_LAG.clear()
    metrics.GROUP_LAG_SECONDS.clear()
