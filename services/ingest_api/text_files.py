"""The text of a document with its places, in the formats that libraries and archives read.

* hOCR 1.2, as HTML: http://kba.github.io/hocr-spec/1.2/
* ALTO 4: https://www.loc.gov/standards/alto/

Engines tell where lines are and not words. A word's place is taken from its line, as if all characters were
of one width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from visionmesh.ocr_document import OcrDocument, PageSize, TextLine

Point = tuple[float, float]

_ALTO: Final = "http://www.loc.gov/standards/alto/ns-v4#"
_XHTML: Final = "http://www.w3.org/1999/xhtml"
_SYSTEM: Final = "visionmesh"

# What no XML may have (XML 1.0, section 2.2).
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Box:
    """What encloses something, in whole pixels."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a line and its corners, in the order of the line's."""

    text: str
    corners: tuple[Point, ...]


def hocr(document: OcrDocument, title: str) -> bytes:
    """title: of the document."""
    html = Element("html", {"xmlns": _XHTML, "lang": _first_language(document)})
    head = SubElement(html, "head")
    SubElement(head, "title").text = _xml(title)
    SubElement(head, "meta", {"charset": "utf-8"})
    SubElement(head, "meta", {"name": "ocr-system", "content": f"{_SYSTEM} {document.engine}"})
    capabilities = "ocr_page ocr_par ocr_line ocrx_word ocrp_poly ocrp_wconf"
    SubElement(head, "meta", {"name": "ocr-capabilities", "content": capabilities})
    body = SubElement(html, "body")
    for number, size, lines in pages(document):
        place = f"bbox 0 0 {size.width} {size.height}; ppageno {number - 1}"
        page = SubElement(body, "div", {"class": "ocr_page", "id": f"page_{number}", "title": place})
        if lines:
            place = _bbox(_enclosing(lines))
            block = SubElement(page, "p", {"class": "ocr_par", "id": f"par_{number}", "title": place})
            for row, line in enumerate(lines, 1):
                _hocr_line(block, line, f"{number}_{row}")
    written: bytes = ElementTree.tostring(html, encoding="utf-8")
    return b"<!DOCTYPE html>\n" + written


def _hocr_line(block: Element, line: TextLine, name: str) -> None:
    confidence = round(100 * line.confidence)
    polygon = " ".join(f"{round(x)} {round(y)}" for x, y in line.polygon)
    place = f"{_bbox(box_of(line.polygon))}; poly {polygon}; x_wconf {confidence}"
    angle = angle_of(line)
    if angle:
        place += f"; textangle {angle:.1f}"
    span = SubElement(block, "span", {"class": "ocr_line", "id": f"line_{name}", "title": place})
    for number, word in enumerate(words_of(line), 1):
        place = f"{_bbox(box_of(word.corners))}; x_wconf {confidence}"
        told = SubElement(span, "span", {"class": "ocrx_word", "id": f"word_{name}_{number}", "title": place})
        told.text = _xml(word.text)
        told.tail = " "
    span.tail = "\n"


def alto(document: OcrDocument, title: str) -> bytes:
    """title: of the document, as the name of its file."""
    root = Element("alto", {"xmlns": _ALTO})
    description = SubElement(root, "Description")
    SubElement(description, "MeasurementUnit").text = "pixel"
    source = SubElement(description, "sourceImageInformation")
    SubElement(source, "fileName").text = _xml(title)
    processing = SubElement(description, "Processing", {"ID": "ocr"})
    software = SubElement(processing, "processingSoftware")
    SubElement(software, "softwareName").text = f"{_SYSTEM} {document.engine}"
    layout = SubElement(root, "Layout")
    language = _first_language(document)
    for number, size, lines in pages(document):
        whole = {"HEIGHT": str(size.height), "WIDTH": str(size.width)}
        page = SubElement(layout, "Page", {"ID": f"page_{number}", "PHYSICAL_IMG_NR": str(number), **whole})
        space = SubElement(page, "PrintSpace", {"HPOS": "0", "VPOS": "0", **whole})
        if lines:
            place = {"LANG": language, **_place(_enclosing(lines))}
            block = SubElement(space, "TextBlock", {"ID": f"block_{number}", **place})
            for row, line in enumerate(lines, 1):
                _alto_line(block, line, f"{number}_{row}")
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def _alto_line(block: Element, line: TextLine, name: str) -> None:
    told = SubElement(block, "TextLine", {"ID": f"line_{name}", **_place(box_of(line.polygon))})
    points = " ".join(f"{round(x)},{round(y)}" for x, y in line.polygon)
    SubElement(SubElement(told, "Shape"), "Polygon", {"POINTS": points})
    for number, word in enumerate(words_of(line), 1):
        if number > 1:
            SubElement(told, "SP")
        SubElement(
            told,
            "String",
            {
                "ID": f"string_{name}_{number}",
                "CONTENT": _xml(word.text),
                "WC": f"{line.confidence:.2f}",
                **_place(box_of(word.corners)),
            },
        )


def pages(document: OcrDocument) -> Iterator[tuple[int, PageSize, list[TextLine]]]:
    """Each page with its number, from 1, and its lines."""
    lines = {number: list(group) for number, group in groupby(document.lines, key=lambda line: line.page)}
    for number, size in enumerate(document.pages, 1):
        yield number, size, lines.get(number, [])


def words_of(line: TextLine) -> list[Word]:
    """The words of a line between white space."""
    top_left, top_right, bottom_right, bottom_left = four_corners(line.polygon)
    length = max(1, len(line.text))
    found = []
    for match in re.finditer(r"\S+", line.text):
        begin, end = match.start() / length, match.end() / length
        corners = (
            _between(top_left, top_right, begin),
            _between(top_left, top_right, end),
            _between(bottom_left, bottom_right, end),
            _between(bottom_left, bottom_right, begin),
        )
        found.append(Word(match[0], corners))
    return found


def four_corners(polygon: Sequence[Point]) -> tuple[Point, Point, Point, Point]:
    """Clockwise from where reading begins; of a polygon with more, those at its ends."""
    half = len(polygon) // 2
    return polygon[0], polygon[half - 1], polygon[half], polygon[-1]


def angle_of(line: TextLine) -> float:
    """Degrees that the line is turned counter-clockwise, -180 to 180; 0 for what only is not quite level."""
    (x, y), (right, lower), *_ = four_corners(line.polygon)
    angle = math.degrees(math.atan2(y - lower, right - x))
    return angle if abs(angle) > _LEVEL_DEGREES else 0.0


# Up to here a line is one that is across and slants; from here on it stands on its end or on its head.
_LEVEL_DEGREES: Final = 45.0


def box_of(points: Sequence[Point]) -> Box:
    across, down = [x for x, _ in points], [y for _, y in points]
    return Box(
        max(0, math.floor(min(across))),
        max(0, math.floor(min(down))),
        max(0, math.ceil(max(across))),
        max(0, math.ceil(max(down))),
    )


def _enclosing(lines: Sequence[TextLine]) -> Box:
    return box_of([point for line in lines for point in line.polygon])


def _between(one: Point, other: Point, part: float) -> Point:
    return one[0] + (other[0] - one[0]) * part, one[1] + (other[1] - one[1]) * part


def _bbox(box: Box) -> str:
    return f"bbox {box.left} {box.top} {box.right} {box.bottom}"


def _place(box: Box) -> dict[str, str]:
    return {
        "HPOS": str(box.left),
        "VPOS": str(box.top),
        "WIDTH": str(box.right - box.left),
        "HEIGHT": str(box.bottom - box.top),
    }


def _first_language(document: OcrDocument) -> str:
    return document.language.partition("+")[0]


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
