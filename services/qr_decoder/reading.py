"""What is asked of a child process and what it answers: `read_one`, behind `qr_decoder.reader`.

A child has the decoders from its start (`DOMAIN`), and nothing of the service.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from visionmesh.errors import Rejected
from visionmesh.qr_code import QrCode

if TYPE_CHECKING:
    from qr_decoder.domain import Locator

# What a child has from its start: the modules of the cascade, or of the profile that does with less.
DOMAIN: Final = "qr_decoder.domain.cascade"
ULTRALIGHT: Final = "ultralight"
ULTRALIGHT_DOMAIN: Final = "qr_decoder.domain.ultralight"


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
    decoder that the profile names is not installed, or no locator that it asks is there.
    """
    from qr_decoder import domain

    # The profile `ultralight` loads no OpenCV, and needs nothing of what does.
    light = asked.profile == ULTRALIGHT
    try:
        if not light:
            _to_one_thread()
            if domain.lacks_locators(asked.profile, _locators(asked.models_dir)):
                raise Rejected(
                    "profile_unavailable",
                    f"No locator that profile {asked.profile!r} asks is in {asked.models_dir}.",
                )
        result = domain.decode(
            asked.data,
            profile=asked.profile,
            budget_ms=asked.budget_ms,
            locators=None if light else _locators(asked.models_dir),
        )
    except ImportError as error:
        raise Rejected(
            "profile_unavailable", f"A decoder of profile {asked.profile!r} is not installed here: {error}."
        ) from error
    except Exception as error:
        if _is_lack_of_memory(error):
            raise MemoryError from error
        if not light and isinstance(error, domain.UnknownLevelError):
            raise Rejected("unknown_profile", str(error)) from error
        raise
    return Found(
        codes=result.codes,
        truncated=result.truncated,
        processing_time_ms=result.processing_time_ms,
        width=result.width,
        height=result.height,
    )


@cache
def _to_one_thread() -> None:
    """Replicas share the cores; a thread of OpenCV's own that waits for its turn holds up its picture."""
    import cv2

    cv2.setNumThreads(1)


def _is_lack_of_memory(error: Exception) -> bool:
    """OpenCV has a name of its own for it."""
    cv2 = sys.modules.get("cv2")
    return cv2 is not None and isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem


@cache
def _locators(folder: Path) -> dict[str, Locator]:
    """Once per process; each is loaded when it is first asked."""
    from qr_decoder.domain import locators_in

    return locators_in(folder)
