"""`runtime`: records per second through a no-op step, from topic to topic with commits.

Each contestant is a process of its own that joins a new group on the same 12 partitions and relays the
same records of 160 bytes; they take turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import Producer

from benchmarks.figures import figure, ratio
from benchmarks.servers import measure_on_kafka, new_topic, peer_python

PEERS = Path(__file__).parent / "peers"
RECORD_BYTES = 160


def fill(bootstrap: str, topic: str, count: int) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "compression.type": "zstd", "linger.ms": 50})
    for number in range(count):
        image_id = str(uuid.UUID(int=number))
        value = f'{{"image_id":"{image_id}","minio_path":"raw-images/2024/10/06/{image_id}.jpg","sha256":"'
        value += "0" * (RECORD_BYTES - len(value) - 2) + '"}'
        producer.produce(topic, value.encode(), image_id.encode())
        if number % 10_000 == 0:
            producer.flush()
    producer.flush()


def relay(python: str, script: str, bootstrap: str, source: str, count: int) -> float:
    """Records per second of one contestant."""
    target = new_topic(bootstrap)
    command = [python, str(PEERS / script), bootstrap, source, target, uuid.uuid4().hex, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{script} failed:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["failed"] == 0, result
    return count / float(result["seconds"])


def measure(bootstrap: str, count: int, rounds: int) -> None:
    source = new_topic(bootstrap)
    fill(bootstrap, source, count)
    peers = peer_python()
    mesh: list[float] = []
    raw: list[float] = []
    faststream: list[float] = []
    # A broker that has just started is slower; whoever came first would pay for it.
    relay(sys.executable, "raw_relay.py", bootstrap, source, count)
    for _ in range(rounds):
        raw.append(relay(sys.executable, "raw_relay.py", bootstrap, source, count))
        mesh.append(relay(sys.executable, "mesh_relay.py", bootstrap, source, count))
        if peers is not None:
            faststream.append(relay(peers, "faststream_relay.py", bootstrap, source, count))
    figure("runtime: worker loop", mesh, "msg/s")
    figure("runtime: raw confluent-kafka", raw, "msg/s")
    ratio("runtime: worker loop / raw", mesh, raw, ">= 0.5; the seed's absolute is 10,000 msg/s")
    if peers is None:
        print("runtime: FastStream is not installed (`make bench` installs it)")
        return
    figure("runtime: FastStream, batches", faststream, "msg/s")
    ratio("runtime: worker loop / FastStream", mesh, faststream, ">= 3")


def main(arguments: Sequence[str] = ()) -> None:
    measure_on_kafka(__doc__, arguments, measure, count=60_000, rounds=5)


if __name__ == "__main__":
    main(sys.argv[1:])
