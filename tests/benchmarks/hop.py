"""`hop`: one message at a time through two relays and back to the sender.

Two processes of a contestant relay A → B → C; the driver sends to A, waits for C, sends the next. A hop is
half of that round. The seed's absolute is 5 ms a hop.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.figures import figure, median, percentile, ratio
from benchmarks.runtime import PEERS
from benchmarks.servers import measure_on_kafka, new_topic, peer_python


@contextmanager
def relays(python: str, script: str, bootstrap: str) -> Iterator[tuple[str, str]]:
    """The first and the last topic of two relays that run meanwhile."""
    topics = [new_topic(bootstrap, 1) for _ in range(3)]
    running = [
        subprocess.Popen(
            [python, str(PEERS / script), bootstrap, source, target, uuid.uuid4().hex, "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for source, target in pairwise(topics)
    ]
    try:
        yield topics[0], topics[2]
    finally:
        for process in running:
            process.kill()
            process.wait()


def hops(python: str, script: str, bootstrap: str, count: int) -> list[float]:
    """Milliseconds of each of `count` hops, after 20 that are not counted."""
    with relays(python, script, bootstrap) as (first, last):
        producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": uuid.uuid4().hex, "enable.auto.commit": False}
        )
        consumer.assign([TopicPartition(last, 0, 0)])
        found = []
        for number in range(count + 20):
            value = f'{{"image_id":"{number}","minio_path":"raw-images/{number}.jpg"}}'.encode()
            started = time.perf_counter()
            producer.produce(first, value, str(number).encode())
            producer.flush()
            while (message := consumer.poll(30)) is not None and message.error() is not None:
                pass
            assert message is not None, f"{script} did not relay"
            found.append((time.perf_counter() - started) * 1000 / 2)
        consumer.close()
        return found[20:]


def measure(bootstrap: str, count: int, rounds: int) -> None:
    peers = peer_python()
    mesh: list[float] = []
    slowest: list[float] = []
    faststream: list[float] = []
    # A broker that has just started is slower by half; whoever came first would pay for it.
    hops(sys.executable, "mesh_relay.py", bootstrap, 10 * count)
    for _ in range(rounds):
        times = hops(sys.executable, "mesh_relay.py", bootstrap, count)
        mesh.append(median(times))
        slowest.append(percentile(times, 0.99))
        if peers is not None:
            faststream.append(median(hops(peers, "faststream_relay.py", bootstrap, count)))
    figure("hop: worker loop, p50", mesh, "ms")
    figure("hop: worker loop, p99", slowest, "ms")
    if peers is None:
        print("hop: FastStream is not installed (`make bench` installs it)")
        return
    figure("hop: FastStream, p50", faststream, "ms")
    ratio("hop: FastStream / worker loop", faststream, mesh, ">= 1.4; the seed's absolute is 5 ms")


def main(arguments: Sequence[str] = ()) -> None:
    measure_on_kafka(__doc__, arguments, measure, count=200, rounds=5)


if __name__ == "__main__":
    main(sys.argv[1:])
