"""Gets every stored picture announced on Kafka, whether or not Kafka is there.

A row of `images` without `published_at` is the outbox. `announce` queues a picture's record at once and
returns; two threads do the rest:

* the reporter writes down, many at a time, which records the broker acknowledged;
* the relay publishes what has stayed behind: the broker was away for longer than a record waits in the
  producer, or the process that stored the picture died.

A picture may so be announced twice, which every worker bears, but never not at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any, Final, Protocol

import structlog

from ingest_api.step import announcement
from visionmesh.errors import Unavailable
from visionmesh.kafka import Delivered, Header, Record
from visionmesh.object_store import ObjectStore
from visionmesh.observability import metrics
from visionmesh.results import ImageRow, Images

log = structlog.get_logger()

# How soon an acknowledgement is written down. Nobody waits for it: only the relay reads it.
_REPORT_SECONDS: Final = 0.05

_RELAY_SECONDS: Final = 1.0
_RELAY_BATCH: Final = 500

# Longer than a record waits in the producer, as that is set by default.
_OVERDUE_SECONDS: Final = 40.0

# A write whose connection broke may still be committed until the server's statement timeout (10 s).
_ORPHAN_SECONDS: Final = 12.0


class Announcer(Protocol):
    """What the outbox needs of `KafkaPublisher`."""

    def send(self, record: Record, on_delivery: Delivered) -> None: ...

    def poll(self, timeout: float) -> None: ...

    def publish(self, records: Sequence[Record], give_up: Callable[[], bool] = ...) -> Mapping[int, str]: ...

    def ping(self) -> None: ...

    def close(self, timeout: float = ...) -> None: ...


@dataclass(frozen=True, slots=True)
class _Orphan:
    """An object of which it is not known whether a row names it."""

    image_id: str
    minio_path: str
    since: float


class Outbox:
    """Safe to share between threads. `start` begins the two threads, `stop` ends them."""

    def __init__(
        self,
        images: Images,
        store: ObjectStore,
        publisher: Announcer,
        *,
        relay_after_seconds: float = 5.0,
        overdue_seconds: float = _OVERDUE_SECONDS,
        orphan_seconds: float = _ORPHAN_SECONDS,
    ) -> None:
        """relay_after_seconds: how long a picture may wait before the relay takes it for left behind.

        overdue_seconds: after this no report on a record comes any more; longer than records wait in
        `publisher`.
        """
        self._images = images
        self._store = store
        self._publisher = publisher
        self._relay_after = relay_after_seconds
        self._overdue_seconds = overdue_seconds
        self._orphan_seconds = orphan_seconds
        self._lock = Lock()
        # And since when, the longest first.
        self._in_flight: dict[str, float] = {}
        self._acknowledged: deque[str] = deque()
        self._orphans: deque[_Orphan] = deque()
        self._stopping = Event()
        self._pending = 0
        self._kafka_error: str | None = None
        self._threads = [
            Thread(
                target=self._run, args=(self.report, _REPORT_SECONDS), name="outbox-reporter", daemon=True
            ),
            Thread(target=self._run, args=(self.relay, _RELAY_SECONDS), name="outbox-relay", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> None:
        """Waits up to `timeout` seconds for what is on its way; the rest stays in the outbox."""
        self._stopping.set()
        until = monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, until - monotonic()))
        self._publisher.close(max(0.1, until - monotonic()))
        try:
            self.report()
        except Unavailable as error:
            log.warning("outbox_not_marked", reason=str(error), images=len(self._acknowledged))

    def announce(self, image: ImageRow, headers: tuple[Header, ...] = ()) -> None:
        """Puts the record of `image` on its way and returns; never fails and never waits for Kafka."""
        with self._lock:
            if image.image_id in self._in_flight:
                return
            self._in_flight[image.image_id] = monotonic()
        try:
            self._publisher.send(announcement(image, headers), self._on_delivery(image.image_id))
        except Unavailable as error:
            self._left_behind(image.image_id, error.reason)
        except Exception:
            # A bug: the picture is stored all the same, and the relay's to announce.
            log.exception("announcement_failed", image_id=image.image_id)
            self._left_behind(image.image_id, "a bug")

    def status(self) -> dict[str, Any]:
        """pending: pictures that wait to be announced. kafka: `reachable`, or why it is not."""
        return {"pending": self._pending, "kafka": self._kafka_error or "reachable"}

    def discard_unless_named(self, image_id: str, minio_path: str) -> None:
        """Deletes an object later, unless a row turns out to name it: its write ended in the dark."""
        self._orphans.append(_Orphan(image_id, minio_path, monotonic()))

    def report(self) -> None:
        """Writes down what was acknowledged since the last call. Raises `Unavailable`, losing nothing."""
        self._publisher.poll(0)
        image_ids = [self._acknowledged.popleft() for _ in range(len(self._acknowledged))]
        if not image_ids:
            return
        try:
            self._images.mark_published(image_ids)
        except Unavailable:
            self._acknowledged.extendleft(image_ids)
            raise
        with self._lock:
            for image_id in image_ids:
                self._in_flight.pop(image_id, None)

    def relay(self) -> None:
        """Publishes what has stayed behind and deletes orphans. Raises `Unavailable`: call again."""
        self._forget_overdue()
        try:
            self._publish_left_behind()
        finally:
            # Whatever else is away: neither the object store nor Kafka waits for the other.
            self._sweep()

    def _publish_left_behind(self) -> None:
        self._pending = self._images.pending()
        metrics.OUTBOX_PENDING.set(self._pending)
        # Before rows are locked: a broker that is away would hold them for a whole message timeout.
        self._ping()
        while self._pending and not self._stopping.is_set() and self._relay_some() == _RELAY_BATCH:
            pass

    def _forget_overdue(self) -> None:
        """Lets the relay take what no report comes on: its producer was replaced, or a bug lost it."""
        before = monotonic() - self._overdue_seconds
        with self._lock:
            overdue = [image_id for image_id, since in self._in_flight.items() if since <= before]
            for image_id in overdue:
                del self._in_flight[image_id]
        if overdue:
            log.warning("reports_overdue", images=len(overdue))

    def _ping(self) -> None:
        try:
            self._publisher.ping()
            self._kafka_error = None
        except Unavailable as error:
            self._kafka_error = error.reason
            raise

    def _relay_some(self) -> int:
        """Publishes a batch of rows; returns how many it was."""
        with self._images.unpublished(older_than_seconds=self._relay_after, limit=_RELAY_BATCH) as claim:
            with self._lock:
                images = [image for image in claim.images if image.image_id not in self._in_flight]
            if not images:
                return 0
            refused = self._publisher.publish(
                [announcement(image) for image in images], self._stopping.is_set
            )
            for index, reason in refused.items():
                log.error("announcement_refused", image_id=images[index].image_id, reason=reason)
            claim.published(image.image_id for index, image in enumerate(images) if index not in refused)
        log.info("outbox_relayed", images=len(images) - len(refused))
        return len(images)

    def _sweep(self) -> None:
        """Deletes the orphans whose fate is certain by now."""
        while self._orphans and monotonic() - self._orphans[0].since >= self._orphan_seconds:
            orphan = self._orphans[0]
            image = self._images.image(orphan.image_id)
            if image is None or image.minio_path != orphan.minio_path:
                self._store.delete(orphan.minio_path)
                log.info("orphan_deleted", minio_path=orphan.minio_path)
            self._orphans.popleft()

    def _on_delivery(self, image_id: str) -> Delivered:
        def delivered(error: str | None) -> None:
            if error is None:
                self._acknowledged.append(image_id)
            else:
                self._left_behind(image_id, error)

        return delivered

    def _left_behind(self, image_id: str, reason: str) -> None:
        with self._lock:
            self._in_flight.pop(image_id, None)
        log.debug("announcement_delayed", image_id=image_id, reason=reason)

    def _run(self, work: Callable[[], None], seconds: float) -> None:
        """Calls `work` every `seconds` until `stop`. A server that is away is waited for."""
        away = ""
        while not self._stopping.wait(seconds):
            try:
                work()
                away = ""
            except Unavailable as error:
                # Once per outage, not once per try.
                if error.server != away:
                    log.warning("outbox_waits", server=error.server, reason=error.reason)
                away = error.server
            except Exception:
                # A bug must not end the thread: pictures would pile up in the outbox unseen.
                log.exception("outbox_failed", work=work.__name__)
