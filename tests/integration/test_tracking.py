"""What training tells MLflow, and that services can load it from there."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlflow_servers import RealMlflow
from training.tables import toml
from visionmesh.mlflow import Mlflow
from visionmesh.model_store import ModelStore
from visionmesh.registry import open_source
from visionmesh.settings import ROOT, Settings

MODELS = ROOT / "models"
NAMES = ("extractor", "classifier-fast")
RECORD = """
import sys
from pathlib import Path
from training.tracking import TrackingError, check, record
try:
    if "--unchecked" not in sys.argv:
        check()
    record(["extractor", "classifier-fast", "consensus"], Path(sys.argv[1]), parameters={"seed": 7},
           artifacts=["models.toml", "plots"])
except TrackingError as error:
    raise SystemExit(str(error))
"""


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """What a training leaves behind."""
    folder = tmp_path / "trained"
    (folder / "plots").mkdir(parents=True)
    (folder / "plots" / "plot.svg").write_text("<svg/>")
    tables = {name: ModelStore(MODELS).describe(name) for name in NAMES}
    tables["consensus"] = {"kind": "consensus", "version": "1", "metrics": {"ece": 0.01, "by": {"90": 0.5}}}
    (folder / "models.toml").write_text("".join(toml(table, name) for name, table in tables.items()))
    for name in NAMES:
        shutil.copy(MODELS / tables[name]["file"], folder)
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealMlflow]:
    python = os.environ.get("MESH_MLFLOW_PYTHON")
    if python is None:
        pytest.skip("MESH_MLFLOW_PYTHON names no interpreter with MLflow")
    mlflow = RealMlflow(python, tmp_path)
    mlflow.start()
    yield mlflow
    mlflow.stop()


def ended(python: str, server_url: str | None, *arguments: str) -> tuple[int, str]:
    """Status and errors of a program that imports the training."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"PYTHONPATH": str(MODELS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    if server_url is not None:
        environment["MLFLOW_TRACKING_URI"] = server_url
    done = subprocess.run(
        [python, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=150
    )
    return done.returncode, done.stderr


def test_nothing_happens_without_a_server(trained: Path) -> None:
    # This interpreter has no MLflow, so that an attempt would show.
    assert ended(sys.executable, None, "-c", RECORD, str(trained)) == (0, "")
    status, said = ended(sys.executable, "http://127.0.0.1:1", "-c", RECORD, str(trained))
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith(
        "Nothing was trained, because MLflow can't be told of it: No module named 'mlflow'"
    )


def test_what_was_recorded_can_be_loaded_and_answers_the_same(server: RealMlflow, trained: Path) -> None:
    python = os.environ["MESH_MLFLOW_PYTHON"]
    for _ in range(2):
        assert ended(python, server.url, "-c", RECORD, str(trained))[0] == 0
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


# Its client starts in seconds, five times.
@pytest.mark.timeout(600)
def test_an_mlflow_that_is_away_at_the_end_is_told_later(server: RealMlflow, trained: Path) -> None:
    python = os.environ["MESH_MLFLOW_PYTHON"]
    server.stop()
    status, said = ended(python, server.url, "-c", RECORD, str(trained))
    assert (status, said.splitlines()[-1].partition(",")[0]) == (1, "Nothing was trained")
    status, said = ended(python, server.url, "-c", RECORD, str(trained), "--unchecked")
    assert (status, said.splitlines()[-1].partition(",")[0]) == (1, f"The models are written to {trained}")
    later = shlex.split(said.rpartition(": ")[2])
    assert later[0] == f"PYTHONPATH={MODELS}"
    server.start()
    assert ended(later[1], server.url, *later[2:])[0] == 0
    assert set(Mlflow(server.url).models()) == set(NAMES)
    assert "no training left models" in ended(later[1], server.url, *later[2:])[1]
