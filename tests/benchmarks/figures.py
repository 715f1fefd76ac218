"""How the benchmarks print: one line per figure, with the rounds it is the median of."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def figure(name: str, values: Sequence[float], unit: str) -> None:
    """Prints the median with the least and the largest of the rounds."""
    print(
        f"{name:<44} {median(values):>12.5g} {unit:<8} "
        f"(min {min(values):.5g}, max {max(values):.5g}, {len(values)} rounds)",
        flush=True,
    )


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float], goal: str) -> None:
    """Prints the median of the ratios round by round: both were measured under the same weather."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    figure(name, ratios, "x")
    print(f"{'':<44} goal {goal}", flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie; nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
