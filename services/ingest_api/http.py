"""The routes on port 8001: pictures in, results out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

import msgspec
import structlog
from fastapi import APIRouter, Query, Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from ingest_api.answers import (
    AcceptedAnswer,
    ImageAnswer,
    ImagesAnswer,
    PredictionsAnswer,
    ResultsAnswer,
    UploadsAnswer,
)
from ingest_api.domain import (
    accepted_answer,
    image_answer,
    page_answer,
    predictions_answer,
    read_cursor,
    results_answer,
)
from ingest_api.intake import Intake
from ingest_api.upload import UploadedFile, UploadForm
from visionmesh.answers import IMAGE_ID
from visionmesh.consensus import Fitted
from visionmesh.contracts import TASKS, is_image_id
from visionmesh.errors import Rejected, Unavailable
from visionmesh.http import error_of, errors, status_of, told
from visionmesh.object_store import ObjectStore
from visionmesh.observability import metrics, tracing
from visionmesh.results import ImageResults, ImageRow, Images
from visionmesh.topics import CLASSIFIERS

log = structlog.get_logger()

# A client that sends nothing for this long is gone, or plays for time.
_STALL_SECONDS: Final = 30.0

_MAX_PAGE: Final = 500

# In the words of OpenAPI, what an upload consists of.
_ONE_TASK: Final = f"({'|'.join(TASKS)})"
_TASKS: Final = {
    "type": "string",
    "pattern": f"^{_ONE_TASK}(,{_ONE_TASK})*$",
    "description": "what to look for, with commas between; everything when nothing is named",
}
_FILE: Final = {"type": "string", "format": "binary"}
_UPLOAD: Final[dict[str, Any]] = {
    "parameters": [
        {"name": "image_id", "in": "query", "schema": IMAGE_ID},
        {"name": "tasks", "in": "query", "schema": _TASKS},
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"anyOf": [_FILE, {"type": "array", "items": _FILE}]},
                        "image_id": IMAGE_ID,
                        "tasks": _TASKS,
                    },
                }
            }
        },
    },
}


def upload_routes(intake: Intake, *, max_files: int) -> APIRouter:
    """`POST /upload`. max_files: most files in one request."""
    router = APIRouter(tags=["upload"])

    @router.post(
        "/upload",
        status_code=202,
        openapi_extra=_UPLOAD,
        responses=told(AcceptedAnswer)
        | told(AcceptedAnswer | UploadsAnswer, 400, 408, 409, 410, 413, 415, 422, 503, status=202),
    )
    async def upload(request: Request) -> Response:
        """Takes pictures: multipart fields `file` (one or several), `tasks`, `image_id`.

        `tasks` and `image_id` may also stand in the query. One file: its answer, 202, or 200 when the
        same picture came before under the same image_id. Several: an answer for each in `uploads`, 202
        when at least one was accepted.
        """
        form = UploadForm(
            intake,
            image_ids=request.query_params.getlist("image_id"),
            tasks=request.query_params.getlist("tasks"),
            headers=tracing.to_headers(tracing.current()),
            max_files=max_files,
        )
        try:
            files = await form.take(request.headers.get("content-type", ""), _body(request))
        except Exception as error:
            # A form that its client spoiled is no file; any other end is the mesh's, and counts as one.
            if not isinstance(error, Rejected) or _refused_as(error) == "failed":
                metrics.UPLOADS.labels("failed").inc()
            raise
        for file in files:
            _count(file)
            if isinstance(file.error, Unavailable):
                _tell(file.error, form.image_id)
        return _one(files[0]) if len(files) == 1 else _several(files)

    return router


def result_routes(
    images: Images,
    store: ObjectStore,
    *,
    classifiers: Sequence[str] = CLASSIFIERS,
    fitted: Fitted | None = None,
) -> APIRouter:
    """What is known of pictures. classifiers: the workers that results wait for. fitted: the weights of the
    consensus.
    """
    router = APIRouter(tags=["results"])

    @router.get("/predictions/{image_id}", responses=told(PredictionsAnswer, 404, 422, 503))
    def predictions(image_id: str) -> Response:
        """What the classifiers say, what they agree on, and how far they are: `processing`, `done` or
        `failed`.
        """
        return _json(predictions_answer(image_id, found(image_id, document=False), classifiers, fitted))

    @router.get("/results/{image_id}", responses=told(ResultsAnswer, 404, 422, 503))
    def results(image_id: str) -> Response:
        """Everything that is known of an image, its descriptors included."""
        return _json(results_answer(image_id, found(image_id), classifiers, fitted))

    @router.get("/images", responses=told(ImagesAnswer, 400, 422, 503))
    def listing(limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 50, before: str | None = None) -> Response:
        """The uploaded pictures, newest first. before: the `next` of the page before."""
        cursor = None if before is None else read_cursor(before)
        return _json(page_answer(images.images(limit=limit, before=cursor), limit))

    @router.get("/images/{image_id}", responses=told(ImageAnswer, 404, 422, 503))
    def image(image_id: str) -> Response:
        """What was uploaded."""
        return _json(image_answer(uploaded(image_id)))

    @router.get(
        "/images/{image_id}/content",
        response_class=Response,
        responses={
            200: {"content": {"image/*": {}, "application/pdf": {}}},
            304: {"description": "`If-None-Match` names the picture: the client has it"},
            **errors(404, 413, 422, 503),
        },
    )
    def content(image_id: str, request: Request) -> Response:
        """The picture itself."""
        row = uploaded(image_id)
        kept = {"ETag": f'"{row.sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
        if _is_known(request, kept["ETag"]):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=kept)
        stream = store.stream(row.minio_path)
        return StreamingResponse(
            stream.pieces,
            media_type=row.media_type,
            headers=({} if stream.length is None else {"Content-Length": str(stream.length)})
            | kept
            | {
                # The type was told from the bytes; a browser need not guess again.
                "X-Content-Type-Options": "nosniff",
            },
        )

    def found(image_id: str, *, document: bool = True) -> ImageResults:
        known = images.results(image_id, document=document) if is_image_id(image_id) else None
        if known is None:
            raise _unknown()
        return known

    def uploaded(image_id: str) -> ImageRow:
        known = images.image(image_id) if is_image_id(image_id) else None
        if known is None:
            raise _unknown()
        return known

    return router


def _is_known(request: Request, etag: str) -> bool:
    """Whether the client says that it has what bears this tag."""
    tags = (tag.strip() for tag in request.headers.get("if-none-match", "").split(","))
    return any(tag.removeprefix("W/") in (etag, "*") for tag in tags)


async def _body(request: Request) -> AsyncIterator[bytes]:
    """The body of a request, piece by piece. Raises `Rejected` when it ends or stops too early."""
    pieces = request.stream()
    while True:
        try:
            async with asyncio.timeout(_STALL_SECONDS):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except ClientDisconnect as error:
            raise Rejected("truncated_body", "The request ends before its form does.") from error
        except TimeoutError as error:
            raise Rejected("upload_stalled", f"No byte came for {_STALL_SECONDS:g} seconds.") from error
        yield piece


def _one(file: UploadedFile) -> Response:
    if file.accepted is None:
        assert file.error is not None, "a file is accepted or has an error"
        return error_of(file.error)
    return _json(accepted_answer(file.accepted.image), 202 if file.accepted.created else 200)


def _several(files: list[UploadedFile]) -> Response:
    uploads = [{"file": file.filename} | _outcome(file) for file in files]
    first = files[0].error
    if first is None or any(file.accepted for file in files):
        return _json({"uploads": uploads}, 202)
    refusal = error_of(first)
    answer = _json(msgspec.json.decode(refusal.body) | {"uploads": uploads}, refusal.status_code)
    if "retry-after" in refusal.headers:
        answer.headers["retry-after"] = refusal.headers["retry-after"]
    return answer


def _outcome(file: UploadedFile) -> dict[str, Any]:
    if file.accepted is not None:
        return accepted_answer(file.accepted.image)
    assert file.error is not None, "a file is accepted or has an error"
    return {"status": _refused_as(file.error), **msgspec.json.decode(error_of(file.error).body)}


def _refused_as(error: Rejected | Unavailable) -> Literal["rejected", "failed"]:
    """`rejected` for a fault of the client's, `failed` for one of the mesh, such as too many uploads."""
    return "failed" if status_of(error) >= HTTPStatus.INTERNAL_SERVER_ERROR else "rejected"


def _count(file: UploadedFile) -> None:
    if file.accepted is None:
        assert file.error is not None, "a file is accepted or has an error"
        metrics.UPLOADS.labels(_refused_as(file.error)).inc()
    elif file.accepted.created:
        metrics.UPLOADS.labels("accepted").inc()
        metrics.UPLOAD_BYTES.inc(file.accepted.image.bytes)
    else:
        metrics.UPLOADS.labels("duplicate").inc()


def _tell(error: Unavailable, image_id: str | None) -> None:
    """Logs which server failed an upload, and why. image_id: the client's own; nobody knows another yet."""
    named = {} if image_id is None else {"image_id": image_id}
    log.warning("unavailable", **named, server=error.server, reason=error.reason)


def _unknown() -> Rejected:
    return Rejected("image_not_found", "No image of this id is known.")


def _json(answer: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type="application/json")
