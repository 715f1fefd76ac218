"""Store and forward: what the devices measure goes through the queue to the sinks.

The devices live on the event loop of the HTTP server; they hand their readings over and never wait. The main
thread gathers these for a moment, numbers them and writes them down; a thread per sink sends them on. No
thread waits for another's disk or broker.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event
from typing import Any, Final

import structlog

from edge_publisher.devices.protocol import Device, Reading
from edge_publisher.publisher import Forwarder, Sink
from edge_publisher.queue import ReadingQueue, Stored
from visionmesh.errors import Unavailable
from visionmesh.observability import metrics

log = structlog.get_logger()

# Readings that wait to be written; some minutes of a device at full rate, and some tens of megabytes.
_HELD: Final = 100_000

# A disk that does not take is asked again this soon.
_RETRY_SECONDS: Final = 1.0

# At the end: until the devices are closed, which the HTTP server does when it has answered who asked before,
# and then until the brokers have acknowledged the rest. Within the shutdown budget of the process; what is
# left stays in the queue.
_CLOSE_SECONDS: Final = 6.0
_LAST_SEND_SECONDS: Final = 2.0

# How long health tells of readings that were dropped.
_DROP_TOLD_SECONDS: Final = 600.0

# How often a device that failed for no reason of the hardware is read again.
_DEVICE_RETRY_SECONDS: Final = 1.0


class StoreAndForward:
    """The loop of the process; see `visionmesh.service.Loop`."""

    def __init__(self, queue: ReadingQueue, sinks: Sequence[Sink], *, commit_seconds: float) -> None:
        """commit_seconds: how long readings are gathered before they are written down."""
        self._queue = queue
        self._commit_seconds = commit_seconds
        self._stop = Event()
        self._sources_closed = Event()
        # Nothing is written down any more.
        self._ended = False
        self._came = Event()
        self._held: deque[Reading] = deque()
        metrics.from_zero(metrics.EDGE_DROPPED, metrics.EDGE_LOSSES)
        self._lost_in_memory = 0
        self._lost_at: float | None = None
        self._refusal: Unavailable | None = None
        self._forwarders = [Forwarder(queue, sink, self._came.set) for sink in sinks]
        # As of the last commit, so that who asks waits for no disk.
        self._status = queue.status()
        self.on_stored: Callable[[Sequence[Stored]], None] = lambda _: None

    def offer(self, reading: Reading) -> None:
        """Takes a reading at once. Called from the event loop."""
        if self._ended:
            self._lose(1)
            return
        if len(self._held) >= _HELD:
            # Only while the disk takes nothing for minutes.
            with suppress(IndexError):
                self._held.popleft()
            self._lose(1)
        self._held.append(reading)
        if not self._came.is_set():
            self._came.set()

    def sources_closed(self) -> None:
        """No reading is offered any more."""
        self._sources_closed.set()
        self._came.set()

    def run(self) -> None:
        for forwarder in self._forwarders:
            forwarder.start()
        while not self._stop.is_set():
            self._came.wait()
            # What comes meanwhile comes along: one commit for many readings.
            self._stop.wait(self._commit_seconds)
            self._came.clear()
            self._write()
        self._write_until_closed()
        self._end()
        if self._lost_in_memory:
            log.error("readings_dropped", reason="memory", since_start=self._lost_in_memory)

    def stop(self) -> None:
        self._stop.set()
        self._came.set()

    def status(self) -> dict[str, Any]:
        """For `/ready`: whether readings can be written down. Sinks that wait are no reason not to work."""
        refusal = self._refusal
        return {
            "ready": refusal is None and not self._stop.is_set(),
            "waiting_for": None if refusal is None else {"server": refusal.server, "reason": refusal.reason},
        }

    def health(self) -> dict[str, Any]:
        """What `/health` tells of the queue; `problems` are sentences. Waits for nothing."""
        problems = []
        if self._refusal is not None:
            problems.append(f"Readings can't be written down: {self._refusal.reason}.")
        waiting = {each.name: each.waiting_for for each in self._forwarders}
        problems += [f"{name} takes no readings: {error.reason}." for name, error in waiting.items() if error]
        status = self._status
        dropped = {"memory": self._lost_in_memory, **status.dropped}
        moments = (self._lost_at, status.dropped_at)
        last = max((moment for moment in moments if moment is not None), default=None)
        if last is not None and time.time() - last < _DROP_TOLD_SECONDS:
            problems.append(
                f"{sum(dropped.values())} readings were dropped since the start, the last of them "
                f"{time.time() - last:.0f} s ago: there was no more room."
            )
        return {
            "held": len(self._held),
            "waiting": dict(status.waiting),
            "bytes": status.bytes,
            "dropped": dropped,
            "problems": problems,
        }

    def _write_until_closed(self) -> None:
        """The devices measure on until they are closed."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        while not self._sources_closed.wait(self._commit_seconds) and time.monotonic() < deadline:
            self._write()
        self._ended = True
        self._write()
        self._lose(len(self._held))

    def _lose(self, readings: int) -> None:
        if readings:
            self._lost_in_memory += readings
            self._lost_at = time.time()
            metrics.EDGE_DROPPED.labels("memory").inc(readings)

    def _write(self) -> None:
        """Writes down what was offered, and tries again for as long as the disk does not take it."""
        batch = [self._held.popleft() for _ in range(len(self._held))]
        while batch or not self._queue.settled():
            began = time.perf_counter()
            try:
                stored = self._queue.put(batch)
            except Unavailable as error:
                if self._refusal is None:
                    log.error("queue_refuses", reason=error.reason)
                self._refusal = error
                if self._stop.wait(_RETRY_SECONDS):
                    self._held.extendleft(reversed(batch))
                    return
                continue
            self._refusal = None
            metrics.EDGE_COMMIT_SECONDS.observe(time.perf_counter() - began)
            self._tell(stored)
            return

    def _tell(self, stored: Sequence[Stored]) -> None:
        for sensor, count in Counter([each.sensor for each in stored]).items():
            metrics.EDGE_READINGS.labels(sensor).inc(count)
        if stored:
            self.on_stored(stored)
        before = self._status
        try:
            status = self._status = self._queue.status()
        except Unavailable:
            return  # the next commit will fail as well, and health says so
        metrics.EDGE_QUEUE_BYTES.set(status.bytes)
        for sink, waiting in status.waiting.items():
            metrics.EDGE_WAITING.labels(sink).set(waiting)
        for reason, count in status.dropped.items():
            more = count - before.dropped[reason]
            if more:
                metrics.EDGE_DROPPED.labels(reason).inc(more)
                log.error("readings_dropped", reason=reason, readings=more, since_start=count)

    def _end(self) -> None:
        deadline = time.monotonic() + _LAST_SEND_SECONDS
        for forwarder in self._forwarders:
            while (
                forwarder.waiting_for is None
                and self._queue.wait(forwarder.name, 0)
                and time.monotonic() < deadline
            ):
                time.sleep(0.01)
            forwarder.stop()
        self._queue.wake()
        for forwarder in self._forwarders:
            forwarder.join(max(0.1, deadline - time.monotonic()))
        try:
            self._queue.close()
        except Unavailable as error:
            log.warning("queue_not_closed", reason=error.reason)


async def pump(device: Device, offer: Callable[[Reading], None]) -> None:
    """Hands over every reading of a device until it is closed. A driver's bug costs its own alone."""
    while True:
        try:
            async for reading in device.readings():
                offer(reading)
            return
        except Exception:
            log.exception("device_failed", sensor=device.sensor)
            await asyncio.sleep(_DEVICE_RETRY_SECONDS)
