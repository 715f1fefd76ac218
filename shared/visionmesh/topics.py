"""One table: topic, contract, key, partitions, retention, who consumes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from visionmesh.contracts import ImageFeatures, ImageUploaded, SensorReading

C = TypeVar("C", bound=msgspec.Struct)

DAY_MS: Final = 24 * 60 * 60 * 1000

# 12 divides by 1, 2, 3, 4, 6 and 12 replicas, so work is shared evenly at every usual scale.
PARTITIONS: Final = 12

# A dead letter carries the original bytes plus headers with a traceback, so it may be larger than
# whatever its topic accepted.
DEAD_LETTER_MAX_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class Topic(Generic[C]):
    """A topic of the mesh.

    key: the contract's field that is the record's key; records of one key keep their order.
    consumers: the consumer groups that read it, each named like its service; beside them, classifiers that
        a configuration adds read `FEATURES`.
    """

    name: str
    contract: type[C]
    key: str
    description: str
    consumers: tuple[str, ...]
    partitions: int = PARTITIONS
    retention_ms: int = 7 * DAY_MS
    max_message_bytes: int = 1024 * 1024

    def dead_letters(self, group: str) -> str:
        """The name of the topic that receives what `group` could not process."""
        return f"{self.name}.{group}.dlq"


CLASSIFIERS: Final = ("classifier-fast", "classifier-balanced", "classifier-accurate")

IMAGES: Final = Topic(
    name="images-input-stream",
    contract=ImageUploaded,
    key="image_id",
    description="A picture was stored and waits to be looked at.",
    consumers=("feature-extractor", "qr-decoder", "ocr-worker"),
)

FEATURES: Final = Topic(
    name="image-features-stream",
    contract=ImageFeatures,
    key="image_id",
    description="The descriptors of a picture, all that the classifiers need of it.",
    consumers=CLASSIFIERS,
)

SENSORS: Final = Topic(
    name="sensor-readings-stream",
    contract=SensorReading,
    key="device_id",
    description="A sensor of a device has measured something.",
    consumers=("sensor-sink",),
)

AnyTopic = Topic[ImageUploaded] | Topic[ImageFeatures] | Topic[SensorReading]

TOPICS: Final[tuple[AnyTopic, ...]] = (IMAGES, FEATURES, SENSORS)

# People look at dead letters after a weekend or a holiday.
DEAD_LETTER_RETENTION_MS: Final = 30 * DAY_MS


def classifiers(extra: Sequence[str] = ()) -> tuple[str, ...]:
    """The groups of all classifiers. extra: the names (as in `fast`) that a configuration adds."""
    return tuple(dict.fromkeys([*CLASSIFIERS, *(f"classifier-{name}" for name in extra)]))


def readers(extra_classifiers: Sequence[str] = ()) -> tuple[tuple[AnyTopic, str], ...]:
    """Every topic with each consumer group that reads it."""
    return tuple(
        (topic, group)
        for topic in TOPICS
        for group in (classifiers(extra_classifiers) if topic is FEATURES else topic.consumers)
    )


def dead_letter_topics(extra_classifiers: Sequence[str] = ()) -> tuple[str, ...]:
    """Every dead-letter topic, one per topic and consumer group."""
    return tuple(topic.dead_letters(group) for topic, group in readers(extra_classifiers))
