"""Which engine a child opens. Loaded in the children alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocr_worker.reading import EngineChoice
from visionmesh.errors import Unavailable

if TYPE_CHECKING:
    from ocr_worker.domain import Engine

SERVER: Final = "ocr_engine"


def open_engine(choice: EngineChoice) -> Engine:
    """Raises `Unavailable("ocr_engine", ...)`: what it needs is not there, or it has not the language.

    No document is to blame for that; at the start it ends the service.
    """
    from ocr_worker import domain

    try:
        if choice.name == "paddlex":
            from ocr_worker.paddlex_engine import PaddleX

            return PaddleX(choice.paddlex_url, choice.language, page_seconds=choice.page_seconds)
        return domain.open_engine(
            choice.name, choice.language, threads=choice.threads, folder=choice.paddle_models
        )
    except (ImportError, ValueError, RuntimeError) as error:
        raise Unavailable(SERVER, f"{choice.name} can't be opened here: {error}") from error
