"""Which engine a child opens. Loaded in the children alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocr_worker.reading import EngineChoice
from visionmesh.errors import Rejected

if TYPE_CHECKING:
    from ocr_worker.domain import Engine


def open_engine(choice: EngineChoice) -> Engine:
    """Raises `Rejected("engine_unavailable")`: what it needs is not installed, or it has not the language."""
    from ocr_worker import domain

    try:
        if choice.name == "paddlex":
            from ocr_worker.paddlex_engine import PaddleX

            return PaddleX(choice.paddlex_url, choice.language, page_seconds=choice.page_seconds)
        return domain.open_engine(
            choice.name, choice.language, threads=choice.threads, folder=choice.paddle_models
        )
    except (ImportError, ValueError, RuntimeError) as error:
        raise Rejected(
            "engine_unavailable", f"The engine {choice.name} can't be opened here: {error}"
        ) from error
