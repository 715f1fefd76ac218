"""`docs/metrics.md`, made of the list of metrics: `python -m visionmesh.observability.reference`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.metrics import MetricWrapperBase

from visionmesh.observability import metrics
from visionmesh.observability.process import ProcessFamily
from visionmesh.settings import ROOT

PATH: Final = ROOT / "docs" / "metrics.md"

_INTRODUCTION: Final = """\
# Metrics

Every service answers `GET /metrics` on its own port. This is the whole list: it is made of
`shared/visionmesh/observability/metrics.py` by `python -m visionmesh.observability.reference`, and a test
compares. Dashboards and alerts use nothing else.

Prometheus adds `job`, the service, and `instance`, the replica. `worker` is the consumer group, which is
named like its service. A histogram `x` has the series `x_bucket`, `x_sum` and `x_count`. Times are seconds,
sizes bytes.

| metric | type | labels | what it tells |
|---|---|---|---|
"""

_FOREIGN: Final = """
## Of others

What Prometheus and the servers around the services tell by themselves, as far as dashboards and alerts use
it.

| metric | what it tells |
|---|---|
"""


@dataclass(frozen=True, slots=True)
class Described:
    """A metric as Prometheus has it. kind: counter, gauge, histogram or info."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str

    def series(self) -> tuple[str, ...]:
        """The names that may stand in a query."""
        ends = ("_bucket", "_sum", "_count") if self.kind == "histogram" else ("",)
        return tuple(f"{self.name}{end}" for end in ends)


def described() -> list[Described]:
    """Every metric of the mesh, in the order of the list."""
    return [*_own(vars(metrics).values()), *_of_process()]


def series() -> set[str]:
    """Every name that dashboards and alerts may ask for."""
    return {name for one in described() for name in one.series()} | set(metrics.FOREIGN)


def render() -> str:
    rows = [f"| `{one.name}` | {one.kind} | {_names(one.labels)} | {one.text} |" for one in described()]
    others = [f"| `{name}` | {text} |" for name, text in metrics.FOREIGN.items()]
    return _INTRODUCTION + "\n".join(rows) + "\n" + _FOREIGN + "\n".join(others) + "\n"


def main(path: Path = PATH) -> None:
    """Rewrites the committed document."""
    path.write_text(render())


def _own(values: Iterable[object]) -> Iterator[Described]:
    for value in values:
        if isinstance(value, MetricWrapperBase):
            (family,) = value.describe()
            # There is no public way to ask a metric for the names of its labels.
            yield _described(family.name, family.type, value._labelnames, family.documentation)


def _of_process() -> Iterator[Described]:
    for family in ProcessFamily().describe():
        yield _described(family.name, family.type, (), family.documentation)


def _described(name: str, kind: str, labels: Sequence[str], text: str) -> Described:
    end = {"counter": "_total", "info": "_info"}.get(kind, "")
    # A cell of the table ends at a line's end and at a bar.
    return Described(f"{name}{end}", kind, tuple(labels), re.sub(r"\s+", " ", text).replace("|", "\\|"))


def _names(labels: Sequence[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


if __name__ == "__main__":
    main()
