"""What runs once in a container, before the services: a wrong setting is named, without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "command",
    [
        "kafka create-topics",
        "object_store prepare",
        "database migrate",
        "accounts postgres",
        "reader_role",
        "backup backup FOLDER",
        "publishing",
    ],
)
def test_a_wrong_setting_is_named(command: str, tmp_path: Path) -> None:
    module, *arguments = command.replace("FOLDER", str(tmp_path / "backup")).split()
    wrong = {"MESH_POSTGRES_POOL_SIZE": "0", "GRAFANA_POSTGRES_PASSWORD": "secret"}
    done = subprocess.run(
        [sys.executable, "-m", f"visionmesh.{module}", *arguments],
        env=os.environ | wrong, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["MESH_POSTGRES_POOL_SIZE: Input should be greater than or equal to 1"]
