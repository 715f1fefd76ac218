"""The same relay on the worker loop: decode, no-op step, encode, publish, commit. usage: as raw_relay.py."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence

from visionmesh.contracts import ImageUploaded
from visionmesh.settings import Settings
from visionmesh.topics import Topic
from visionmesh.worker.loop import Worker
from visionmesh.worker.step import Done, Outgoing


def main(bootstrap: str, source: str, target: str, group: str, count: int) -> None:
    out = Topic(target, ImageUploaded, "image_id", "", ())
    started, done = 0.0, 0

    def step(batch: Sequence[ImageUploaded]) -> list[Done]:
        nonlocal started, done
        # A call of the step means that the batch before it was published.
        started = started or time.perf_counter()
        done += len(batch)
        if count and done >= count:
            worker.stop()
        return [Done(messages=(Outgoing(out, value),)) for value in batch]

    worker = Worker.from_settings(
        group,
        Topic(source, ImageUploaded, "image_id", "", (group,)),
        step,
        Settings(kafka_bootstrap=bootstrap),
        store=None,
        max_batch=500,
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    # After stop() the loop finishes the batch under way, publishes and commits it.
    worker.run()
    print(json.dumps({"seconds": time.perf_counter() - started, "failed": 0}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5], count=int(sys.argv[5]))
