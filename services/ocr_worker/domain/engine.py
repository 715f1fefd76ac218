"""What reads the text of one page, whatever it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from visionmesh.ocr_document import TextLine

# uint8 [height, width, 3], RGB.
PageImage = NDArray[np.uint8]


class EngineBusyError(RuntimeError):
    """An engine was asked for a second page while it was reading one. It is a bug of the caller."""


class OnePageAtATime:
    """A context that only one thread can be in.

    Engines keep what they work on in themselves: two threads in one get one another's text, and no error.
    """

    def __init__(self) -> None:
        self._lock = Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise EngineBusyError("The engine is reading another page; each process or thread needs its own.")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@dataclass(frozen=True, slots=True)
class PageText:
    """What an engine read of a page.

    lines: in reading order, all of them of page 1.
    seconds: by stage.
    """

    lines: Sequence[TextLine]
    seconds: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """Reads one page after another, never two at once: a process has one engine.

    name: `rapidocr`, `paddleocr`, ...
    language: what it is set to read, as in `OcrDocument`.
    """

    @property
    def name(self) -> str: ...

    @property
    def language(self) -> str: ...

    def read(self, page: PageImage) -> PageText:
        """The text of a page, uint8 [height, width, 3] RGB. A page without text gives no lines.

        Raises `EngineBusyError` while it is reading another page, `Rejected` of a page it can't take, and
        `Unavailable` when it is only a client of a server that is away.
        """
        ...
