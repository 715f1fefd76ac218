"""The least that a consume-produce-commit relay can cost in Python: confluent-kafka and nothing else.

usage: raw_relay.py BOOTSTRAP IN OUT GROUP COUNT; COUNT 0 relays for ever. Prints {"seconds": …} from the
first batch to the last commit.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from confluent_kafka import Consumer, Producer


def main(bootstrap: str, source: str, target: str, group: str, count: int) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "compression.type": "zstd",
            "linger.ms": 2,
        }
    )
    failed = 0

    def report(error: Any, _: Any) -> None:
        nonlocal failed
        failed += error is not None

    consumer.subscribe([source])
    started, done = 0.0, 0
    while count == 0 or done < count:
        first = consumer.poll(1)
        if first is None:
            continue
        started = started or time.perf_counter()
        for message in [first, *consumer.consume(499, 0)]:
            producer.produce(target, message.value(), message.key(), on_delivery=report)
            done += 1
        producer.flush()
        consumer.commit(asynchronous=True)
    print(json.dumps({"seconds": time.perf_counter() - started, "failed": failed}), flush=True)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:5], count=int(sys.argv[5]))
