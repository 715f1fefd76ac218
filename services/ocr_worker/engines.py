"""Which engine a name stands for. Loaded in the children alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from ocr_worker.reading import EngineChoice
from visionmesh.errors import Rejected

if TYPE_CHECKING:
    from ocr_worker.domain import Engine


def open_engine(choice: EngineChoice) -> Engine:
    """Raises `Rejected("engine_unavailable")`: what it needs is not installed, or it has not the language."""
    try:
        return _OPENERS[choice.name](choice)
    except (ImportError, ValueError, RuntimeError) as error:
        raise Rejected(
            "engine_unavailable", f"The engine {choice.name} can't be opened here: {error}"
        ) from error


def _rapidocr(choice: EngineChoice) -> Engine:
    from ocr_worker.domain.rapidocr_engine import RapidOcr

    return RapidOcr(choice.language, threads=choice.threads)


def _paddlex(choice: EngineChoice) -> Engine:
    from ocr_worker.paddlex_engine import PaddleX

    return PaddleX(choice.paddlex_url, choice.language)


_OPENERS: Final[Mapping[str, Callable[[EngineChoice], Engine]]] = {
    "rapidocr": _rapidocr,
    "paddlex": _paddlex,
}
