"""`DELETE /images/{image_id}`."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from ingest_api.answers import DeletingAnswer
from visionmesh.contracts import is_image_id
from visionmesh.deletion import Eraser
from visionmesh.errors import Rejected
from visionmesh.http import told


def deletion_routes(eraser: Eraser) -> APIRouter:
    """Deletes pictures and all that is known of them."""
    router = APIRouter(tags=["images"])

    @router.delete(
        "/images/{image_id}", status_code=204, responses=told(DeletingAnswer, 404, 422, 503, status=202)
    )
    def delete(image_id: str) -> Response:
        """Deletes the picture, everything that was found in it, and what is cached of it; 204, again as well.

        Workers that still have it bring nothing back, and the id is not taken again. 202 while the object
        store is away: no answer tells of the picture any more, and its object goes when the store is back.
        """
        erased = eraser.erase([image_id]) if is_image_id(image_id) else {}
        if image_id not in erased:
            raise Rejected("image_not_found", "No image of this id is known.")
        if not erased[image_id]:
            return JSONResponse({"image_id": image_id, "status": "deleting"}, status_code=202)
        return Response(status_code=204)

    return router
