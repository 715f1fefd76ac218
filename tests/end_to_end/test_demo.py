"""`mesh demo --once`: the first thing anyone runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from visionmesh.settings import ROOT

SAMPLES = sorted(path.name for path in (ROOT / "samples").iterdir() if path.suffix in {".jpg", ".png"})


@pytest.mark.timeout(450)
def test_the_demo_shows_labels_the_agreed_one_and_codes_and_leaves_nothing(tmp_path: Path) -> None:
    stack = os.environ.get("MESH_TEST_STACK", "embedded")
    options = ["demo", "--once", "--ports", "free", "--stack", stack, "--directory", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "visionmesh.cli", *options],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert ended.returncode == 0, ended.stderr
    rows = [line for line in ended.stdout.splitlines() if any(name in line for name in SAMPLES)]
    assert len(rows) == len(SAMPLES)
    assert all(row.count("%") == 4 and row.rstrip(" │").endswith(" ms") for row in rows)
    assert [row for row in rows if "visionmesh reads QR codes" in row] == [
        row for row in rows if "qr.png" in row
    ]
    for sensor in ("imx477", "mpu6050", "tfluna"):
        assert sum(f" {sensor} " in line and "simulated" in line for line in ended.stdout.splitlines()) == 1
    assert not (tmp_path / "running.json").exists()
