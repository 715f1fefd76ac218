"""From the queue to the brokers: one thread per sink, which takes out what its broker has acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Final, Protocol

import msgspec
import structlog

from edge_publisher.queue import ReadingQueue, Stored
from visionmesh.errors import Unavailable
from visionmesh.kafka import Publisher, Record
from visionmesh.observability import metrics, spans, tracing
from visionmesh.topics import SENSORS
from visionmesh.worker.retry import Stopped, until_available

log = structlog.get_logger()

# What ten minutes without a broker leave is made up for in batches of this size.
_BATCH: Final = 1000

# After a failure that is no outage.
_FAILED_SECONDS: Final = 5.0

# How long a thread waits at most before it looks whether it is to end.
_WAIT_SECONDS: Final = 1.0


class Sink(Protocol):
    """A broker that readings go to. name: under which its place in the queue is kept."""

    @property
    def name(self) -> str: ...

    def send(self, batch: Sequence[Stored], give_up: Callable[[], bool]) -> int:
        """Returns when the broker has acknowledged them all, but for those that it will never take.

        Returns how many these are. Raises `Unavailable`, also when `give_up` says so; the batch comes again.
        """

    def close(self) -> None:
        """Lets go of the broker."""


class KafkaSink:
    """Topic `sensor-readings-stream`."""

    name = "kafka"

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def send(self, batch: Sequence[Stored], give_up: Callable[[], bool]) -> int:
        started_ns = spans.now_ns()
        records = [Record(SENSORS.name, each.device_id.encode(), each.value) for each in batch]
        # One of a batch stands for all, which are sent and stored together.
        trace = tracing.begin()
        records[0] = msgspec.structs.replace(records[0], headers=tracing.to_headers(trace))
        refused = self._publisher.publish(records, give_up)
        spans.record(
            spans.Span(
                f"publish {SENSORS.name}",
                "producer",
                trace,
                started_ns,
                spans.now_ns(),
                {
                    **spans.KAFKA,
                    "messaging.destination.name": SENSORS.name,
                    "messaging.batch.message_count": len(batch),
                    "visionmesh.device_id": batch[0].device_id,
                },
            )
        )
        for index, reason in refused.items():
            log.error(
                "reading_refused", sink=self.name, reason=reason, reading=batch[index].value.decode()[:500]
            )
        return len(refused)

    def close(self) -> None:
        """Nothing waits in the publisher: `send` returns when all is acknowledged."""


class Forwarder:
    """Sends one sink whatever it lacks, in order. `start` begins, `stop` and `join` end it."""

    def __init__(self, queue: ReadingQueue, sink: Sink, settle: Callable[[], None] = lambda: None) -> None:
        """settle: called after every acknowledgement, so that it is written down."""
        self.name = sink.name
        self._queue = queue
        self._sink = sink
        self._settle = settle
        self._stop = Event()
        self._thread = Thread(target=self._run, name=f"to-{sink.name}", daemon=True)
        self._published = metrics.EDGE_PUBLISHED.labels(sink.name)
        metrics.from_zero(metrics.RETRIES, [sink.name], "edge-publisher")
        self.waiting_for: Unavailable | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if self._queue.wait(self.name, _WAIT_SECONDS):
                    until_available(self._forward, self._stop, self._on_wait)
                    self.waiting_for = None
            except Stopped:
                break
            except Exception as error:
                # A bug. The queue is written on, and health tells that this sink gets nothing.
                log.exception("forwarding_failed", sink=self.name)
                self.waiting_for = Unavailable(self.name, f"{type(error).__name__}: {error}")
                self._stop.wait(_FAILED_SECONDS)
        self._sink.close()

    def _forward(self) -> None:
        batch = self._queue.after(self.name, _BATCH)
        if not batch:
            return
        refused = self._sink.send(batch, self._stop.is_set)
        self._queue.acknowledge(self.name, batch[-1].id)
        self._published.inc(len(batch) - refused)
        if refused:
            metrics.EDGE_DROPPED.labels("refused").inc(refused)
        self._settle()

    def _on_wait(self, error: Unavailable) -> None:
        if self.waiting_for is None:
            log.warning("waiting", sink=self.name, server=error.server, reason=error.reason)
        self.waiting_for = error
        metrics.RETRIES.labels("edge-publisher", error.server).inc()
