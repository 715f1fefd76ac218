"""A document and its text -> a PDF that looks as before and can be searched.

OCRmyPDF's renderer writes the text, invisible, onto pages of its own; these are laid over those of the PDF,
or of one that is made of the picture. It all runs on someone else's bytes, so it is made to be sent to a
child process, and only there are the libraries loaded.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from ingest_api.text_files import angle_of, box_of, four_corners, pages, words_of
from visionmesh.errors import Rejected
from visionmesh.ocr_document import OcrDocument, TextLine

if TYPE_CHECKING:
    from ocrmypdf import OcrElement

_POINTS_PER_INCH: Final = 72.0

# A picture becomes a page about as long as a sheet of A4.
_LONGER_SIDE_INCHES: Final = 11.69

_JPEG_QUALITY: Final = 90

# Of the picture of a page that the PDF gets: 600 dpi of a sheet of A4.
_PIXELS_KEPT: Final = 40_000_000

# Of a line's height: what is below the baseline.
_DESCENT: Final = 0.2


@dataclass(frozen=True, slots=True)
class Asked:
    """A file and what was read in it."""

    data: bytes
    document: OcrDocument


def searchable_pdf(asked: Asked) -> bytes:
    """Raises `Rejected`: `corrupt_document` when the PDF can't be written to, and as `visionmesh.images`."""
    import pikepdf

    from visionmesh import images

    is_pdf = images.media_type(asked.data[:64]) == "application/pdf"
    data = asked.data if is_pdf else _as_pdf(asked)
    try:
        with pikepdf.open(io.BytesIO(data)) as pdf, TemporaryDirectory() as folder:
            file = Path(folder) / "text.pdf"
            _write_text(asked.document, [_width(page) for page in pdf.pages], file)
            with pikepdf.open(file) as text:
                for page, layer in zip(pdf.pages, text.pages, strict=True):
                    page.add_overlay(layer, pikepdf.Rectangle(page.cropbox))
                written = io.BytesIO()
                pdf.save(written)
    except (pikepdf.PdfError, ValueError) as error:
        raise Rejected("corrupt_document", "No text can be laid over the pages of this PDF.") from error
    return written.getvalue()


def _as_pdf(asked: Asked) -> bytes:
    """Every page of a picture file, as large as the text's coordinates say."""
    import img2pdf
    from PIL import Image

    from visionmesh import images

    def layout(width: int, height: int, _: object) -> tuple[float, float, float, float]:
        scale = _POINTS_PER_INCH * _LONGER_SIDE_INCHES / max(width, height)
        return (width * scale, height * scale, width * scale, height * scale)

    if images.media_type(asked.data[:64]) == "image/jpeg":
        try:
            # As it is, without losing anything. Behind it a camera may have put a second, smaller picture.
            return bytes(
                img2pdf.convert(
                    asked.data, layout_fun=layout, rotation=img2pdf.Rotation.ifvalid, first_frame_only=True
                )
            )
        # Whatever it does not like about a JPEG, the decoder may.
        except Exception:
            pass
    jpegs = []
    for page in images.pages(asked.data, at_most=_PIXELS_KEPT, limits=images.SCAN):
        file = io.BytesIO()
        Image.fromarray(page.picture).save(file, "JPEG", quality=_JPEG_QUALITY)
        jpegs.append(file.getvalue())
    return bytes(img2pdf.convert(jpegs, layout_fun=layout))


def _width(page: Any) -> float:
    """Of a PDF's page as it is shown, in points."""
    left, bottom, right, top = (float(each) for each in page.cropbox)
    is_turned = int(page.obj.get("/Rotate", 0)) % 180 == 90
    return abs(top - bottom) if is_turned else abs(right - left)


def _write_text(document: OcrDocument, widths: list[float], file: Path) -> None:
    """widths: of the pages, in points."""
    from ocrmypdf.font import BuiltinFontProvider, MultiFontManager
    from ocrmypdf.fpdf_renderer import Fpdf2MultiPageRenderer

    # It says which characters will be blank where a viewer marks them.
    logging.getLogger("ocrmypdf").setLevel(logging.ERROR)
    # Only the fonts of the package: what is installed on the machine makes no difference.
    fonts = MultiFontManager(font_provider=BuiltinFontProvider())
    trees = [
        (number, page, page.bbox.width * _POINTS_PER_INCH / width)
        for (number, page), width in zip(enumerate(_trees(document)), widths, strict=True)
        if page.bbox is not None
    ]
    Fpdf2MultiPageRenderer(trees, fonts).render(file)


def _trees(document: OcrDocument) -> Iterator[OcrElement]:
    """A page each, as the renderer knows them."""
    from ocrmypdf import BoundingBox, OcrClass, OcrElement

    for _, size, lines in pages(document):
        yield OcrElement(
            ocr_class=OcrClass.PAGE,
            bbox=BoundingBox(0, 0, size.width, size.height),
            children=[_tree(line) for line in lines if _has_an_area(line)],
        )


def _tree(line: TextLine) -> OcrElement:
    from ocrmypdf import Baseline, BoundingBox, OcrClass, OcrElement

    box = box_of(line.polygon)
    angle = angle_of(line)
    baseline = None
    if not angle:
        top_left, _, (right, lower), (left, low) = four_corners(line.polygon)
        slope = (lower - low) / max(1.0, right - left)
        height = math.dist(top_left, (left, low))
        baseline = Baseline(slope, low - box.bottom - _DESCENT * height)
    return OcrElement(
        ocr_class=OcrClass.LINE,
        bbox=BoundingBox(box.left, box.top, box.right, box.bottom),
        textangle=angle,
        baseline=baseline,
        children=[
            OcrElement(
                ocr_class=OcrClass.WORD,
                bbox=BoundingBox(place.left, place.top, place.right, place.bottom),
                text=word.text,
            )
            for word, place in ((word, box_of(word.corners)) for word in words_of(line))
        ],
    )


def _has_an_area(line: TextLine) -> bool:
    box = box_of(line.polygon)
    return box.right > box.left and box.bottom > box.top
