"""What is told of a document's text, from the process that reads it to the table and to users."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line of text, as far as it belongs together: a table's row is one for each of its cells.

    polygon: at least four of x and y, in pixels of the page as it came (a picture upright by its EXIF
    orientation), clockwise from the corner where reading begins, so that text on its head is told by it.
    confidence: 0 to 1, the mean of its characters'.
    page: from 1.
    """

    text: str
    polygon: tuple[tuple[float, float], ...]
    confidence: float
    page: int = 1


@dataclass(frozen=True, slots=True)
class PageSize:
    """Pixels that a page's polygons are given in; of a PDF, those of the picture that was made of it."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class OcrDocument:
    """The text of a picture, a PDF or a TIFF.

    text: all of it in reading order: cells of a row with a space between, rows with a line feed, pages with
    an empty line. Empty when nothing is written on any page.
    lines: in reading order, pages one after another.
    pages: one for each page, also for one without text.
    language: what the engine was set to read, ISO 639-1 with plus signs between (`es+en`).
    engine: the name of the one that read it.
    seconds: by stage, over all pages: `decode` and what the engine tells of (`detect`, `recognise`, ...).
    """

    text: str
    lines: tuple[TextLine, ...]
    pages: tuple[PageSize, ...]
    language: str
    engine: str
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReadPage:
    """One page of a document, as it comes from the process that read it.

    lines: in reading order, in pixels of `size` and with the page's own number. text: their text.
    pages: how many the document has. seconds, language, engine: as in `OcrDocument`.
    """

    size: PageSize
    lines: tuple[TextLine, ...]
    text: str
    pages: int
    language: str
    engine: str
    seconds: Mapping[str, float]


def joined(pages: Sequence[ReadPage]) -> OcrDocument:
    """The document of these pages, at least one and all of them in order."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for page in pages:
        for stage, spent in page.seconds.items():
            seconds[stage] += spent
    texts = [page.text for page in pages]
    return OcrDocument(
        text="\n\n".join(texts) if any(texts) else "",
        lines=tuple(line for page in pages for line in page.lines),
        pages=tuple(page.size for page in pages),
        language=pages[0].language,
        engine=pages[0].engine,
        seconds=dict(seconds),
    )


def as_json(document: OcrDocument) -> dict[str, Any]:
    """A document as users are told of it, over HTTP and on the command line.

    seconds: the sum; by stage they are beside it.
    """
    return {
        "text": document.text,
        "lines": [_line_as_json(line) for line in document.lines],
        "pages": [{"width": page.width, "height": page.height} for page in document.pages],
        "language": document.language,
        "engine": document.engine,
        "seconds": round(sum(document.seconds.values()), 4),
        "seconds_by_stage": {stage: round(seconds, 4) for stage, seconds in document.seconds.items()},
    }


def from_json(told: Mapping[str, Any]) -> OcrDocument:
    """The document that `as_json` told of, coordinates to a tenth of a pixel. Raises KeyError of a gap."""
    return OcrDocument(
        text=told["text"],
        lines=tuple(
            TextLine(
                text=line["text"],
                polygon=tuple((float(x), float(y)) for x, y in line["polygon"]),
                confidence=line["confidence"],
                page=line["page"],
            )
            for line in told["lines"]
        ),
        pages=tuple(PageSize(page["width"], page["height"]) for page in told["pages"]),
        language=told["language"],
        engine=told["engine"],
        seconds=dict(told["seconds_by_stage"]),
    )


def _line_as_json(line: TextLine) -> dict[str, Any]:
    return {
        "text": line.text,
        "polygon": [[round(x, 1), round(y, 1)] for x, y in line.polygon],
        "confidence": round(line.confidence, 4),
        "page": line.page,
    }
