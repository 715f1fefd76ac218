"""Pictures read in child processes, as the service's own process sees it.

That one loads none of the decoders, so that it stays small and nothing of theirs can take it along.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from qr_decoder.reading import Asked, Found
from visionmesh.isolated import Isolated
from visionmesh.observability import metrics

# The smallest picture there is, as GIF.
_NOTHING: Final = bytes.fromhex("47494638396101000100800000000000ffffff2c00000000010001000002024401003b")


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
