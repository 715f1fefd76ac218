"""What the machine has to offer: Docker, memory and disk, as the walk-through asks for them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MEMORY_BYTES: Final = 8_000_000_000
DISK_BYTES: Final = 20_000_000_000

# The engine of a desktop may have to wake up.
_DOCKER_SECONDS: Final = 20.0

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Prerequisite:
    """name, found: for people. lack, advice: None when there is enough."""

    name: str
    found: str
    lack: str | None = None
    advice: str | None = None


def docker() -> Prerequisite:
    """Whether Docker's engine answers, and compose is there."""
    advice = "install Docker with its compose plugin and start it; `mesh up` needs neither"
    asked: Mapping[str, list[str]] = {
        "the engine": ["docker", "version", "--format", "{{.Server.Version}}"],
        "the compose plugin": ["docker", "compose", "version", "--short"],
    }
    found = []
    for what, command in asked.items():
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_DOCKER_SECONDS, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError:
            return Prerequisite("docker", "none", "there is no `docker` command", advice)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Prerequisite("docker", "no answer", f"{what} does not answer: {error}", advice)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            return Prerequisite("docker", "no answer", f"{what} does not answer: {said[-1]}", advice)
        found.append(done.stdout.strip())
    return Prerequisite("docker", f"{found[0]}, compose {found[1]}")


@dataclass(frozen=True)
class Engine:
    """What Docker has, which need not be what the machine has. folder: where images and volumes lie."""

    memory_bytes: int
    folder: Path


def engine() -> Engine | None:
    """None where it does not answer; `docker` says why."""
    try:
        done = subprocess.run(
            ["docker", "info", "--format", "{{.MemTotal}} {{.DockerRootDir}}"],
            capture_output=True, text=True, timeout=_DOCKER_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        total, folder = done.stdout.strip().split(" ", 1)
        return Engine(int(total), Path(folder))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def memory(engine: Engine | None = None) -> Prerequisite:
    """Whether Docker, or without one the machine or the container that this runs in, has enough memory."""
    if engine is not None:
        there = engine.memory_bytes
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        # It may not be there, or be `max`, which is none.
        with suppress(OSError, ValueError):
            there = min(there, int(_CGROUP_LIMIT.read_text()))
    return _enough("memory", there, MEMORY_BYTES, "in all", "give Docker, or the machine, more of it")


def disk(folder: Path) -> Prerequisite:
    """Whether there is room where `folder` is, or will be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    advice = "make room: `docker system df` tells what images and volumes take"
    return _enough(f"disk of {there}", free, DISK_BYTES, "free", advice)


def _enough(name: str, there: int, needed: int, how: str, advice: str) -> Prerequisite:
    found = f"{there / 1e9:.1f} GB {how}"
    if there >= needed:
        return Prerequisite(name, found)
    return Prerequisite(name, found, f"less than {needed / 1e9:.0f} GB, which all services ask for", advice)
