"""Files -> pages: pictures, TIFFs of many pages, PDFs.

Beside the codes of `visionmesh.images`, a document is refused with one of these:

* `encrypted_document`: a PDF that asks for a password
* `corrupt_document`: a PDF that can't be opened, or a page of it that can't be drawn
* `too_many_pages`
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium
from numpy.typing import NDArray

from visionmesh import images, pdf
from visionmesh.errors import Rejected

_POINTS_PER_INCH: Final = 72.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a document may take.

    pages: of one file. bytes: of the file.
    pixels: of one page.
    pixels_kept: a larger page is reduced to at most this before it is read. At 40 million the page is 120 MB.
    dots_per_inch: at which a page of a PDF is drawn, unless it would have more than `pixels_kept`.
    """

    pages: int = 200
    bytes: int = images.SCAN.bytes
    pixels: int = images.SCAN.pixels
    pixels_kept: int = 40_000_000
    dots_per_inch: float = 200.0


LIMITS: Final = Limits()


class DocumentPage(NamedTuple):
    """`images.Page`, and how many pages its file has."""

    picture: NDArray[np.uint8]
    width: int
    height: int
    pages: int


def pages_of(data: bytes, limits: Limits = LIMITS, *, first: int = 1) -> Iterator[DocumentPage]:
    """The pages of a file, one at a time, so that only one of them is in memory.

    first: the page to begin with, from 1; those before it cost nothing. The page of a PDF has the size that
    it was drawn at. Raises `Rejected`, also between pages; a file with too many is refused before the first.
    """
    return _pdf(data, limits, first) if _is_pdf(data) else _pictures(data, limits, first)


def _is_pdf(data: bytes) -> bool:
    return images.media_type(data[:64]) == "application/pdf"


def _pictures(data: bytes, limits: Limits, first: int) -> Iterator[DocumentPage]:
    of_picture = images.Limits(bytes=limits.bytes, pixels=limits.pixels)
    count = images.page_count(data, limits=of_picture)
    _check_count(count, limits)
    for page in images.pages(data, at_most=limits.pixels_kept, limits=of_picture, first=first):
        yield DocumentPage(*page, count)


def _opened(data: bytes, limits: Limits) -> pypdfium2.PdfDocument:
    if len(data) > limits.bytes:
        raise Rejected("too_many_bytes", f"The file has {len(data)} bytes; at most {limits.bytes} are taken.")
    try:
        document = pdf.opened(data)
    except pypdfium2.PdfiumError as error:
        raise _unopened(error) from error
    try:
        _check_count(len(document), limits)
    except Rejected:
        document.close()
        raise
    return document


def _pdf(data: bytes, limits: Limits, first: int) -> Iterator[DocumentPage]:
    with _opened(data, limits) as document:
        for number in range(first - 1, len(document)):
            try:
                yield DocumentPage(*_drawn(document[number], limits), len(document))
            except pypdfium2.PdfiumError as error:
                raise Rejected("corrupt_document", f"Page {number + 1} of the PDF can't be drawn.") from error


def _unopened(error: pypdfium2.PdfiumError) -> Rejected:
    if error.err_code in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY):
        return Rejected("encrypted_document", "The PDF asks for a password, so it can't be read.")
    return Rejected("corrupt_document", "The file begins like a PDF but can't be opened as one.")


def _check_count(pages: int, limits: Limits) -> None:
    if pages > limits.pages:
        raise Rejected(
            "too_many_pages", f"The document has {pages} pages; at most {limits.pages} are taken in one file."
        )


def _drawn(page: pypdfium2.PdfPage, limits: Limits) -> images.Page:
    width, height = page.get_size()
    scale = limits.dots_per_inch / _POINTS_PER_INCH
    if width * height > 0:
        scale = min(scale, math.sqrt(limits.pixels_kept / (width * height)))
    picture = pdf.picture_of(page, scale)
    page.close()
    return images.Page(picture, picture.shape[1], picture.shape[0])
