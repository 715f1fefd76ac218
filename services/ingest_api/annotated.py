"""`GET /images/{image_id}/annotated`: a picture with what was found in it drawn over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool

from visionmesh.contracts import is_image_id
from visionmesh.drawing import Asked, Drawn, Outline
from visionmesh.errors import Rejected
from visionmesh.object_store import ObjectStore
from visionmesh.results import ImageResults, Images

# Which worker finds what is drawn for a task, as it signs its outcomes.
_WORKERS: Final = {"qr": "qr-decoder", "ocr": "ocr-worker"}


def _codes(found: ImageResults) -> tuple[Outline, ...]:
    return tuple(Outline(code.corners, code.content) for code in found.codes)


def _lines(found: ImageResults) -> tuple[Outline, ...]:
    lines = () if found.document is None else found.document.lines
    return tuple(Outline(line.polygon, line.text) for line in lines if line.page == 1)


_OUTLINES: Final = {"qr": _codes, "ocr": _lines}

# Draws what is asked. Raises `Rejected`.
Draw = Callable[[Asked], Drawn]


def annotated_routes(images: Images, store: ObjectStore, draw: Draw, *, max_bytes: int) -> APIRouter:
    """max_bytes: the largest picture that is drawn on."""
    router = APIRouter(tags=["results"])
    # One at a time, from the fetching on: who waits for a turn holds neither a picture nor a thread.
    turn = asyncio.Semaphore(1)

    @router.get("/images/{image_id}/annotated", response_class=Response)
    async def annotated(image_id: str, task: Literal["qr", "ocr"] = "qr") -> Response:
        """The uploaded picture with the outlines and contents of its QR codes, or of the lines of its text
        (of the first page), as JPEG or PNG.

        409 `not_finished` while nobody has looked for them.
        """
        async with turn:
            drawn = await run_in_threadpool(drawing_of, image_id, task)
        # A replay may find other codes.
        headers = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(drawn.data, media_type=drawn.media_type, headers=headers)

    def drawing_of(image_id: str, task: str) -> Drawn:
        found = images.results(image_id) if is_image_id(image_id) else None
        if found is None or found.image is None:
            raise Rejected("image_not_found", "No uploaded image of this id is known.")
        _check_finished(found, _WORKERS[task])
        return draw(Asked(store.get(found.image.minio_path, max_bytes=max_bytes), _OUTLINES[task](found)))

    return router


def _check_finished(found: ImageResults, worker: str) -> None:
    outcome = next((each for each in found.outcomes if each.worker == worker), None)
    if outcome is None or outcome.state == "running":
        raise Rejected("not_finished", f"{worker} has not come to this picture yet.")
    if outcome.state != "done":
        raise Rejected("not_finished", f"{worker} {outcome.state} this picture: {outcome.error}")
