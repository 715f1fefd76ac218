"""`wire`: bytes that a record of `image-features-stream` takes in the broker's log.

Descriptors are drawn like the extractor's, which have zero mean and unit variance, and written as the
extractor writes them, with its name in every record; 12 partitions, zstd. Batches of 64 are what a
worker publishes under load; a lone record is what a quiet mesh publishes.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from benchmarks.figures import figure
from benchmarks.servers import new_topic
from feature_extractor.domain import on_the_wire
from visionmesh.contracts import ImageFeatures
from visionmesh.kafka import KafkaPublisher, Record
from visionmesh.settings import Settings
from visionmesh.stack.native import KafkaServer, NativeStack

SPACE = "extractor@2.0.0"


def bytes_per_record(kafka: KafkaServer, batch: int, count: int) -> float:
    topic = new_topic(kafka.address)
    publisher = KafkaPublisher(Settings(kafka_bootstrap=kafka.address))
    descriptors = on_the_wire(
        np.random.default_rng(count + batch).normal(size=(count, 20)).astype(np.float32)
    )
    records = []
    for values in descriptors:
        image_id = str(uuid.uuid4())
        value = msgspec.json.encode(ImageFeatures(image_id, values, len(values), SPACE))
        records.append(Record(topic, image_id.encode(), value))
    for start in range(0, count, batch):
        refused = publisher.publish(records[start : start + batch])
        assert not refused, refused
    publisher.close()
    return sum(log.stat().st_size for log in kafka.data.glob(f"{topic}-*/*.log")) / count


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="mesh-bench-") as directory, NativeStack(Path(directory)) as stack:
        kafka = stack.kafka
        assert isinstance(kafka, KafkaServer)
        for batch, count, goal in ((64, 6400, "goal <= 160"), (256, 6400, ""), (1, 300, "no goal")):
            sizes = [bytes_per_record(kafka, batch, count) for _ in range(options.rounds)]
            figure(f"wire: features, published {batch} at a time {goal}", sizes, "B/record")


if __name__ == "__main__":
    main(sys.argv[1:])
