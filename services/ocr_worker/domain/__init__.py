"""Document -> its text: the pure work.

`read_document` is the whole of it. What is where:

* `documents`: files of every kind -> pages
* `engine`: the protocol of what reads a page
* `reading_order`: boxes of a page -> the order in which people read them, and the text in that order
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace

from ocr_worker.domain.documents import LIMITS, Limits, pages_of
from ocr_worker.domain.engine import Engine, EngineBusyError, PageImage, PageText
from ocr_worker.domain.reading_order import text_of
from visionmesh.images import Page
from visionmesh.ocr_document import OcrDocument, PageSize, TextLine

__all__ = [
    "LIMITS",
    "Engine",
    "EngineBusyError",
    "Limits",
    "PageImage",
    "PageText",
    "pages_of",
    "read_document",
]


def read_document(data: bytes, engine: Engine, limits: Limits = LIMITS) -> OcrDocument:
    """The text of a picture, a PDF or a TIFF file, page after page.

    Runs native decoders on someone else's bytes, so it is made to be called in a child process. Raises
    `Rejected` with a code of `visionmesh.images` or of `documents`, and what the engine raises.
    """
    lines: list[TextLine] = []
    sizes: list[PageSize] = []
    texts: list[str] = []
    seconds: defaultdict[str, float] = defaultdict(float)
    begun = time.perf_counter()
    for number, page in enumerate(pages_of(data, limits), start=1):
        seconds["decode"] += time.perf_counter() - begun
        read = engine.read(page.picture)
        lines += (_of_page(line, page, number) for line in read.lines)
        sizes.append(PageSize(page.width, page.height))
        texts.append(text_of(read.lines))
        for stage, spent in read.seconds.items():
            seconds[stage] += spent
        begun = time.perf_counter()
    return OcrDocument(
        text="\n\n".join(texts) if any(texts) else "",
        lines=tuple(lines),
        pages=tuple(sizes),
        language=engine.language,
        engine=engine.name,
        seconds=dict(seconds),
    )


def _of_page(line: TextLine, page: Page, number: int) -> TextLine:
    """The line in the pixels of the page as it came, which may have been reduced for reading."""
    height, width = page.picture.shape[:2]
    if (width, height) == (page.width, page.height):
        return replace(line, page=number)
    polygon = tuple((x * page.width / width, y * page.height / height) for x, y in line.polygon)
    return replace(line, polygon=polygon, page=number)
