"""Document -> its text: the pure work.

`read_document` is the whole of it, `read_page` the part that is done at a time. What is where:

* `documents`: files of every kind -> pages
* `engine`: the protocol of what reads a page
* `reading_order`: boxes of a page -> the order in which people read them, and the text in that order
* `rapidocr_engine`: the default engine; its stages are `detection`, `upright`, `crops`, `recognition`, its
  networks come by `models`, and what they may answer with is in `alphabet` and `letters`
* `paddleocr_engine`: PaddleOCR itself
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ocr_worker.domain.documents import LIMITS, DocumentPage, Limits, pages_of
from ocr_worker.domain.engine import Engine, EngineBusyError, PageImage, PageText
from ocr_worker.domain.reading_order import text_of
from visionmesh.ocr_document import OcrDocument, PageSize, ReadPage, TextLine, joined

__all__ = [
    "LIMITS",
    "Engine",
    "EngineBusyError",
    "Limits",
    "PageImage",
    "PageText",
    "open_engine",
    "pages_of",
    "read_document",
    "read_page",
]


def open_engine(name: str, language: str, *, threads: int = 1, folder: Path | None = None) -> Engine:
    """The engine of a name, `rapidocr` or `paddleocr`; loading it takes a second or several.

    folder: of PaddleOCR's models. Raises `ValueError` of a name or a language that it does not know,
    `ImportError` and `RuntimeError` where something that it needs is not there.
    """
    if name == "rapidocr":
        from ocr_worker.domain.rapidocr_engine import RapidOcr

        return RapidOcr(language, threads=threads)
    if name == "paddleocr":
        from ocr_worker.domain.paddleocr_engine import PaddleOcr

        return PaddleOcr(language, threads=threads, folder=folder)
    raise ValueError(f"There is no engine {name!r}; there are rapidocr and paddleocr.")


def read_document(data: bytes, engine: Engine, limits: Limits = LIMITS) -> OcrDocument:
    """The text of a picture, a PDF or a TIFF file, page after page.

    Runs native decoders on someone else's bytes, so it is made to be called in a child process. Raises
    `Rejected` with a code of `visionmesh.images` or of `documents`, and what the engine raises.
    """
    pages = pages_of(data, limits)
    first = _read(pages, 1, engine)
    return joined([first, *(_read(pages, number, engine) for number in range(2, first.pages + 1))])


def read_page(data: bytes, number: int, engine: Engine, limits: Limits = LIMITS) -> ReadPage:
    """One page of a file, counted from 1. Raises as `read_document` does."""
    return _read(pages_of(data, limits, first=number), number, engine)


def _read(pages: Iterator[DocumentPage], number: int, engine: Engine) -> ReadPage:
    begun = time.perf_counter()
    page = next(pages)
    decoding = time.perf_counter() - begun
    read = engine.read(page.picture)
    return ReadPage(
        size=PageSize(page.width, page.height),
        lines=tuple(_of_page(line, page, number) for line in read.lines),
        text=text_of(read.lines),
        pages=page.pages,
        language=engine.language,
        engine=engine.name,
        seconds={"decode": decoding, **read.seconds},
    )


def _of_page(line: TextLine, page: DocumentPage, number: int) -> TextLine:
    """The line in the pixels of the page as it came, which may have been reduced for reading."""
    height, width = page.picture.shape[:2]
    if (width, height) == (page.width, page.height):
        return replace(line, page=number)
    polygon = tuple((x * page.width / width, y * page.height / height) for x, y in line.polygon)
    return replace(line, polygon=polygon, page=number)
