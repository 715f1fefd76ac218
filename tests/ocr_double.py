"""An engine that reads nothing: what it says of a page is made of the page's own pixels.

Pictures of the services' tests are `page(word)`: their first pixels spell the word out, so that every answer
can be told from every other. Some words make the engine misbehave.
"""

from __future__ import annotations

import ctypes
import io
import os
import time
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ocr_worker import domain
from ocr_worker.domain import PageImage, PageText
from ocr_worker.reading import Answer, Asked, EngineChoice
from visionmesh.errors import Rejected, Unavailable
from visionmesh.isolated_child import resident
from visionmesh.ocr_document import TextLine

CHOICE = EngineChoice("double", "es+en", 1)

WIDTH, HEIGHT = 300, 120


def picture(text: str, width: int = WIDTH) -> Image.Image:
    """The letters of `text` as the brightness of the first row's pixels; white is the end."""
    pixels = np.full((HEIGHT, width), 255, np.uint8)
    spelt = list(text.encode("latin-1"))
    pixels[0, : len(spelt)] = spelt
    return Image.fromarray(pixels)


def page(text: str, kind: str = "PNG") -> bytes:
    return pages(text, kind=kind)


def pages(*texts: str, kind: str = "TIFF") -> bytes:
    """A file with a page for each text. kind: TIFF, or of one page PNG."""
    first, *others = [picture(text) for text in texts]
    file = io.BytesIO()
    more = {"save_all": True, "append_images": others} if kind == "TIFF" else {}
    first.save(file, kind, **more)
    return file.getvalue()


class DoubleEngine:
    """Two lines for each page: the word, and how large the page is. A page without a word has none."""

    name = "double"
    language = "es+en"

    def read(self, page: PageImage) -> PageText:
        row = page[0, :, 0]
        text = bytes(row[: int(np.argmax(row == 255))]).decode("latin-1")
        misbehave(text)
        height, width = page.shape[:2]
        told = [text, f"{width} x {height}"] if text else []
        lines = [
            TextLine(each, ((5, y), (95, y), (95, y + 10), (5, y + 10)), 0.9)
            for y, each in zip((10.0, 30.0), told, strict=False)
        ]
        return PageText(lines, {"detect": 0.001, "recognise": 0.002})


_kept: list[bytes] = []


def misbehave(text: str) -> None:
    """`crash`, `hang`, `reject`, `away`, `bug`, `keep N` (MiB), `wait FILE` (for it to be there)."""
    what, _, argument = text.partition(" ")
    if what == "crash":
        ctypes.string_at(0)
    elif what == "hang":
        ctypes.CDLL(None).sleep(60)
    elif what == "reject":
        raise Rejected("unreadable_page", "The engine does not like it.")
    elif what == "away":
        raise Unavailable("paddlex", "connection refused")
    elif what == "bug":
        raise KeyError("a bug")
    elif what == "keep":
        _kept.append(b"\1" * (1024 * 1024 * int(argument)))
    elif what == "wait":
        while not Path(argument).exists():
            time.sleep(0.01)


@cache
def _engine() -> DoubleEngine:
    return DoubleEngine()


def read_by_double(asked: Asked) -> Answer:
    """`ocr_worker.reading.read_one` with this engine."""
    read = domain.read_page(asked.data, asked.number, _engine(), domain.Limits(pages=asked.pages))
    return Answer(read, os.getpid(), resident())
