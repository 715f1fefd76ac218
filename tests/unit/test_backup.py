"""What a backup and a restore refuse before they ask any server."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionmesh.backup import BackupError, backup
from visionmesh.settings import Settings


def test_a_folder_of_somebody_else_stays_open_to_all_who_use_it(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(BackupError, match="not empty"):
        backup(Settings(), tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
