"""What is asked of a child process and what it answers: `read_one`, behind `qr_decoder.reader`.

A child has the decoders from its start (`DOMAIN`), and nothing of the service.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from visionmesh.errors import Rejected
from visionmesh.qr_code import QrCode

if TYPE_CHECKING:
    from qr_decoder.domain import Locator

DOMAIN: Final = "qr_decoder.domain"


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture file and how it is to be read. models_dir: where the files of locators are, if any."""

    data: bytes
    profile: str
    budget_ms: float
    models_dir: Path


@dataclass(frozen=True, slots=True)
class Found:
    """What was read of a picture.

    codes: in the order of reading. truncated: whether the budget ended before the levels did.
    width, height: pixels of the upright picture.
    """

    codes: tuple[QrCode, ...]
    truncated: bool
    processing_time_ms: float
    width: int
    height: int


class Read(Protocol):
    """Reads a picture file; profile and budget are the service's own when they are not given."""

    def __call__(self, data: bytes, *, profile: str | None = None, budget_ms: float | None = None) -> Found:
        """Raises `Rejected`."""


def read_one(asked: Asked) -> Found:
    """The codes of one picture.

    Raises `Rejected` with a code of `visionmesh.images`, `unknown_profile`, and `profile_unavailable` when a
    decoder that the profile names is not installed.
    """
    import cv2

    from qr_decoder import domain

    # Replicas share the cores; a thread of OpenCV's own that waits for its turn holds up its picture.
    cv2.setNumThreads(1)
    try:
        result = domain.decode(
            asked.data,
            profile=asked.profile,
            budget_ms=asked.budget_ms,
            locators=_locators(asked.models_dir),
        )
    except domain.UnknownLevelError as error:
        raise Rejected("unknown_profile", str(error)) from error
    except cv2.error as error:
        # OpenCV has a name of its own for it.
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise
    except ImportError as error:
        raise Rejected(
            "profile_unavailable", f"A decoder of profile {asked.profile!r} is not installed here: {error}."
        ) from error
    return Found(
        codes=result.codes,
        truncated=result.truncated,
        processing_time_ms=result.processing_time_ms,
        width=result.width,
        height=result.height,
    )


@cache
def _locators(folder: Path) -> dict[str, Locator]:
    """Once per process; each is loaded when it is first asked."""
    from qr_decoder.domain import locators_in

    return locators_in(folder)
