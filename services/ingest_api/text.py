"""`GET /images/{image_id}/text.pdf` and its like: what was read of a document, as a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool

from ingest_api.annotated import check_finished
from ingest_api.searchable_pdf import Asked
from ingest_api.text_files import alto, hocr
from visionmesh.contracts import is_image_id
from visionmesh.errors import Rejected
from visionmesh.http import errors
from visionmesh.object_store import ObjectStore
from visionmesh.ocr_document import OcrDocument
from visionmesh.results import ImageResults, Images
from visionmesh.turn import Turn

Kind = Literal["txt", "hocr", "alto.xml", "pdf"]

_MEDIA_TYPES: Final[dict[Kind, str]] = {
    "txt": "text/plain; charset=utf-8",
    # A reader of hOCR is a reader of HTML, and browsers show it.
    "hocr": "text/html; charset=utf-8",
    "alto.xml": "application/xml",
    "pdf": "application/pdf",
}

# Makes the PDF of a file and its text. Raises `Rejected`.
MakePdf = Callable[[Asked], bytes]


def text_routes(
    images: Images, store: ObjectStore, make_pdf: MakePdf, turn: Turn, *, max_bytes: int
) -> APIRouter:
    """turn: of who wants a PDF. max_bytes: the largest file that one is made of."""
    router = APIRouter(tags=["results"])

    @router.get(
        "/images/{image_id}/text.{kind}",
        response_class=Response,
        responses={
            200: {"content": {media_type.partition(";")[0]: {} for media_type in _MEDIA_TYPES.values()}},
            **errors(404, 409, 413, 422, 503),
        },
    )
    async def text(image_id: str, kind: Kind) -> Response:
        """What was read: as plain text, as hOCR, as ALTO 4, or as the document itself with the text laid over
        it, unseen, so that it can be searched (PDF).

        409 `not_finished` while nobody has read it, 422 `not_read` when that failed. 429
        `too_many_waiting` of PDFs.
        """
        if kind == "pdf":
            # From the fetching on, so that who waits holds no file.
            async with turn.taken():
                data = await run_in_threadpool(pdf_of, image_id)
        else:
            data = await run_in_threadpool(file_of, image_id, kind)
        headers = {
            "Content-Disposition": f'inline; filename="{image_id}.{kind}"',
            # A replay may find other words.
            "Cache-Control": "private, no-cache",
            "X-Content-Type-Options": "nosniff",
        }
        return Response(data, media_type=_MEDIA_TYPES[kind], headers=headers)

    def file_of(image_id: str, kind: Kind) -> bytes:
        document, _ = found(image_id)
        if kind == "txt":
            return document.text.encode()
        return (hocr if kind == "hocr" else alto)(document, image_id)

    def pdf_of(image_id: str) -> bytes:
        document, results = found(image_id)
        if results.image is None:
            raise Rejected("image_not_found", "No uploaded image of this id is known.")
        return make_pdf(Asked(store.get(results.image.minio_path, max_bytes=max_bytes), document))

    def found(image_id: str) -> tuple[OcrDocument, ImageResults]:
        results = images.results(image_id) if is_image_id(image_id) else None
        if results is None:
            raise Rejected("image_not_found", "No image of this id is known.")
        check_finished(results, "ocr")
        if results.document is None:
            raise Rejected("not_read", "The text of this picture was not kept.")
        return results.document, results

    return router
