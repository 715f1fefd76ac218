"""Training beside an MLflow that is away, and one that takes everything; what a real one makes of it is in
tests/integration/test_tracking.py.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import small_models
from training import tracking

SERVER = "http://somebody:s3cret@127.0.0.1:1"


class FakeMlflow(ModuleType):
    """As much of the library as training uses. away: whether its server is."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.away = False
        self.tries: list[str | None] = []
        self.said: dict[str, Any] = {}
        self.artifacts: list[str] = []
        self.versions: list[str] = []

    def MlflowClient(self) -> SimpleNamespace:
        return SimpleNamespace(
            get_experiment_by_name=self._answer,
            get_registered_model=lambda name: SimpleNamespace(aliases={}),
            create_model_version=lambda name, *_, **__: (
                self.versions.append(name) or SimpleNamespace(version=1)
            ),
            set_registered_model_alias=self._answer,
        )

    def set_experiment(self, name: str) -> None:
        self._answer(name)

    def start_run(self) -> Any:
        return nullcontext(
            SimpleNamespace(info=SimpleNamespace(artifact_uri="mlflow-artifacts:/0", run_id="1"))
        )

    def log_params(self, parameters: dict[str, str]) -> None:
        self.said |= parameters

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.said |= metrics

    def log_artifact(self, path: str) -> None:
        self.artifacts.append(Path(path).name)

    def log_artifacts(self, path: str, into: str) -> None:
        assert Path(path).is_dir()
        self.artifacts.append(into)

    def _answer(self, *_: object) -> None:
        self.tries.append(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES"))
        if self.away:
            raise ConnectionError(f"Max retries exceeded\nwith {SERVER}/api")


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake, exceptions = FakeMlflow(), ModuleType("mlflow.exceptions")
    exceptions.MlflowException = type("MlflowException", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    return fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_models.write_models(tmp_path, {"classifier-fast": small_models.classifier()})
    (tmp_path / "reports").mkdir()
    (tmp_path / "REPORT.md").touch()
    return tmp_path


def record(folder: Path) -> None:
    tracking.record(["classifier-fast"], folder, parameters={"seed": 7}, artifacts=["REPORT.md", "reports"])


def again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["training.tracking", "--models", str(folder)])
    tracking.main()


def test_an_mlflow_that_is_away_is_told_before_anything_is_trained(mlflow: FakeMlflow) -> None:
    tracking.check()
    mlflow.away = True
    with pytest.raises(
        tracking.TrackingError, match=r"^Nothing was trained, .* exceeded with http://127.0"
    ) as caught:
        tracking.check()
    assert "s3cret" not in str(caught.value)
    # At once, though its client is patient otherwise.
    assert mlflow.tries == ["0", "0"]
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"


def test_a_python_without_the_library_says_so(mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # type: ignore[arg-type]
    with pytest.raises(tracking.TrackingError, match="mlflow"):
        tracking.check()


def test_what_was_trained_while_mlflow_was_away_is_told_later(
    mlflow: FakeMlflow, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.away = True
    for _ in range(2):
        with pytest.raises(
            tracking.TrackingError, match=r"^The models are written to .* -m training.tracking"
        ) as caught:
            record(folder)
        assert "\n" not in str(caught.value)
        assert "s3cret" not in str(caught.value)
        with pytest.raises(SystemExit, match=r"^The models are written to "):
            again(folder, monkeypatch)
    assert (mlflow.tries[-1], mlflow.versions) == ("7", [])
    mlflow.away = False
    again(folder, monkeypatch)
    assert mlflow.said["seed"] == "7"
    assert mlflow.artifacts == ["REPORT.md", "reports", "models/classifier-fast"]
    assert mlflow.versions == ["classifier-fast"]
    with pytest.raises(SystemExit, match="no training left models"):
        again(folder, monkeypatch)


def test_what_is_recorded_at_once_leaves_nothing_to_do(mlflow: FakeMlflow, folder: Path) -> None:
    record(folder)
    assert mlflow.versions == ["classifier-fast"]
    assert not (folder / tracking.UNRECORDED).exists()


def test_without_a_server_nothing_happens_and_older_models_are_forgotten(
    mlflow: FakeMlflow, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.away = True
    with pytest.raises(tracking.TrackingError):
        record(folder)
    assert json.loads((folder / tracking.UNRECORDED).read_text())["models"] == ["classifier-fast"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    mlflow.tries.clear()
    tracking.check()
    record(folder)
    assert not (folder / tracking.UNRECORDED).exists()
    assert mlflow.tries == []
    with pytest.raises(SystemExit, match="Set MLFLOW_TRACKING_URI"):
        again(folder, monkeypatch)
