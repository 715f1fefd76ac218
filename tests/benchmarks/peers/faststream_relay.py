"""The same relay on FastStream's Confluent broker, with its own decoding and acknowledgement.

Runs in the benchmarks' environment. usage: as raw_relay.py. A count relays in batches, for throughput;
COUNT 0 relays message by message, which is FastStream's way to the lowest latency.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker

Body = dict[str, str]


def batches(bootstrap: str, source: str, target: str, group: str, count: int) -> FastStream:
    broker = KafkaBroker(
        bootstrap, compression_type="zstd", linger_ms=2, acks="all", enable_idempotence=True, logger=None
    )
    app = FastStream(broker, logger=None)
    started, done = 0.0, 0

    @broker.subscriber(
        source,
        group_id=group,
        batch=True,
        max_records=500,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.ACK,
        polling_interval=0.1,
    )
    async def relay(bodies: list[Body]) -> None:
        nonlocal started, done
        started = started or time.perf_counter()
        await broker.publish_batch(*bodies, topic=target)
        done += len(bodies)
        if done >= count:
            print(json.dumps({"seconds": time.perf_counter() - started, "failed": 0}), flush=True)
            app.exit()

    return app


def one_by_one(bootstrap: str, source: str, target: str, group: str) -> FastStream:
    broker = KafkaBroker(bootstrap, linger_ms=0, acks="all", enable_idempotence=True, logger=None)

    @broker.subscriber(
        source, group_id=group, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK, polling_interval=0.1
    )
    async def relay(body: Body) -> None:
        await broker.publish(body, topic=target, key=body["image_id"].encode())

    return FastStream(broker, logger=None)


def main(bootstrap: str, source: str, target: str, group: str, count: int) -> None:
    app = (
        batches(bootstrap, source, target, group, count)
        if count
        else one_by_one(bootstrap, source, target, group)
    )
    asyncio.run(app.run())


if __name__ == "__main__":
    main(*sys.argv[1:5], count=int(sys.argv[5]))
