"""A real MLflow server, and whoever registers models on one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import urllib3

import waiting
from training.tables import toml
from visionmesh.mlflow import Mlflow
from visionmesh.settings import Settings
from visionmesh.stack.ports import free_port

# How long anything may take on a busy machine; nothing is asserted about how long it did take.
DEADLINE = 150.0

eventually = partial(waiting.eventually, seconds=DEADLINE)


class Server(Protocol):
    """What the suite needs of an MLflow."""

    @property
    def url(self) -> str: ...
    def start(self) -> None:
        """Unless it runs already."""

    def stop(self) -> None:
        """Killed, so that it answers no more; what it has stays."""


class RealMlflow:
    def __init__(self, python: str, folder: Path) -> None:
        self._port = free_port()
        self._folder = folder
        self._command = [
            *(python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts", "--workers", "1"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        if self._process is not None:
            return
        with (self._folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                # Nothing here runs jobs, and their processes would outnumber the server's.
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(self._answers, f"MLflow up:\n{(self._folder / 'mlflow.log').read_text()[-2000:]}")

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "mlflow.log").read_text()[-2000:]
        try:
            return urllib3.request("GET", f"{self.url}/health", retries=False, timeout=2).status == 200
        except urllib3.exceptions.HTTPError:
            return False


class Registry:
    """Registers models as training does, by plain HTTP. Names are this test's own, for servers are shared."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.champion = f"models:/{self.name}@champion"

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        response = urllib3.request("POST", f"{self.server.url}/api/2.0/mlflow/{path}", json=body)
        assert response.status == 200, response.data
        found: dict[str, Any] = response.json()
        return found

    def register(self, table: Mapping[str, Any], model: bytes, *, promote: bool = True) -> str:
        return self.register_files({"model.toml": toml(table).encode(), "model.onnx": model}, promote=promote)

    def register_files(self, files: Mapping[str, bytes], *, promote: bool = True) -> str:
        """A new version; its number."""
        info = self.post("runs/create", experiment_id="0")["run"]["info"]
        folder = f"{info['artifact_uri'].removeprefix('mlflow-artifacts:/')}/model"
        for name, content in files.items():
            url = f"{self.server.url}/api/2.0/mlflow-artifacts/artifacts/{folder}/{name}"
            assert urllib3.request("PUT", url, body=content).status == 200
        if self.name not in Mlflow(self.server.url).models():
            self.post("registered-models/create", name=self.name)
        source = f"{info['artifact_uri']}/model"
        created = self.post("model-versions/create", name=self.name, source=source, run_id=info["run_id"])
        version = str(created["model_version"]["version"])
        if promote:
            self.promote(version)
        return version

    def promote(self, version: str) -> None:
        Mlflow(self.server.url).promote(self.name, version, "champion")

    def settings(self, **options: Any) -> Settings:
        return Settings(mlflow_tracking_uri=self.server.url, **({"model_refresh_seconds": 0.02} | options))
