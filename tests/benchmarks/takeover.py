"""`takeover`: how long the partitions of a replica stand still after SIGTERM and after kill -9.

Two replicas of the worker loop share 12 partitions under load; one is signalled. For each partition the
time runs from the signal to the first record that was sent after the signal and came out; the figure is
the slowest partition's.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence

from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.figures import figure
from benchmarks.runtime import PEERS
from benchmarks.servers import measure_on_kafka, new_topic

PARTITIONS = 12
RECORDS_PER_SECOND = 600
LONGEST_SECONDS = 40.0


class Load:
    """Sends at a steady rate to every partition and sees what comes out, with the time of each."""

    def __init__(self, bootstrap: str, source: str, target: str) -> None:
        self._source = source
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1, "log_level": 3})
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": uuid.uuid4().hex,
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 5,
            }
        )
        self._consumer.assign([TopicPartition(target, n, 0) for n in range(PARTITIONS)])
        self._number = 0
        self._sent: dict[str, tuple[int, float]] = {}
        self.seen: list[tuple[int, float, float]] = []

    def turn(self) -> None:
        """A hundredth of a second: its share of the records, and what arrived meanwhile."""
        until = time.monotonic() + 0.01
        for _ in range(RECORDS_PER_SECOND // 100):
            key, partition = str(self._number), self._number % PARTITIONS
            self._number += 1
            self._sent[key] = partition, time.monotonic()
            value = f'{{"image_id":"{key}","minio_path":"raw-images/{key}.jpg"}}'
            self._producer.produce(self._source, value.encode(), key.encode(), partition=partition)
        self._producer.poll(0)
        while (left := until - time.monotonic()) > 0:
            for message in self._consumer.consume(100, left):
                found = message.key()
                if message.error() is None and found is not None:
                    partition, sent = self._sent[found.decode()]
                    self.seen.append((partition, sent, time.monotonic()))

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.turn()

    def run_until_all_flow(self, since: float) -> float:
        """Seconds from `since` until every partition delivered something sent after it."""
        while time.monotonic() < since + LONGEST_SECONDS:
            self.turn()
            first: dict[int, float] = {}
            for partition, sent, arrived in self.seen:
                if sent > since:
                    first.setdefault(partition, arrived)
            if len(first) == PARTITIONS:
                return max(first.values()) - since
        raise RuntimeError(f"partitions still stand after {LONGEST_SECONDS:.0f} s")


def takeover(bootstrap: str, signal_number: int) -> float:
    source, target, group = new_topic(bootstrap), new_topic(bootstrap), uuid.uuid4().hex

    def replica() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(PEERS / "mesh_relay.py"), bootstrap, source, target, group, "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    load = Load(bootstrap, source, target)
    replicas = [replica(), replica()]
    try:
        load.run_until_all_flow(time.monotonic())
        load.run(4)  # until both have their share
        replicas[0].send_signal(signal_number)
        return load.run_until_all_flow(time.monotonic())
    finally:
        for process in replicas:
            process.kill()
            process.wait()


def measure(bootstrap: str, rounds: int) -> None:
    gentle = [takeover(bootstrap, signal.SIGTERM) for _ in range(rounds)]
    figure("takeover: after SIGTERM (goal <= 1 s)", gentle, "s")
    hard = [takeover(bootstrap, signal.SIGKILL) for _ in range(rounds)]
    figure("takeover: after kill -9 (goal <= 8 s)", hard, "s")


def main(arguments: Sequence[str] = ()) -> None:
    measure_on_kafka(__doc__, arguments, measure, rounds=5)


if __name__ == "__main__":
    main(sys.argv[1:])
