"""The schema: made once by however many callers, from a checkout and from an image's folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from visionmesh.database import MIGRATIONS, Database, migrate
from visionmesh.errors import Unavailable
from visionmesh.results import (
    PostgresImages,
    PostgresResultStore,
    PredictionRow,
    QrCodesRow,
    ShadowFeaturesRow,
)
from visionmesh.settings import ROOT
from visionmesh.stack import Stack
from waiting import eventually

FIRST_TABLES = {"images", "image_features", "predictions", "task_outcomes"}
TABLES = FIRST_TABLES | {
    "shadow_features", "shadow_predictions", "qr_codes", "ocr_documents", "sensor_readings",
    "deleted_images",
}  # fmt: skip


WRITTEN_BY_THE_FIRST_VERSION = """
    INSERT INTO images (image_id, minio_path, sha256, bytes, media_type)
        VALUES ('a', 'raw-images/a.jpg', 'aa', 1, 'image/jpeg');
    INSERT INTO image_features (image_id, descriptors, model) VALUES ('a', '{0.5}', 'e@1');
    INSERT INTO predictions (
        image_id, classifier, label, confidence, labels, probabilities, model, model_version, latency_ms
    ) VALUES ('a', 'fast', 'cat', 0.9, '{cat, dog}', '{0.9, 0.1}', 'm', '1', 0.1);
    INSERT INTO task_outcomes (image_id, worker, state, attempt) VALUES ('a', 'w', 'done', 1);
"""

ANOTHER_PREDICTION = """
    INSERT INTO predictions (
        image_id, classifier, label, confidence, labels, probabilities, model, model_version, latency_ms
    ) VALUES ('b', 'fast', 'cat', 0.9, '{cat, dog}', '{0.9, 0.1}', 'm', '1', 0.1)
"""


def rows_of(dsn: str, names: set[str]) -> dict[str, list[tuple[Any, ...]]]:
    with psycopg.connect(dsn) as connection:
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in sorted(names)}


@pytest.fixture
def bare_dsn(session_stack: Stack) -> Iterator[str]:
    """A database without a schema."""
    name = f"bare_{uuid.uuid4().hex[:8]}"
    dsn = session_stack.endpoints.postgres_dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield psycopg.conninfo.make_conninfo(dsn, dbname=name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {name for (name,) in rows}


def command(dsn: str, *options: str, root: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "visionmesh.database", "migrate", *options],
        env={**os.environ, "MESH_POSTGRES_DSN": dsn, "PYTHONPATH": str(root / "shared")},
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_migrating_makes_the_tables_and_a_second_time_nothing(bare_dsn: str) -> None:
    migrate(bare_dsn)
    assert tables(bare_dsn) == {*TABLES, "alembic_version"}
    latest = max(version.name[:4] for version in (MIGRATIONS / "versions").glob("*.py"))
    with psycopg.connect(bare_dsn) as connection:
        # One: each migration follows the one before.
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(latest,)]
        connection.execute(
            "INSERT INTO images (image_id, minio_path, sha256, bytes, media_type)"
            " VALUES ('a', 'b/c', '', 1, '')"
        )
    migrate(bare_dsn)
    with psycopg.connect(bare_dsn) as connection:
        assert connection.execute("SELECT count(*) FROM images").fetchone() == (1,)


def test_an_upgrade_keeps_what_an_earlier_version_wrote(
    bare_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, first, ignore=shutil.ignore_patterns("__pycache__"))
    for version in (first / "versions").glob("*.py"):
        if not version.name.startswith("0001"):
            version.unlink()
    with monkeypatch.context() as earlier:
        earlier.setattr("visionmesh.database.MIGRATIONS", first)
        migrate(bare_dsn)
    assert tables(bare_dsn) == {*FIRST_TABLES, "alembic_version"}
    with psycopg.connect(bare_dsn) as connection:
        connection.execute(WRITTEN_BY_THE_FIRST_VERSION)
    before = rows_of(bare_dsn, FIRST_TABLES)
    with Database(bare_dsn) as database:
        store = PostgresResultStore(database)
        prediction = PredictionRow("b", "fast", "cat", 0.9, ("cat", "dog"), (0.9, 0.1), "m", "1", 0.1)
        # A service that is newer than the schema waits for it.
        with pytest.raises(Unavailable, match="deleted_images"):
            store.save([prediction])
        migrate(bare_dsn)
        assert rows_of(bare_dsn, FIRST_TABLES) == before
        found = PostgresImages(database).results("a")
        assert found is not None
        assert [each.label for each in found.predictions] == ["cat"]
        store.save([ShadowFeaturesRow("a", (0.5,), "e@2", 0.1), QrCodesRow("a", ())])
    assert rows_of(bare_dsn, FIRST_TABLES) == before
    assert tables(bare_dsn) == {*TABLES, "alembic_version"}


def test_concurrent_migrations_all_succeed(bare_dsn: str) -> None:
    processes = [command(bare_dsn) for _ in range(3)]
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    assert tables(bare_dsn) == {*TABLES, "alembic_version"}


def test_indexes_are_built_beside_a_writer_and_again_after_a_run_that_was_broken_off(
    bare_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, before, ignore=shutil.ignore_patterns("__pycache__", "000[78]*"))
    with monkeypatch.context() as earlier:
        earlier.setattr("visionmesh.database.MIGRATIONS", before)
        migrate(bare_dsn)
    with psycopg.connect(bare_dsn) as writer:
        # As a run that was broken off leaves it: there, and not valid.
        writer.execute("CREATE INDEX predictions_newest ON predictions (created_at)")
        writer.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'predictions_newest'::regclass"
        )
        writer.commit()
        writer.execute(WRITTEN_BY_THE_FIRST_VERSION)
        # Both wait for the writer to end, the second for the first as well.
        processes = [command(bare_dsn) for _ in range(2)]
        with psycopg.connect(bare_dsn, autocommit=True) as other:
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'virtualxid' AND NOT granted"
            eventually(lambda: other.execute(waiting).fetchone() == (1,), "the wait for a writer", seconds=60)
            # Whoever writes meanwhile does not wait.
            other.execute("SET lock_timeout = '1ms'")
            other.execute(ANOTHER_PREDICTION)
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    with psycopg.connect(bare_dsn) as connection:
        newest = connection.execute(
            "SELECT indexrelid::regclass::text, indisvalid FROM pg_index"
            " WHERE indexrelid::regclass::text ~ '_newest$' AND indrelid = ANY(%s::regclass[])",
            (["predictions", "qr_codes", "ocr_documents"],),
        ).fetchall()
    assert sorted(newest) == [
        ("ocr_documents_newest", True), ("predictions_newest", True), ("qr_codes_newest", True)
    ]  # fmt: skip


def test_an_image_that_holds_only_shared_and_deploy_can_migrate(bare_dsn: str, tmp_path: Path) -> None:
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "shared", tmp_path / "shared", ignore=leave_out)
    shutil.copytree(MIGRATIONS, tmp_path / "deploy" / "postgres" / "migrations", ignore=leave_out)
    process = command(bare_dsn, root=tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert tables(bare_dsn) >= TABLES


def test_a_migration_that_fails_leaves_nothing_half_done(bare_dsn: str) -> None:
    with psycopg.connect(bare_dsn) as connection:
        connection.execute("CREATE TABLE predictions (other text)")
    with pytest.raises(psycopg.errors.DuplicateTable):
        migrate(bare_dsn)
    assert tables(bare_dsn) == {"predictions"}


def test_a_server_that_starts_late_is_waited_for(session_stack: Stack, bare_dsn: str) -> None:
    session_stack.postgres.stop()
    try:
        process = command(bare_dsn)
    finally:
        session_stack.postgres.start()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert tables(bare_dsn) >= TABLES


def test_an_absent_server_is_an_error_that_says_so() -> None:
    nowhere = "postgresql://mesh@127.0.0.1:1/mesh"
    with pytest.raises(Unavailable, match="port 1 failed"):
        migrate(nowhere, wait_seconds=0.01)
    process = command(nowhere, "--wait-seconds", "0.01")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "database: connection failed" in output
    assert "Traceback" not in output
