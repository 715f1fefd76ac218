"""Brings what the native stack runs into the cache: Kafka by Maven, MinIO by Go, at pinned versions.

Everything is done once per version and machine; a second call finds it done. Several processes may call at
the same time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from visionmesh.settings import ROOT
from visionmesh.stack.process import StackError

POM = ROOT / "deploy" / "native" / "pom.xml"

# The Go module proxy knows MinIO's releases by date and commit; this is the last one published there.
MINIO_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"

MINIMUM_JAVA = 17

OUTPUT_TAIL_CHARACTERS = 4_000

Say = Callable[[str], None]


def cache_directory() -> Path:
    """`visionmesh` in the user's cache folder (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visionmesh"


def kafka_jars() -> Path:
    """The folder of the broker's jars, whether or not it is there yet; a change of the POM changes it."""
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    return cache_directory() / f"kafka-{digest}"


def minio_binary() -> Path:
    """The MinIO server, whether or not it is there yet."""
    return cache_directory() / f"minio-{MINIO_VERSION}" / "minio"


def prepare_native(say: Say) -> None:
    """Fetch and build what is missing; raises StackError with the tool's own words if that fails.

    say: told in one line what is being done.
    """
    if kafka_jars().is_dir() and minio_binary().is_file():
        return
    with _alone():
        _prepare_kafka(say)
        _prepare_minio(say)


def java() -> str:
    """The Java launcher. Raises StackError if there is none."""
    home = os.environ.get("JAVA_HOME")
    return _tool(
        str(Path(home) / "bin" / "java") if home else "java", f"a JDK of version {MINIMUM_JAVA} or newer"
    )


def _prepare_kafka(say: Say) -> None:
    jars = kafka_jars()
    if jars.is_dir():
        return
    say(f"fetching Apache Kafka with Maven into {jars}")
    maven = _tool("mvn", "Apache Maven")
    with _under_construction(jars) as folder:
        _run(
            [
                maven,
                "-q",
                "-B",
                "-f",
                str(POM),
                "dependency:copy-dependencies",
                f"-DoutputDirectory={folder}",
                "-DincludeScope=runtime",
            ]
        )


def _prepare_minio(say: Say) -> None:
    binary = minio_binary()
    if binary.is_file():
        return
    say(f"building MinIO {MINIO_VERSION} with Go into {binary.parent} (minutes on a cold cache)")
    go = _tool("go", "Go")
    with _under_construction(binary.parent) as folder:
        _run([go, "install", f"github.com/minio/minio@{MINIO_VERSION}"], {"GOBIN": str(folder)})


def _tool(name: str, what: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise StackError(
            f"the native stack needs {what}: `{name}` was not found. The embedded stack needs none of it."
        )
    return path


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise StackError(
            f"`{' '.join(command)}` ended with status {done.returncode}:\n"
            f"{done.stdout[-OUTPUT_TAIL_CHARACTERS:]}"
        )


@contextmanager
def _alone() -> Iterator[None]:
    """Only one process at a time fetches and builds."""
    cache_directory().mkdir(parents=True, exist_ok=True)
    with (cache_directory() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _under_construction(finished: Path) -> Iterator[Path]:
    """A folder that gets its final name only when it is complete."""
    building = finished.with_name(f"{finished.name}.incomplete")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    yield building
    building.rename(finished)
