"""What a process of the mesh uses of its machine, its children included.

`process_*` of the Prometheus client tells of the process alone, and most of the work of `qr-decoder` and
`ocr-worker` is done by children (`visionmesh.isolated`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

_PROC: Final = Path("/proc")
_CGROUP: Final = Path("/sys/fs/cgroup")
_ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class Usage:
    """cpu_seconds: of all of them, those that ended included. resident_bytes: pages that several share are
    counted for each. processes: how many there are at this moment.
    """

    cpu_seconds: float
    resident_bytes: int
    processes: int


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    ticks: int
    pages: int


class ProcessFamily(Collector):
    """Reads at every scrape. Where the system has no such files, as outside Linux, a metric is missing."""

    def __init__(self, *, proc: Path = _PROC, cgroup: Path = _CGROUP, root: Path = _ROOT) -> None:
        """proc, cgroup: where Linux tells of processes and of the container. root: whose disk is told of."""
        self._proc = proc
        self._cgroup = cgroup
        self._root = root
        self._cpu_seconds = 0.0

    def describe(self) -> Iterable[Metric]:
        return self._families().values()

    def collect(self) -> Iterator[Metric]:
        families = self._families()
        values = self._values()
        for name, family in families.items():
            if name in values:
                family.add_metric([], values[name])
                yield family

    @staticmethod
    def _families() -> dict[str, CounterMetricFamily | GaugeMetricFamily]:
        return {
            "cpu": CounterMetricFamily(
                "mesh_process_cpu_seconds_total", "Processor time of the process and its children.", labels=()
            ),
            "resident": GaugeMetricFamily(
                "mesh_process_resident_bytes", "Memory that the process and its children hold.", labels=()
            ),
            "processes": GaugeMetricFamily(
                "mesh_processes", "The process and its children, how many they are.", labels=()
            ),
            "limit": GaugeMetricFamily(
                "mesh_memory_limit_bytes", "What the container may hold; missing without a limit.", labels=()
            ),
            "used": GaugeMetricFamily(
                "mesh_memory_used_bytes",
                "What the container holds and can't give back at once, as its limit counts.",
                labels=(),
            ),
            "kills": CounterMetricFamily(
                "mesh_memory_kills_total",
                "Processes of the container that the kernel killed for lack of memory.",
                labels=(),
            ),
            "disk_size": GaugeMetricFamily(
                "mesh_disk_size_bytes", "Size of the disk that the process runs on.", labels=()
            ),
            "disk_free": GaugeMetricFamily("mesh_disk_free_bytes", "What that disk has left.", labels=()),
        }

    def _values(self) -> dict[str, float]:
        values: dict[str, float] = {}
        usage = family_usage(os.getpid(), proc=self._proc)
        if usage is not None:
            # Prometheus takes a counter that falls for one that began anew, and its whole time for new.
            self._cpu_seconds = max(self._cpu_seconds, usage.cpu_seconds)
            values |= {
                "cpu": self._cpu_seconds,
                "resident": usage.resident_bytes,
                "processes": usage.processes,
            }
        disk = os.statvfs(self._root)
        values |= {"disk_size": disk.f_blocks * disk.f_frsize, "disk_free": disk.f_bavail * disk.f_frsize}
        return values | _container(self._cgroup)


def family_usage(pid: int, *, proc: Path = _PROC) -> Usage | None:
    """What a process and its descendants use; None where the system does not tell.

    The time of a child that ended is its parent's from then on. One that ends between the look at its parent
    and the look at itself is in neither, so that `cpu_seconds` may be too little once.
    """
    children: dict[int, list[_Process]] = {}
    own = None
    try:
        names = os.listdir(proc)
    except OSError:
        return None
    for name in names:
        if name.isdecimal() and (found := _read(proc / name)) is not None:
            children.setdefault(found.parent, []).append(found)
            if found.pid == pid:
                own = found
    if own is None:
        return None
    family = [own]
    for each in family:
        family += children.get(each.pid, [])
    return Usage(
        sum(each.ticks for each in family) / os.sysconf("SC_CLK_TCK"),
        sum(each.pages for each in family) * os.sysconf("SC_PAGE_SIZE"),
        len(family),
    )


def _read(folder: Path) -> _Process | None:
    """One process of Linux's `stat` (proc(5)); None when it has ended."""
    try:
        pid, _, rest = (folder / "stat").read_text(errors="replace").partition(" (")
    except OSError:
        return None
    # The name may hold anything, a bracket too.
    fields = rest.rpartition(") ")[2].split()
    # From `state`, which is field 3: ppid 4; utime, stime, and those of children that ended 14 to 17; rss 24.
    return _Process(int(pid), int(fields[1]), sum(map(int, fields[11:15])), int(fields[21]))


def _container(cgroup: Path) -> dict[str, float]:
    """What the container is told to keep to, by version 2 of Linux's control groups."""
    values: dict[str, float] = {}
    limit = _number(cgroup / "memory.max")
    if limit is not None:
        values["limit"] = limit
    used = _number(cgroup / "memory.current")
    if used is not None:
        # The cache of files is given up before anybody is killed, its inactive half at once.
        values["used"] = used - _words(cgroup / "memory.stat").get("inactive_file", 0)
    kills = _words(cgroup / "memory.events").get("oom_kill")
    if kills is not None:
        values["kills"] = kills
    return values


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _words(file: Path) -> dict[str, int]:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
