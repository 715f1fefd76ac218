"""What renders `deploy/kubernetes` and what it is held against, out of packages, each at a pinned version.

Built or fetched by `--stack native`, whose servers come the same way; otherwise what is there is used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from visionmesh.stack.prepare import cache_directory

KUSTOMIZE: Final = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1"
KEDA: Final = "github.com/kedacore/keda/v2@v2.21.0"
CLOUDNATIVE_PG: Final = "github.com/cloudnative-pg/cloudnative-pg@v1.27.0"
STRIMZI: Final = "1.2.0"
_JAVA: Final = 21

_POM: Final = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>visionmesh</groupId><artifactId>strimzi-models</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>io.strimzi</groupId><artifactId>api</artifactId><version>{version}</version></dependency>
  </dependencies>
</project>
"""


def rendered(folder: Path, *, fetch: bool) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    text = _run([_kustomize(fetch), "build", str(folder)])
    return [one for one in yaml.safe_load_all(text) if one is not None]


def resource_definition(module: str, file: str, *, fetch: bool) -> dict[str, Any]:
    """The CustomResourceDefinition in a file of a Go module."""
    path = _module(module, fetch) / "config" / "crd" / "bases" / file
    definition: dict[str, Any] = yaml.safe_load(path.read_text())
    return definition


def strimzi_complaints(resources: Sequence[Mapping[str, Any]], folder: Path, *, fetch: bool) -> str:
    """What Strimzi's own classes say of resources that are theirs; empty when they take all of it."""
    jars = _strimzi(fetch)
    file = folder / "resources.json"
    file.write_text(json.dumps(resources))
    program = Path(__file__).parent / "kubernetes" / "StrimziModels.java"
    return _run([_java(), "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*", str(program), str(file)])


def _kustomize(fetch: bool) -> str:
    found = shutil.which("kustomize")
    if found is not None:
        return found
    folder = cache_directory() / f"kustomize-{KUSTOMIZE.rpartition('@')[2]}"
    if not (folder / "kustomize").exists():
        _wanted(fetch, "kustomize")
        _run([_tool("go"), "install", KUSTOMIZE], {"GOBIN": str(folder)})
    return str(folder / "kustomize")


def _module(module: str, fetch: bool) -> Path:
    """The folder of a Go module."""
    if not fetch:
        path, version = module.split("@")
        folder = Path(_run([_tool("go"), "env", "GOMODCACHE"]).strip()) / f"{path}@{version}"
        if not folder.is_dir():
            _wanted(fetch, module)
        return folder
    # Outside any module: its own is none of ours.
    found = json.loads(
        _run([_tool("go"), "mod", "download", "-json", module], {"GOFLAGS": "-mod=mod"}, Path("/"))
    )
    return Path(found["Dir"])


def _strimzi(fetch: bool) -> Path:
    jars = cache_directory() / f"strimzi-{STRIMZI}"
    if not jars.is_dir():
        _wanted(fetch, "Strimzi's classes")
        draft = jars.with_name(f"{jars.name}.{os.getpid()}")
        draft.mkdir(parents=True)
        (draft / "pom.xml").write_text(_POM.format(version=STRIMZI))
        _run(
            [
                *(_tool("mvn"), "-q", "-B", "-f", str(draft / "pom.xml")),
                *("dependency:copy-dependencies", f"-DoutputDirectory={draft}"),
            ]
        )
        draft.rename(jars)
    return jars


def _java() -> str:
    """One that reads Strimzi's classes, which are newer than what Kafka needs."""
    for folder in (os.environ.get("JAVA_HOME", ""), *sorted(map(str, Path("/usr/lib/jvm").glob("*")))):
        release = Path(folder) / "release"
        if folder and release.is_file():
            version = re.search(r'JAVA_VERSION="(\d+)', release.read_text())
            if version is not None and int(version[1]) >= _JAVA:
                return str(Path(folder) / "bin" / "java")
    pytest.skip(f"a JDK of version {_JAVA} or newer is not installed")


def _wanted(fetch: bool, what: str) -> None:
    if not fetch:
        pytest.skip(f"{what} is not here; --stack native fetches it")


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _run(command: list[str], environment: Mapping[str, str] | None = None, folder: Path | None = None) -> str:
    ended = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{' '.join(command)}:\n{ended.stdout}{ended.stderr}"
    return ended.stdout
