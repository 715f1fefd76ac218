"""The engine `rapidocr`: PP-OCR's networks from the wheel of rapidocr, in a cascade of our own.

Detection at the size that the text asks for, the page turned upright, lines cut out level and read in batches
of one width. What each stage saves is told in its module.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ocr_worker.domain import models, upright
from ocr_worker.domain.alphabet import Alphabet
from ocr_worker.domain.crops import crops_of, cut
from ocr_worker.domain.detection import NO_BOXES, Boxes, Detection, detect, heights_of, run_upright
from ocr_worker.domain.engine import OnePageAtATime, PageImage, PageText
from ocr_worker.domain.letters import LETTERS
from ocr_worker.domain.reading_order import reading_order
from ocr_worker.domain.recognition import LineImage, Recognised, recognise
from visionmesh.ocr_document import TextLine

NAME: Final = "rapidocr"

_DETECTOR: Final = "PP-OCRv6_det_small.onnx"
_RECOGNISER: Final = "PP-OCRv6_rec_small.onnx"


@dataclass(frozen=True, slots=True)
class Settings:
    """How the engine reads.

    first_side: the longer side of the picture that text is first looked for in, in pixels.
    text_height: of the boxes, in the picture that text is looked for in: where the median is lower than the
    first, it is looked for again in a larger picture, in which it is the second.
    most_pixels: of that picture; a million are 0.25 s and 150 MB.
    confidence: below which a line is taken for something else than text.
    """

    first_side: int = 640
    text_height: tuple[float, float] = (26.0, 30.0)
    most_pixels: int = 3_000_000
    confidence: float = 0.5
    detection: Detection = field(default_factory=Detection)


class RapidOcr:
    """An `Engine`. Not for several threads: it says so when it is asked for two pages at once."""

    name = NAME

    def __init__(
        self, language: str = "es+en", *, threads: int = 1, settings: Settings | None = None
    ) -> None:
        """Loads the networks: about half a second, and 150 MB.

        Raises `UnknownLanguageError`, and `ModelsMissingError` where rapidocr is not installed.
        """
        alphabet = Alphabet(language)
        self.language = language
        self._settings = settings or Settings()
        self._detector = models.session_of(models.loaded(models.bundled(_DETECTOR)), threads)
        recogniser = models.loaded(models.bundled(_RECOGNISER))
        self._characters = models.only(recogniser, alphabet.__contains__)
        for letter, weights in LETTERS.items():
            if letter in alphabet:
                models.with_letter(recogniser, weights)
                self._characters.append(letter)
        self._recogniser = models.session_of(recogniser, threads)
        self._one = OnePageAtATime()

    def read(self, page: PageImage) -> PageText:
        """See `Engine`."""
        with self._one:
            return self._read(page)

    def _read(self, page: PageImage) -> PageText:
        clock = _Clock()
        seen, boxes, quarters = self._found(page)
        clock.ended("detect")
        boxes = boxes[reading_order(boxes)]
        crops = crops_of(seen, boxes)
        clock.ended("crop")
        texts = self._recognised(crops)
        if upright.is_on_its_head(crops, texts, self._recognised):
            quarters += 2
            boxes = upright.turned_over(boxes, seen.shape[1], seen.shape[0])
            boxes = boxes[reading_order(boxes)]
            crops = crops_of(upright.turned(seen, 2), boxes)
            texts = self._recognised(crops)
        height, width = page.shape[:2]
        places = upright.turned_back(boxes, quarters, width, height)
        lines = [
            TextLine(cell.text, tuple((float(x), float(y)) for x, y in place), read.confidence)
            for read, crop, turned, box in zip(texts, crops, run_upright(boxes), places, strict=True)
            if read.confidence >= self._settings.confidence
            for cell, place in zip(
                read.cells, cut(box, crop.shape[1], [cell.left for cell in read.cells], turned), strict=True
            )
        ]
        clock.ended("recognise")
        return PageText(lines, clock.seconds)

    def _found(self, page: PageImage) -> tuple[PageImage, Boxes, int]:
        """The page with its lines across, their boxes, and the quarters by which it was turned for that."""
        boxes = self._boxes(page)
        if not len(boxes) or not upright.lies_on_its_side(boxes):
            return page, boxes, 0
        page = upright.turned(page, 1)
        return page, self._boxes(page), 1

    def _boxes(self, page: PageImage) -> Boxes:
        settings = self._settings
        sharpest = (settings.most_pixels / (page.shape[0] * page.shape[1])) ** 0.5
        scale = min(settings.first_side / max(page.shape[:2]), sharpest)
        boxes = detect(self._detector, page, scale, settings.detection)
        if not len(boxes):
            return NO_BOXES
        least, wanted = settings.text_height
        height = float(np.median(heights_of(boxes)))
        if height * scale >= least:
            return boxes
        return detect(self._detector, page, min(wanted / height, sharpest), settings.detection)

    def _recognised(self, lines: Sequence[LineImage]) -> list[Recognised]:
        return recognise(self._recogniser, self._characters, lines)


class _Clock:
    """Seconds by stage, each from the end of the one before it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def ended(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._begun
        self._begun = now
