"""Pictures with what was found in them drawn over."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from visionmesh import images
from visionmesh.errors import Rejected

_OUTLINE: Final = (0, 170, 0)
_FIRST_CORNER: Final = (220, 0, 0)

# Characters of a text that are written beside its outline.
_LABEL: Final = 40

# A larger page is reduced, so that the largest does not take more memory and time than a child has.
_PIXELS_DRAWN: Final = 25_000_000

_JPEG_QUALITY: Final = 90


@dataclass(frozen=True, slots=True)
class Outline:
    """A polygon in a picture, x and y in pixels, and what is written beside it, if anything."""

    corners: tuple[tuple[float, float], ...]
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture file or a document, and what is drawn on one page of it, from 1.

    width: pixels of the page that the outlines are given in. It is asked of a PDF alone, which has none.
    """

    data: bytes
    outlines: tuple[Outline, ...]
    page: int = 1
    width: int | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture file again."""

    data: bytes
    media_type: str


def outlined(picture: NDArray[np.uint8], outlines: Sequence[Outline]) -> Image.Image:
    """The picture, uint8 [height, width, 3] RGB, with each outline and its text.

    A dot marks the first corner of each.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    width = max(2, max(image.size) // 400)
    for outline in outlines:
        draw.polygon([*outline.corners], outline=_OUTLINE, width=width)
        x, y = outline.corners[0]
        draw.ellipse((x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width), fill=_FIRST_CORNER)
        if not outline.text:
            continue
        label = " ".join(outline.text.split())
        text = label if len(label) <= _LABEL else label[: _LABEL - 3] + "..."
        # Pillow's own font; what it has no shape for becomes a box, and nothing fails.
        bottom = max(corner[1] for corner in outline.corners) + 2 * width
        left = min(corner[0] for corner in outline.corners)
        size = max(12.0, max(image.size) / 60)
        box = draw.textbbox((left, bottom), text, font_size=size)
        draw.rectangle(box, fill=(255, 255, 255))
        draw.text((left, bottom), text, fill=_OUTLINE, font_size=size)
    return image


def draw_on(asked: Asked) -> Drawn:
    """The upright page with its outlines, a very large one reduced: a JPEG when the file is one, else a PNG.

    Runs native decoders on someone else's bytes, so it is made to be sent to a child process.
    Raises `Rejected` with a code of `visionmesh.images`, and `corrupt_document` of a PDF.
    """
    page = _page(asked)
    scale = page.picture.shape[1] / page.width
    image = outlined(page.picture, [_scaled(outline, scale) for outline in asked.outlines])
    file = io.BytesIO()
    if images.media_type(asked.data[:64]) == "image/jpeg":
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
        return Drawn(file.getvalue(), "image/jpeg")
    # The fastest of its compressions: somebody waits.
    image.save(file, "PNG", compress_level=1)
    return Drawn(file.getvalue(), "image/png")


def _scaled(outline: Outline, scale: float) -> Outline:
    return replace(outline, corners=tuple((x * scale, y * scale) for x, y in outline.corners))


def _page(asked: Asked) -> images.Page:
    if images.media_type(asked.data[:64]) == "application/pdf":
        return _page_of_pdf(asked)
    pages = images.pages(asked.data, at_most=_PIXELS_DRAWN, limits=images.SCAN, first=asked.page)
    page = next(pages, None)
    if page is None:
        raise Rejected("not_found", f"The file has no page {asked.page}.")
    return page


def _page_of_pdf(asked: Asked) -> images.Page:
    import pypdfium2

    from visionmesh import pdf

    try:
        with pdf.opened(asked.data) as document:
            page = document[asked.page - 1]
            width, height = page.get_size()
            scale = (asked.width or width) / width
            drawn = min(scale, math.sqrt(_PIXELS_DRAWN / (width * height)))
            return images.Page(pdf.picture_of(page, drawn), round(width * scale), round(height * scale))
    except (pypdfium2.PdfiumError, IndexError, ZeroDivisionError) as error:
        raise Rejected("corrupt_document", f"Page {asked.page} of the PDF can't be drawn.") from error
