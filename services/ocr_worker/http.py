"""Port 8500: a document -> its text, at once or through the queue.

`POST /ocr` waits for the text; `POST /process` puts the document into the queue, and `GET /result/{task_id}`
tells what became of it. What a document is: a picture, a TIFF of many pages, a PDF.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ocr_worker.intake import Submit
from ocr_worker.load import Tally, retry_after
from ocr_worker.reading import overdue
from ocr_worker.step import TASK
from visionmesh.answers import OcrAnswer
from visionmesh.bodies import Room, received
from visionmesh.contracts import is_image_id
from visionmesh.errors import Rejected
from visionmesh.http import FORM_BYTES, create_app, error_response, told
from visionmesh.observability import metrics, tracing
from visionmesh.observability.health import Check
from visionmesh.ocr_document import OcrDocument, as_json
from visionmesh.results import Images, OutcomeRow

_BODIES: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


# Whatever is wrong with a document, or with how it comes.
_REFUSALS: Final = (400, 408, 413, 415, 422)


class TaskAnswer(BaseModel):
    task_id: str


class ReadAnswer(BaseModel):
    """Of a task that is done."""

    result: OcrAnswer


class ProcessingAnswer(BaseModel):
    """position: how many documents are ahead."""

    status: Literal["processing"]
    position: int


class FailedAnswer(BaseModel):
    status: Literal["failed"]
    error: str
    code: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What callers are held to; see the settings of these names.

    engines: documents of callers that are read at once; with 1, callers take turns.
    waiting_bytes: what the documents of all callers may take together, from when they are sent.
    """

    engines: int
    deadline_seconds: float
    waiting_limit: int
    queue_limit: int
    max_bytes: int
    waiting_bytes: int = 256 * 1024 * 1024


def make_app(
    service: str,
    read: Tally,
    *,
    submit: Submit,
    images: Images,
    lag: Callable[[], int],
    terms: Terms,
    checks: Mapping[str, Check],
) -> FastAPI:
    """lag: messages that the service's group has not finished."""
    callers = _Callers(read, terms)
    room = Room(terms.waiting_bytes, terms.max_bytes + FORM_BYTES)

    def summary() -> dict[str, float]:
        """The first design's words."""
        counts = read.counts
        return {
            "requests_total": counts.ended,
            "requests_failed": counts.failed,
            "avg_processing_time": round(counts.mean_seconds, 4),
            "queue_size": lag() + callers.waiting,
        }

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        callers.close()

    app = create_app(
        service,
        checks=checks,
        max_body_bytes=terms.max_bytes + FORM_BYTES,
        summary=summary,
        lifespan=lifespan,
    )

    @app.post(
        "/ocr",
        openapi_extra=_BODIES,
        responses=told(OcrAnswer, *_REFUSALS, 503, 504),
    )
    async def ocr(request: Request) -> Response:
        """The text of a document, as soon as it is read.

        429 `too_many_waiting` when too many callers wait already, 504 `answer_overdue` when its text did not
        come in time, its turn included.
        """
        with room.taken_by(request) as there_is_room:
            if callers.are_too_many or not there_is_room:
                return turned_away()
            return JSONResponse(as_json(await callers.read(received(request, terms.deadline_seconds))))

    def turned_away() -> Response:
        waiting = callers.waiting
        return _too_many("too_many_waiting", "Too many callers wait already.", waiting, read, terms)

    @app.post(
        "/process",
        status_code=HTTPStatus.ACCEPTED,
        openapi_extra=_BODIES,
        responses=told(TaskAnswer, *_REFUSALS, 503, status=202),
    )
    async def process(request: Request) -> Response:
        """Puts a document into the queue; answers when it is stored.

        task_id: also its image_id on ingest-api. 429 `queue_full` when the queue is too long, and
        `too_many_waiting` when too many documents come at once.
        """
        queued = lag()
        if queued > terms.queue_limit:
            return _too_many("queue_full", f"{queued} documents are in the queue.", queued, read, terms)
        with room.taken_by(request) as there_is_room:
            if not there_is_room:
                return turned_away()
            data = await received(request, terms.deadline_seconds)
            task_id = await run_in_threadpool(submit, data, tracing.current())
        return JSONResponse({"task_id": task_id}, HTTPStatus.ACCEPTED)

    @app.get(
        "/result/{task_id}",
        responses=told(ReadAnswer | ProcessingAnswer | FailedAnswer, 404, 422, 503),
    )
    def result(task_id: str) -> Response:
        """`{"result": ...}`, or a `status`: `processing` with how many documents are ahead, or `failed` with
        the reason.
        """
        if is_image_id(task_id):
            outcome = images.outcome(task_id, service)
            if outcome is not None and outcome.state == "done":
                document = images.document(task_id)
                if document is not None:
                    return JSONResponse({"result": as_json(document)})
            elif outcome is not None and outcome.state != "running":
                return JSONResponse({"status": "failed", **_reason(outcome)})
            image = images.image(task_id)
            if image is not None:
                ahead = images.waiting_before(image, service, TASK)
                return JSONResponse({"status": "processing", "position": ahead})
            if outcome is not None:
                return JSONResponse({"status": "processing", "position": 0})
        raise Rejected("not_found", "No task of this id is known.")

    return app


class _Callers:
    """Reads for those who wait for the answer: as many documents at once as there are engines, the others
    in the order in which they came.
    """

    def __init__(self, read: Tally, terms: Terms) -> None:
        self._read = read
        self._terms = terms
        self._threads = ThreadPoolExecutor(terms.engines, thread_name_prefix="caller")
        self._inside = 0

    @property
    def waiting(self) -> int:
        return max(0, self._inside - self._terms.engines)

    @property
    def are_too_many(self) -> bool:
        """Whether one more would have to wait who may not."""
        return self._inside >= self._terms.engines + self._terms.waiting_limit

    async def read(self, sent: Awaitable[bytes]) -> OcrDocument:
        """sent: the document; who still sends it has a place already.

        Raises `Rejected("answer_overdue")` when the deadline passes first; nothing more of the document is
        read then but the page that is under way.
        """
        loop = asyncio.get_running_loop()

        def ended(_: Future[OcrDocument]) -> None:
            # After the last request of the process nobody counts any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._move, -1)

        self._move(1)
        try:
            data = await sent
        except BaseException:
            self._move(-1)
            raise
        reading = self._threads.submit(self._read, data, time.monotonic() + self._terms.deadline_seconds)
        # Who is told that it took too long may leave an engine behind that still reads.
        reading.add_done_callback(ended)
        job = asyncio.wrap_future(reading)
        await asyncio.wait([job], timeout=self._terms.deadline_seconds)
        if not job.done():
            job.cancel()
            raise overdue()
        return job.result()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _move(self, callers: int) -> None:
        self._inside += callers
        metrics.OCR_WAITING.set(self.waiting)


def _too_many(code: str, said: str, ahead: int, read: Tally, terms: Terms) -> Response:
    seconds = retry_after(ahead, read.counts.mean_seconds, terms.engines)
    return error_response(
        HTTPStatus.TOO_MANY_REQUESTS,
        code,
        f"{said} Try again in {seconds} s.",
        {"Retry-After": str(seconds)},
    )


def _reason(outcome: OutcomeRow) -> dict[str, str]:
    """`code: reason`, as outcomes keep it, in the shape of an error."""
    code, _, reason = (outcome.error or "unknown: no reason is known").partition(": ")
    return {"error": reason, "code": code}
