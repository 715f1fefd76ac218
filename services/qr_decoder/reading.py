"""Pictures read in child processes: `Reader` in the service's own process, `read_one` in a child.

The service's own process loads none of the decoders, so that it stays small and nothing of theirs can take it
along; its children are forked from a process that has them (`DOMAIN`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from visionmesh.errors import Rejected
from visionmesh.isolated import Isolated
from visionmesh.observability import metrics
from visionmesh.qr_code import QrCode

if TYPE_CHECKING:
    from qr_decoder.domain import Locator

DOMAIN: Final = "qr_decoder.domain"

# The smallest picture there is, as GIF.
_NOTHING: Final = bytes.fromhex("47494638396101000100800000000000ffffff2c00000000010001000002024401003b")


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


class Reader:
    """A `Read` that runs `read_one` in children, and counts what they found. For many threads at once."""

    def __init__(
        self, isolated: Isolated[Asked, Found], models_dir: Path, *, profile: str, budget_ms: float
    ) -> None:
        """Raises `Rejected` when the profile is none that can be used here."""
        self._isolated = isolated
        self._models_dir = models_dir
        self._profile = profile
        self._budget_ms = budget_ms
        # Within no budget the first attempt is the only one, so that this loads no locator.
        isolated.call(Asked(_NOTHING, profile, 0, models_dir))

    def __call__(self, data: bytes, *, profile: str | None = None, budget_ms: float | None = None) -> Found:
        found = self._isolated.call(
            Asked(
                data,
                self._profile if profile is None else profile,
                self._budget_ms if budget_ms is None else budget_ms,
                self._models_dir,
            )
        )
        result = "found" if found.codes else "truncated" if found.truncated else "none"
        metrics.QR_SECONDS.labels(result).observe(found.processing_time_ms / 1000)
        for code in found.codes:
            metrics.QR_CODES.labels(code.level, code.decoder).inc()
        return found


# In the child


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
