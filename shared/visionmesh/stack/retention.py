"""What the embedded broker has forgotten: its partitions keep 5 MB and drop the oldest without a word."""

from __future__ import annotations

import logging

from confluent_kafka import KafkaException, TopicPartition

# Documented, but missing from the package's __all__.
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_SECONDS = 5.0


def forgotten_records(bootstrap: str) -> dict[str, int]:
    """Records that each topic has dropped, oldest first; only topics that dropped any.

    Offsets of a mock partition start at 0, so its lowest offset is the number of records it dropped.
    Raises KafkaException if the broker does not answer.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    topics = admin.list_topics(timeout=REQUEST_TIMEOUT_SECONDS).topics
    asked = {
        TopicPartition(name, partition): OffsetSpec.earliest()  # type: ignore[no-untyped-call]
        for name, topic in topics.items()
        for partition in topic.partitions
    }
    dropped: dict[str, int] = {}
    if not asked:
        return dropped
    for partition, future in admin.list_offsets(asked, request_timeout=REQUEST_TIMEOUT_SECONDS).items():
        lowest = future.result().offset
        if lowest > 0:
            dropped[partition.topic] = dropped.get(partition.topic, 0) + lowest
    return dropped


class Guard:
    """Says in the log whenever the cluster has forgotten more records."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._reported: dict[str, int] = {}

    def look(self) -> None:
        try:
            dropped = forgotten_records(self._bootstrap)
        except KafkaException as error:
            # A broker under load may miss one look; the next one sees the same offsets.
            log.warning("could not look for forgotten records: %s", error)
            return
        for topic, count in dropped.items():
            if count > self._reported.get(topic, 0):
                log.warning(
                    "topic %s has forgotten its oldest %d records: a partition keeps 5 MB. Consumers that "
                    "had not read them never will; use the native stack for loads like this",
                    topic,
                    count,
                )
        self._reported = dropped
