"""How much there is to do, and how long it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Final

import structlog

from ocr_worker.reading import Read
from visionmesh.errors import Rejected, Unavailable
from visionmesh.kafka import GroupOffsets
from visionmesh.observability import metrics
from visionmesh.ocr_document import OcrDocument
from visionmesh.settings import Settings
from visionmesh.topics import IMAGES

log = structlog.get_logger()

_LOOK_SECONDS: Final = 2.0

# What a document takes, before one was read.
_USUAL_SECONDS: Final = 2.0

_SOONEST_SECONDS: Final = 1
_LATEST_SECONDS: Final = 300


class GroupLag:
    """How many messages of the topic a group has not finished, as of the last look; none before the first.

    A thread looks every other second, so that nobody who asks waits for Kafka. While that is away, the last
    number stays.
    """

    def __init__(self, settings: Settings, group: str) -> None:
        self._settings = settings
        self._group = group
        self._lag = 0
        self._stop = Event()
        self._thread = Thread(target=self._look, name="lag", daemon=True)

    def __enter__(self) -> GroupLag:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def __call__(self) -> int:
        return self._lag

    def _look(self) -> None:
        offsets = GroupOffsets(self._settings, IMAGES.name, self._group)
        while not self._stop.is_set():
            try:
                self._lag = sum(partition.lag for partition in offsets.read())
                metrics.OCR_QUEUE.set(self._lag)
            except Unavailable:
                pass
            # A thread that ends would leave the last number for ever.
            except Exception:
                log.exception("lag_unknown")
            self._stop.wait(_LOOK_SECONDS)
        offsets.close()


@dataclass(frozen=True, slots=True)
class Counts:
    """Documents since the start of the process, from Kafka and over HTTP.

    seconds: that engines worked for those that were read, without the time that they waited for one.
    """

    ended: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def mean_seconds(self) -> float:
        """Of a document that was read; 0 before the first."""
        read = self.ended - self.failed
        return self.seconds / read if read else 0.0


class Tally:
    """A `Read` that counts what becomes of documents. For many threads at once."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._lock = Lock()
        self.counts = Counts()

    def __call__(self, data: bytes, until: float | None = None) -> OcrDocument:
        try:
            document = self._read(data, until)
        except Rejected:
            self._count("rejected", 0.0)
            raise
        except Exception:
            self._count("failed", 0.0)
            raise
        self._count("read", sum(document.seconds.values()))
        return document

    def _count(self, result: str, seconds: float) -> None:
        metrics.OCR_DOCUMENTS.labels(result).inc()
        with self._lock:
            known = self.counts
            self.counts = Counts(known.ended + 1, known.failed + (result != "read"), known.seconds + seconds)


def retry_after(documents: int, mean_seconds: float, engines: int) -> int:
    """Seconds until so many documents may be done, as `Retry-After` has them: at least 1, at most 300."""
    seconds = documents * (mean_seconds or _USUAL_SECONDS) / engines
    return max(_SOONEST_SECONDS, min(_LATEST_SECONDS, math.ceil(seconds)))
