"""Drawings and PDFs are made in children of their own, and the container has room for one that is large."""

from __future__ import annotations

import asyncio
import hashlib
from threading import Barrier, BrokenBarrierError

import httpx

from ingest_api.__main__ import compose
from visionmesh.drawing import Drawn
from visionmesh.ocr_document import OcrDocument, PageSize
from visionmesh.results import ImageRow, OcrDocumentRow, OutcomeRow
from visionmesh.settings import Settings
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.testing.object_store import MemoryObjectStore
from visionmesh.testing.results import MemoryImages, MemoryResultStore

# How long one of them is busy, in which the other could come in.
BUSY_SECONDS = 0.5


def test_a_drawing_and_a_pdf_are_not_made_at_once() -> None:
    both = Barrier(2)
    met = []

    def work() -> None:
        try:
            both.wait(BUSY_SECONDS)
            met.append("both")
        except BrokenBarrierError:
            both.reset()
            met.append("alone")

    def draw(_: object) -> Drawn:
        work()
        return Drawn(b"", "image/png")

    def make_pdf(_: object) -> bytes:
        work()
        return b""

    results, store = MemoryResultStore(), MemoryObjectStore()
    images = MemoryImages(results)
    data = b"picture"
    store.put("raw-images/a.png", [data], media_type="image/png")
    images.add_image(
        ImageRow("a", "raw-images/a.png", hashlib.sha256(data).hexdigest(), len(data), "image/png")
    )
    document = OcrDocument("", (), (PageSize(1, 1),), "es", "double")
    results.save([OcrDocumentRow("a", document), OutcomeRow("a", "ocr-worker", "done")])
    app = compose(Settings(), images, store, MemoryBroker().publisher(), draw, make_pdf, images.pending)

    async def ask() -> list[int]:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://ingest", timeout=30
        ) as client:
            paths = ("/images/a/annotated?task=ocr", "/images/a/text.pdf")
            return [each.status_code for each in await asyncio.gather(*map(client.get, paths))]

    assert asyncio.run(ask()) == [200, 200]
    assert met == ["alone", "alone"]
