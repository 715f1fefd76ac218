"""`mesh edge` on a simulated chip: one that a test lays flat, tilts and moves, and one that is recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_publisher.simulation import world
from visionmesh.cli import app
from visionmesh.cli import edge as edge_command
from visionmesh.settings import get_edge_settings


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EDGE_SIMULATE", "all")
    monkeypatch.setattr(edge_command, "_OPENING_SECONDS", 10.0)
    get_edge_settings.cache_clear()
    yield
    get_edge_settings.cache_clear()


def lie(monkeypatch: pytest.MonkeyPatch, accel_g: Any, gyro_dps: Any) -> None:
    monkeypatch.setattr(world, "motion", lambda _: world.Motion(accel_g, gyro_dps, 30.0))


def test_the_offsets_of_a_board_that_lies_still_make_it_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    lie(monkeypatch, (0.03, -0.02, 1.05), (1.5, 0.0, -2.0))
    answer = CliRunner().invoke(app, ["edge", "calibrate", "--seconds", "0.3"])
    assert answer.exit_code == 0, answer.output
    name, _, value = answer.stdout.strip().partition("=")
    assert json.loads(value.strip("'")) == pytest.approx([0.03, -0.02, 0.05, 1.5, 0.0, -2.0], abs=0.01)
    monkeypatch.setenv(name, value.strip("'"))
    get_edge_settings.cache_clear()
    answer = CliRunner().invoke(app, ["edge", "read", "mpu6050", "--seconds", "0.1"])
    reading = json.loads(answer.stdout.splitlines()[0])
    assert [reading[axis] for axis in ("ax_g", "ay_g", "az_g")] == pytest.approx([0, 0, 1], abs=0.001)
    assert reading["gz_dps"] == pytest.approx(0, abs=0.01)


def test_a_board_that_moves_is_not_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "motion", lambda at: world.Motion((0, 0, 1), (0, 200 * (at % 0.1), 0), 30.0))
    answer = CliRunner().invoke(app, ["edge", "calibrate", "--seconds", "0.5"])
    assert answer.exit_code == 1
    assert "It moved (gy_dps)" in answer.stderr
    assert answer.stdout == ""


def test_a_recording_replaces_the_one_that_would_be_replayed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "mpu6050.jsonl"
    path.write_text("an old one")
    monkeypatch.setenv("EDGE_REPLAY", str(tmp_path))
    answer = CliRunner().invoke(app, ["edge", "record", "mpu6050", "--output", str(path), "--seconds", "0.1"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(path.read_text().splitlines()[0])["source"].startswith("simulated")
    assert list(tmp_path.iterdir()) == [path]


def test_a_sensor_that_is_away_leaves_the_recording_of_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "tfluna.jsonl"
    path.write_text("an old one")
    monkeypatch.setenv("EDGE_SIMULATE", "[]")
    monkeypatch.setenv("EDGE_TFLUNA_PORT", str(tmp_path / "none"))
    monkeypatch.setattr(edge_command, "_OPENING_SECONDS", 0.2)
    answer = CliRunner().invoke(app, ["edge", "record", "tfluna", "--output", str(path), "--seconds", "0.1"])
    assert answer.exit_code == 1
    assert path.read_text() == "an old one"
    assert list(tmp_path.iterdir()) == [path]
