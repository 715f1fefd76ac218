"""What training tells MLflow, and that services can load it from there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlflow_servers import RealMlflow
from visionmesh.mlflow import Mlflow
from visionmesh.model_store import ModelStore
from visionmesh.registry import open_source
from visionmesh.settings import ROOT, Settings

MODELS = ROOT / "models"
NAMES = ("extractor", "classifier-fast")
RECORD = """
import sys, tomllib
from pathlib import Path
from training.tracking import record
folder, plots = Path(sys.argv[1]), Path(sys.argv[2])
tables = {name: table for name, table in tomllib.loads((folder / "models.toml").read_text()).items()
          if name in ("extractor", "classifier-fast")}
tables["consensus"] = {"kind": "consensus", "version": "1", "metrics": {"ece": 0.01, "by": {"90": 0.5}}}
record(tables, folder, parameters={"seed": 7}, artifacts=[folder / "models.toml", plots])
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealMlflow]:
    python = os.environ.get("MESH_MLFLOW_PYTHON")
    if python is None:
        pytest.skip("MESH_MLFLOW_PYTHON names no interpreter with MLflow")
    mlflow = RealMlflow(python, tmp_path)
    mlflow.start()
    yield mlflow
    mlflow.stop()


def record(python: str, server_url: str | None, plots: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = str(MODELS)
    if server_url is not None:
        environment["MLFLOW_TRACKING_URI"] = server_url
    return subprocess.run(
        [python, "-c", RECORD, str(MODELS), str(plots)],
        env=environment, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip


def test_nothing_happens_without_a_server(tmp_path: Path) -> None:
    # This interpreter has no MLflow, so that an attempt would show.
    ended = record(sys.executable, None, tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert "mlflow" in record(sys.executable, "http://127.0.0.1:1", tmp_path).stderr


def test_what_was_recorded_can_be_loaded_and_answers_the_same(server: RealMlflow, tmp_path: Path) -> None:
    python = os.environ["MESH_MLFLOW_PYTHON"]
    plots = tmp_path / "plots"
    plots.mkdir()
    (plots / "plot.svg").write_text("<svg/>")
    for _ in range(2):
        ended = record(python, server.url, plots)
        assert ended.returncode == 0, ended.stderr
    mlflow = Mlflow(server.url)
    # The second run is ready to become what the first one is. The consensus is no model that is loaded.
    assert mlflow.models() == {name: {"champion": "1", "challenger": "2"} for name in sorted(NAMES)}
    (newest, _) = mlflow.versions("classifier-fast")
    assert newest.run_id is not None

    local = ModelStore(MODELS)
    settings = Settings(mlflow_tracking_uri=server.url)
    for name, values in (
        ("extractor", np.zeros((2, 32, 32, 3), np.uint8)),
        ("classifier-fast", np.ones((2, 20), np.float32)),
    ):
        with open_source(settings, f"models:/{name}@challenger") as source:
            found, expected = source.current(), local.load(name)
            assert found.address == f"{name}@2"
            assert found.space == expected.space or name != "extractor"
            assert found.extractor == expected.extractor
            for one, other in zip(found.run(values), expected.run(values), strict=True):
                np.testing.assert_array_equal(one, other)

    run = mlflow._ask("runs/get", run_id=newest.run_id)["run"]["data"]
    assert {"key": "seed", "value": "7"} in run["params"]
    metrics = {each["key"]: each["value"] for each in run["metrics"]}
    assert metrics["classifier-fast.top1"] == local.describe("classifier-fast")["metrics"]["top1"]
    assert metrics["consensus.ece"] == 0.01
    kept = {each["path"] for each in mlflow._ask("artifacts/list", run_id=newest.run_id)["files"]}
    assert kept == {"models.toml", "models", "plots"}
