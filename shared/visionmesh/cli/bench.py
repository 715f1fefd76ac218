"""`mesh bench`: the benchmarks of `tests/benchmarks`, one by one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from visionmesh.cli.console import fail
from visionmesh.settings import ROOT

TESTS: Final = ROOT / "tests"


def bench(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="One of them; all, one after the other, when absent.")
    ] = None,
) -> None:
    """Measure; prints one line per figure. Options after the name go to the benchmark."""
    known = names()
    if name is not None and name not in known:
        fail(f"There is no benchmark {name!r}; there are {', '.join(known) or 'none'}.", 2)
    # The benchmarks stand beside the tests, not in the distribution.
    sys.path.insert(0, str(TESTS))
    for chosen in known if name is None else (name,):
        module = importlib.import_module(f"benchmarks.{chosen.replace('-', '_')}")
        status = module.main(list(context.args))
        if status:
            raise SystemExit(status)


def names(folder: Path = TESTS / "benchmarks") -> tuple[str, ...]:
    """The benchmarks there are: the modules of the folder that have a `main`."""
    return tuple(
        sorted(
            path.stem.replace("_", "-") for path in folder.glob("*.py") if "\ndef main(" in path.read_text()
        )
    )
