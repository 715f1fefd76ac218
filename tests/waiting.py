"""Waiting for what a test brings about; nothing is asserted about how long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(holds: Callable[[], bool], what: str, *, seconds: float) -> None:
    """Waits until it does. seconds: how long that may take on a busy machine."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.01)
