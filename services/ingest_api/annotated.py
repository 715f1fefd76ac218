"""`GET /images/{image_id}/annotated`: a picture with what was found in it drawn over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Response
from starlette.concurrency import run_in_threadpool

from visionmesh.contracts import is_image_id
from visionmesh.drawing import Asked, Drawn, Outline
from visionmesh.errors import Rejected
from visionmesh.http import errors
from visionmesh.object_store import ObjectStore
from visionmesh.results import ImageResults, Images
from visionmesh.turn import Turn

Task = Literal["qr", "ocr"]

# Which worker finds what is drawn for a task, as it signs its outcomes.
_WORKERS: Final[dict[Task, str]] = {"qr": "qr-decoder", "ocr": "ocr-worker"}


# Draws what is asked. Raises `Rejected`.
Draw = Callable[[Asked], Drawn]


def annotated_routes(
    images: Images, store: ObjectStore, draw: Draw, turn: Turn, *, max_bytes: int
) -> APIRouter:
    """turn: of who wants a drawing. max_bytes: the largest picture that is drawn on."""
    router = APIRouter(tags=["results"])

    @router.get(
        "/images/{image_id}/annotated",
        response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {}, "image/png": {}}},
            **errors(404, 409, 413, 422, 503),
        },
    )
    async def annotated(image_id: str, task: Task = "qr", page: Annotated[int, Query(ge=1)] = 1) -> Response:
        """The uploaded picture with the outlines and contents of its QR codes, or with the outlines of the
        lines of its text, as JPEG or PNG.

        page: of a document. 409 `not_finished` while nobody has looked for them, 422 `not_read` when that
        failed. 429 `too_many_waiting`.
        """
        # From the fetching on, so that who waits holds no picture.
        async with turn.taken():
            drawn = await run_in_threadpool(drawing_of, image_id, task, page)
        # A replay may find other codes.
        headers = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(drawn.data, media_type=drawn.media_type, headers=headers)

    def drawing_of(image_id: str, task: Task, page: int) -> Drawn:
        found = images.results(image_id, document=task == "ocr") if is_image_id(image_id) else None
        if found is None or found.image is None:
            raise Rejected("image_not_found", "No uploaded image of this id is known.")
        check_finished(found, task)
        data = store.get(found.image.minio_path, max_bytes=max_bytes)
        return draw(_asked_of_codes(data, found) if task == "qr" else _asked_of_text(data, found, page))

    return router


def _asked_of_codes(data: bytes, found: ImageResults) -> Asked:
    return Asked(data, tuple(Outline(code.corners, code.content) for code in found.codes))


def _asked_of_text(data: bytes, found: ImageResults, page: int) -> Asked:
    """Outlines alone: what they hold is seen in them, and between lines is no room to write it again."""
    document = found.document
    if document is None or page > len(document.pages):
        raise Rejected("not_found", f"The document has no page {page}.")
    outlines = tuple(Outline(line.polygon, "") for line in document.lines if line.page == page)
    return Asked(data, outlines, page, document.pages[page - 1].width)


def check_finished(found: ImageResults, task: Task) -> None:
    """Raises `Rejected` unless the task was done: `not_finished` when it may still be, else `not_read`."""
    worker = _WORKERS[task]
    outcome = next((each for each in found.outcomes if each.worker == worker), None)
    if outcome is None or outcome.state == "running":
        raise Rejected("not_finished", f"{worker} has not come to this picture yet.")
    if outcome.state != "done":
        raise Rejected("not_read", f"{worker} {outcome.state} this picture: {outcome.error}")
