"""What a backup and a restore refuse before they ask any server."""

from __future__ import annotations

import tarfile
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import msgspec
import pytest

from visionmesh.backup import (
    FORMAT,
    MANIFEST,
    BackupError,
    Manifest,
    _check_objects,
    _files,
    backup,
    restore,
)
from visionmesh.settings import Settings


def test_a_folder_of_somebody_else_stays_open_to_all_who_use_it(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(BackupError, match="not empty"):
        backup(Settings(), tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def made(folder: Path, *paths: str) -> Path:
    """A backup of objects and nothing else."""
    with tarfile.open(folder / "objects.tar", "w") as tar:
        for path in paths:
            entry = tarfile.TarInfo(path)
            entry.size = 5
            tar.addfile(entry, BytesIO(b"bytes"))
    manifest = Manifest(FORMAT, datetime.now(UTC), "0001", (), (), len(paths), 0, tuple(_files(folder)))
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return folder


def test_an_object_of_a_bucket_that_is_not_allowed_is_refused_before_any_is_stored(tmp_path: Path) -> None:
    folder = made(tmp_path, "raw-images/a.png", "of-others/b.png", "raw-images/c.png")
    with pytest.raises(BackupError, match=r"of-others/b\.png.*allow-list.*MESH_S3_ALLOWED_BUCKETS"):
        restore(Settings(), folder, with_records=False)


def test_objects_of_every_bucket_that_is_allowed_pass(tmp_path: Path) -> None:
    folder = made(tmp_path, "raw-images/a.png", "of-others/b.png", "of-more/c.png")
    settings = Settings(s3_upload_bucket="raw-images", s3_allowed_buckets=("of-others", "of-more"))
    _check_objects(settings, folder / "objects.tar")
