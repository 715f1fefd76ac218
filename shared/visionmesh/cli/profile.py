"""`mesh profile`: where a running service spends its time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from visionmesh.cli.console import DIRECTORY, Directory, complain, fail, running

# Enough that the sampling itself costs nothing that would be seen.
_SAMPLES_PER_SECOND: Final = 100

# Beyond what was asked for: py-spy reads the symbols of every library first.
_GRACE_SECONDS: Final = 60.0


def profile(
    service: Annotated[
        str | None,
        typer.Argument(help="A service of the mesh that runs, as edge-publisher or classifier-fast-2."),
    ] = None,
    seconds: Annotated[int, typer.Option(min=1, help="For how long it is watched.")] = 10,
    output: Annotated[
        Path | None, typer.Option(help="The file to write; <service>.speedscope.json when absent.")
    ] = None,
    pid: Annotated[int | None, typer.Option(help="A Python process that no mesh here has started.")] = None,
    idle: Annotated[bool, typer.Option("--idle", help="Show threads that wait as well.")] = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Watch a running service and write a profile, which https://www.speedscope.app opens.

    The service goes on as before and need not be prepared; nothing of the file leaves this machine there.
    """
    if (service is None) == (pid is None):
        fail("Name a service, or a process with --pid.", 2)
    chosen = pid if pid is not None else _pid_of(service or "", directory)
    path = output or Path(f"{service or pid}.speedscope.json")
    complain(f"watching process {chosen} for {seconds} s")
    command = [
        _program(), "record", "--pid", str(chosen), "--duration", str(seconds),
        "--rate", str(_SAMPLES_PER_SECOND), "--format", "speedscope", "--output", str(path),
        "--subprocesses", "--threads", "--nonblocking", *(["--idle"] if idle else []),
    ]  # fmt: skip
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + _GRACE_SECONDS
        )
    except subprocess.TimeoutExpired:
        fail(f"py-spy did not end within {seconds + _GRACE_SECONDS:.0f} s and was stopped.")
    if ended.returncode or not path.exists():
        reason = (ended.stderr or ended.stdout).strip().splitlines()
        hint = (
            " Only root may look into another's process here: try again with sudo."
            if "ermission" in ended.stderr
            else ""
        )
        fail(f"py-spy could not watch it: {reason[-1] if reason else 'it said nothing'}.{hint}")
    complain(f"wrote {path}; open it on https://www.speedscope.app or with `npx speedscope {path}`")


def _pid_of(service: str, directory: Path) -> int:
    """The process of a replica, or of the first one of a service."""
    state = running(directory)
    if state is None:
        fail(f"No mesh runs in {directory}; name a process with --pid.")
    names = {f"{one['service']}-{one['number']}": one["pid"] for one in state["replicas"]}
    found = names.get(service, names.get(f"{service}-1"))
    if found is None:
        fail(f"No process of {service!r} runs; there are {', '.join(names) or 'none'}.")
    return int(found)


def _program() -> str:
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if found is None:
        fail("py-spy is not installed; it is part of visionmesh[cli].")
    return found
