"""A share of a core for a process, as a container gets it: by a control group of Linux, version 1 or 2."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# What Docker sets: so much of every 100 ms.
PERIOD_US = 100_000

MOUNTS = Path("/proc/mounts")


class NoLimitError(Exception):
    """No control group can be made here; says why."""


@contextmanager
def share_of_a_core(cores: float) -> Iterator[Callable[[int], None]]:
    """A control group; call what it gives with the id of each process that shall be in it.

    All processes in it, and the children they will have, get `cores` together. They must have ended at
    the end of the block. Raises `NoLimitError`.
    """
    mount, version = controller(MOUNTS.read_text())
    group = mount / f"mesh-bench-{os.getpid()}"
    try:
        if version == 2:
            (mount / "cgroup.subtree_control").write_text("+cpu")
        group.mkdir()
    except OSError as error:
        raise NoLimitError(f"{error} (it takes root, outside of a container)") from error
    try:
        for name, value in quota(cores, version).items():
            (group / name).write_text(value)
        yield lambda pid: _add(group, pid)
    finally:
        group.rmdir()


def controller(mounts: str) -> tuple[Path, int]:
    """Where the controller of processor time is mounted, and its version, by the text of `/proc/mounts`.

    Where there are both, version 1 has the controller. Raises `NoLimitError` where there is none.
    """
    rows = [line.split() for line in mounts.splitlines()]
    for _, path, kind, options, *_ in rows:
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(path), 1
    for _, path, kind, *_ in rows:
        if kind == "cgroup2":
            return Path(path), 2
    raise NoLimitError("no control groups are mounted")


def quota(cores: float, version: int) -> dict[str, str]:
    """The files of a control group that give it so many cores, and what they hold."""
    microseconds = round(cores * PERIOD_US)
    if version == 2:
        return {"cpu.max": f"{microseconds} {PERIOD_US}"}
    return {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(microseconds)}


def _add(group: Path, pid: int) -> None:
    (group / "cgroup.procs").write_text(str(pid))
