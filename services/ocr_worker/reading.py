"""Documents read in child processes: `Reader` in the service's own process, `read_one` in a child.

A page at a time, so that each has a deadline of its own, a long document is read by all engines at once, and
nobody waits for more than the page that is under way. The service's own process loads neither engine nor
decoders; its children import them at their start (`DOMAIN`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol

from visionmesh.errors import Rejected
from visionmesh.isolated import Isolated
from visionmesh.isolated_child import resident
from visionmesh.observability import metrics
from visionmesh.ocr_document import OcrDocument, ReadPage, joined

if TYPE_CHECKING:
    from ocr_worker.domain import Engine

DOMAIN: Final = "ocr_worker.domain"

# What the server of PaddleX is called while it is away.
PADDLEX: Final = "paddlex"

# The smallest picture there is, as GIF.
_NOTHING: Final = bytes.fromhex("47494638396101000100800000000000ffffff2c00000000010001000002024401003b")


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine a child opens, and how: see the settings of these names."""

    name: str
    language: str
    threads: int
    paddlex_url: str = ""
    paddle_models: Path | None = None
    page_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A document and which page of it is to be read, from 1. pages: the most that it may have."""

    data: bytes
    number: int
    pages: int
    engine: EngineChoice


@dataclass(frozen=True, slots=True)
class Answer:
    """A page, and what the process that read it holds by then. process: its id."""

    page: ReadPage
    process: int
    resident_bytes: int


class Read(Protocol):
    """Reads a document."""

    def __call__(self, data: bytes, until: float | None = None) -> OcrDocument:
        """Raises `Rejected`, and `Unavailable` when an engine is only a client of a server that is away.

        until: of `time.monotonic`; no page is begun after it, which is then `Rejected("answer_overdue")`.
        """


class Reader:
    """A `Read` that runs `read_one` in children. For many threads at once."""

    def __init__(
        self, isolated: Isolated[Asked, Answer], engine: EngineChoice, *, processes: int, max_pages: int
    ) -> None:
        """processes: how many children there are."""
        self._isolated = isolated
        self._engine = engine
        self._processes = processes
        self._max_pages = max_pages
        self._memory = _Memory(processes)
        self._lock = Lock()
        self._under_way = 0
        metrics.OCR_ENGINES.set(processes)

    def warm_up(self) -> None:
        """Has every child load its engine, so that the first page does not wait for that.

        Raises what is wrong with the engine.
        """
        with ThreadPoolExecutor(self._processes) as threads:
            list(threads.map(lambda _: self._isolated.call(self._asked(_NOTHING, 1)), range(self._processes)))

    def __call__(self, data: bytes, until: float | None = None) -> OcrDocument:
        first = self._page(data, 1, until)
        numbers = range(2, first.pages + 1)
        if not numbers:
            return joined([first])
        with ExitStack() as stack:
            threads = ThreadPoolExecutor(min(self._processes, len(numbers)), thread_name_prefix="page")
            # The pages that nobody has begun when one can't be read are left alone.
            stack.callback(threads.shutdown, cancel_futures=True)
            return joined([first, *threads.map(lambda number: self._page(data, number, until), numbers)])

    def _asked(self, data: bytes, number: int) -> Asked:
        return Asked(data, number, self._max_pages, self._engine)

    def _page(self, data: bytes, number: int, until: float | None) -> ReadPage:
        if until is not None and time.monotonic() > until:
            raise overdue()
        with self._working():
            try:
                answer = self._isolated.call(self._asked(data, number))
            except Rejected as error:
                if number == 1:
                    raise
                raise Rejected(error.code, f"Page {number}: {error.reason}") from error
        self._memory.note(answer)
        metrics.OCR_PAGES.inc()
        for stage, seconds in answer.page.seconds.items():
            metrics.OCR_STAGE_SECONDS.labels(stage).observe(seconds)
        return answer.page

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Counts a page as under way; beyond the number of engines, it waits for one."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, difference: int) -> None:
        with self._lock:
            self._under_way += difference
            metrics.OCR_ENGINES_BUSY.set(min(self._under_way, self._processes))


def overdue() -> Rejected:
    """What a document is refused with whose text did not come in time."""
    return Rejected("answer_overdue", "The text did not come in time; POST /process does not hurry.")


class _Memory:
    """What the engines hold, for the metrics: each takes the number of one that is no more."""

    def __init__(self, processes: int) -> None:
        self._lock = Lock()
        self._processes: list[int] = []
        self._most = processes

    def note(self, answer: Answer) -> None:
        with self._lock:
            if answer.process not in self._processes:
                if len(self._processes) < self._most:
                    self._processes.append(answer.process)
                else:
                    self._processes[self._replaced(self._processes)] = answer.process
            number = self._processes.index(answer.process) + 1
            metrics.OCR_ENGINE_BYTES.labels(str(number)).set(answer.resident_bytes)

    @staticmethod
    def _replaced(processes: Iterable[int]) -> int:
        return next((at for at, process in enumerate(processes) if not _lives(process)), 0)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# In the child


def read_one(asked: Asked) -> Answer:
    """One page of a document.

    Raises `Rejected` with a code of `ocr_worker.domain.documents`, and what the engine raises.
    """
    import cv2

    from ocr_worker import domain

    # Engines share the cores, and have threads of their own.
    cv2.setNumThreads(1)
    page = domain.read_page(asked.data, asked.number, _engine(asked.engine), domain.Limits(pages=asked.pages))
    return Answer(page, os.getpid(), resident())


# One per process: a shared engine gives one document's text to another, and says nothing.
@lru_cache(maxsize=1)
def _engine(choice: EngineChoice) -> Engine:
    from ocr_worker.engines import open_engine

    return open_engine(choice)
