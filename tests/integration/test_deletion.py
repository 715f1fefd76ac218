"""Deleting images: one suite on doubles and on real servers; then what only Postgres and HTTP have."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import waiting
from ingest_api.deletion import deletion_routes
from visionmesh import deletion
from visionmesh.cache import Cache, ValkeyCache
from visionmesh.database import Database
from visionmesh.deletion import Deletions, Eraser, PostgresDeletions, RetentionKeeper
from visionmesh.errors import Rejected, Unavailable
from visionmesh.http import create_app
from visionmesh.object_store import ObjectStore, S3ObjectStore
from visionmesh.ocr_document import OcrDocument, PageSize, TextLine
from visionmesh.qr_code import QrCode
from visionmesh.results import (
    BEFORE_WRITING,
    FeaturesRow,
    ImageRow,
    Images,
    OcrDocumentRow,
    OutcomeRow,
    PostgresImages,
    PostgresResultStore,
    PredictionRow,
    QrCodesRow,
    ResultStore,
    Row,
    ShadowFeaturesRow,
    ShadowPredictionRow,
)
from visionmesh.stack import Stack
from visionmesh.testing.cache import MemoryCache
from visionmesh.testing.deletion import MemoryDeletions
from visionmesh.testing.object_store import MemoryObjectStore
from visionmesh.testing.results import MemoryImages, MemoryResultStore

TABLES = (*deletion.IMAGE_TABLES, "deleted_images")
DIGEST = "ab" * 32
WAIT_SECONDS = 30.0
until = partial(waiting.eventually, seconds=WAIT_SECONDS)


class Store(MemoryObjectStore):
    """In memory in every case: what is asked of a real one, its own suite asks."""


@dataclass
class Mesh:
    """What an image is in, and what takes it out of there."""

    results: ResultStore
    images: Images
    deletions: Deletions
    cache: Cache
    store: Store

    def __post_init__(self) -> None:
        self.eraser = Eraser(self.deletions, self.store, self.cache)

    def add(self, image_id: str, sha256: str = DIGEST) -> ImageRow:
        row = ImageRow(image_id, f"raw-images/{image_id}.jpg", sha256, 123, "image/jpeg", 32, 16)
        self.store.put(row.minio_path, [b"picture"], media_type="image/jpeg")
        self.images.add_image(row)
        self.results.save(rows(image_id))
        self.cache.put_many({f"descriptors:extractor@1:0123:{sha256}": b"8 bytes."})
        return row

    def is_cached(self, sha256: str = DIGEST) -> bool:
        (found,) = self.cache.get_many([f"descriptors:extractor@1:0123:{sha256}"], length=8)
        return found is not None


@pytest.fixture
def dsn(postgres_dsn: str) -> Iterator[str]:
    def empty() -> None:
        with psycopg.connect(postgres_dsn) as connection:
            connection.execute(f"TRUNCATE {', '.join(TABLES)}")

    empty()
    yield postgres_dsn
    empty()


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    with Database(dsn) as database:
        yield database


@pytest.fixture(params=["memory", pytest.param("servers", marks=pytest.mark.servers)])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    if request.param == "memory":
        results = MemoryResultStore()
        images = MemoryImages(results)
        return Mesh(results, images, MemoryDeletions(images), MemoryCache(), Store())
    database: Database = request.getfixturevalue("database")
    stack: Stack = request.getfixturevalue("session_stack")
    cache = ValkeyCache(f"{stack.endpoints.cache_url}?socket_timeout=10&socket_connect_timeout=10")
    return Mesh(
        PostgresResultStore(database), PostgresImages(database), PostgresDeletions(database), cache, Store()
    )


def prediction(kind: type[PredictionRow], image_id: str) -> PredictionRow:
    return kind(image_id, "fast", "cat", 0.5, ("cat", "dog"), (0.5, 0.5), "forest", "1", 1.5)


def rows(image_id: str) -> list[Row]:
    """A row of every table of results."""
    code = QrCode(
        content="one",
        data=b"one",
        corners=((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),
        decoder="zxing",
        symbology="qr",
        level_used=2,
        level="whole",
        preprocessing_applied=False,
        preprocessing="raw",
        rotation_angle=None,
        confidence=0.9,
        processing_time_ms=1.0,
    )
    line = TextLine("word", ((0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 9.0)), 0.9, 1)
    document = OcrDocument("word", (line,), (PageSize(10, 10),), "es+en", "rapidocr", {"detect": 0.2})
    shadow = prediction(ShadowPredictionRow, image_id)
    assert isinstance(shadow, ShadowPredictionRow)
    return [
        FeaturesRow(image_id, (0.5, 1.5), "extractor@1"),
        prediction(PredictionRow, image_id),
        ShadowFeaturesRow(image_id, (0.5, 1.5), "extractor@2", 1.0),
        shadow,
        QrCodesRow(image_id, (code,)),
        OcrDocumentRow(image_id, document),
        OutcomeRow(image_id, "qr-decoder", "done"),
    ]


def test_everything_of_an_image_goes_and_nothing_of_its_neighbour(mesh: Mesh) -> None:
    mesh.add("a")
    neighbour = mesh.add("b", sha256="cd" * 32)
    before = mesh.images.results("b")
    assert mesh.eraser.erase(["a"]) == {"a": True}
    assert mesh.images.results("a") is None
    assert mesh.images.search("word", limit=10)[0].image_id == "b"
    assert mesh.store.paths() == [neighbour.minio_path]
    assert not mesh.is_cached()
    assert mesh.is_cached("cd" * 32)
    assert mesh.images.results("b") == before


def test_deleting_again_is_the_same(mesh: Mesh) -> None:
    mesh.add("a")
    assert mesh.eraser.erase(["a"]) == mesh.eraser.erase(["a"]) == {"a": True}


def test_what_was_never_known_is_not_deleted(mesh: Mesh) -> None:
    mesh.add("a")
    assert mesh.eraser.erase(["b"]) == {}
    mesh.results.save(rows("b"))
    assert mesh.images.results("b") is not None


def test_late_results_do_not_bring_an_image_back(mesh: Mesh) -> None:
    mesh.add("a")
    mesh.results.begin("ocr-worker", ["a"])
    mesh.eraser.erase(["a"])
    mesh.results.save([*rows("a"), *rows("b")])
    mesh.results.begin("classifier-fast", ["a"])
    mesh.results.withdraw("ocr-worker", ["a"])
    assert mesh.images.results("a") is None
    assert mesh.results.interrupted("classifier-fast", ["a"]) == [0]
    assert mesh.results.deleted(["a", "b"]) == {"a"}
    # And nothing that no answer tells of, either.
    assert mesh.eraser.erase(["a"]) == {"a": True}
    assert mesh.images.results("b") is not None


def test_an_image_that_never_went_through_upload_is_deleted(mesh: Mesh) -> None:
    mesh.results.save(rows("a"))
    assert mesh.eraser.erase(["a"]) == {"a": True}
    assert mesh.images.results("a") is None


def test_what_only_a_shadow_saw_is_deleted(mesh: Mesh) -> None:
    mesh.results.save([row for row in rows("a") if isinstance(row, ShadowFeaturesRow)])
    assert mesh.eraser.erase(["a"]) == {"a": True}


def test_the_id_of_a_deleted_image_is_not_taken_again(mesh: Mesh) -> None:
    row = mesh.add("a")
    mesh.eraser.erase(["a"])
    with pytest.raises(Rejected) as refused:
        mesh.images.add_image(row)
    assert refused.value.code == "image_deleted"
    assert mesh.images.image("a") is None


def test_an_object_whose_store_is_away_goes_when_it_is_back(mesh: Mesh) -> None:
    row = mesh.add("a")
    mesh.store.available = False
    assert mesh.eraser.erase(["a"]) == {"a": False}
    assert mesh.images.results("a") is None
    assert mesh.eraser.finish() == 0
    mesh.store.available = True
    assert mesh.store.paths() == [row.minio_path]
    assert mesh.eraser.finish() == 1
    assert mesh.store.paths() == []
    assert mesh.eraser.finish() == 0


def test_an_object_of_a_bucket_that_is_none_of_ours_any_more_holds_up_nothing(mesh: Mesh) -> None:
    mesh.images.add_image(ImageRow("a", "elsewhere/a.jpg", DIGEST, 1, "image/jpeg"))
    assert mesh.eraser.erase(["a"]) == {"a": True}


def test_a_deletion_is_done_a_second_time_when_nobody_works_on_the_image_any_more(mesh: Mesh) -> None:
    row = mesh.add("a")
    mesh.eraser.erase(["a"])
    # A worker that had the picture in its hands.
    mesh.cache.put_many({f"descriptors:extractor@1:0123:{DIGEST}": b"8 bytes."})
    mesh.store.put(row.minio_path, [b"picture"], media_type="image/jpeg")
    assert mesh.eraser.finish() == 0, "it is too early"
    assert mesh.eraser.finish(settle_seconds=0) == 1
    assert not mesh.is_cached()
    assert mesh.store.paths() == []
    assert mesh.eraser.finish(settle_seconds=0) == 0


def test_a_finished_deletion_is_forgotten_when_nothing_can_speak_of_the_image(mesh: Mesh) -> None:
    row = mesh.add("a")
    mesh.eraser.erase(["a"])
    assert mesh.deletions.forget(older_than_seconds=-1, limit=10) == 0, "it is not finished"
    mesh.eraser.finish(settle_seconds=0)
    assert mesh.deletions.forget(older_than_seconds=3600, limit=10) == 0
    assert mesh.deletions.forget(older_than_seconds=-1, limit=10) == 1
    assert mesh.images.add_image(row).created


def test_a_deletion_is_remembered_for_longer_than_kafka_can_speak_of_the_image() -> None:
    # A letter that is sent home on its last day, each in a segment of a week.
    assert deletion.REMEMBERED_SECONDS / 86_400 > 30 + 7 + 7 + 7


def test_deletions_are_forgotten_page_by_page(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "_AT_ONCE", 2)
    monkeypatch.setattr(deletion, "REMEMBERED_SECONDS", -1)
    for image_id in "abcde":
        mesh.results.save([OutcomeRow(image_id, "qr-decoder", "done")])
    mesh.eraser.erase("abcde")
    mesh.eraser.finish(settle_seconds=0)
    assert mesh.deletions.forget(older_than_seconds=-1, limit=2) == 2
    assert mesh.eraser.forget() == 3


def test_one_replica_at_a_time_keeps(mesh: Mesh) -> None:
    mesh.results.save([OutcomeRow("plain", "qr-decoder", "done")])
    keeper = RetentionKeeper(mesh.eraser, retention_days=-1)
    with mesh.eraser.alone() as alone:
        assert alone
        keeper.keep()
        assert mesh.images.results("plain") is not None
    keeper.keep()
    assert mesh.images.results("plain") is None


def test_a_round_that_fails_lets_others_keep(mesh: Mesh) -> None:
    with pytest.raises(Unavailable), mesh.eraser.alone():
        raise Unavailable("database", "down")
    with mesh.eraser.alone() as alone:
        assert alone


def test_outcomes_older_than_their_upload_hold_up_nothing(mesh: Mesh) -> None:
    mesh.results.save([OutcomeRow("early", "qr-decoder", "done")])
    mesh.images.add_image(ImageRow("early", "raw-images/x", DIGEST, 1, "image/jpeg"))
    mesh.results.save([OutcomeRow("plain", "qr-decoder", "done")])
    assert mesh.deletions.never_uploaded(older_than_seconds=-1, limit=10) == ["plain"]


def test_what_is_too_old_is_deleted(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "_AT_ONCE", 100)
    for number in range(250):
        mesh.images.add_image(ImageRow(f"{number:03}", "raw-images/x", DIGEST, 1, "image/jpeg"))
    mesh.results.save([OutcomeRow("plain", "qr-decoder", "done")])
    keeper = RetentionKeeper(mesh.eraser, retention_days=1)
    keeper.keep()
    assert len(mesh.images.images(limit=500)) == 250
    # Everything is older than a day from now.
    soon = RetentionKeeper(mesh.eraser, retention_days=-1)
    soon.keep()
    assert mesh.images.images(limit=500) == []
    assert mesh.images.results("plain") is None
    assert mesh.eraser.erase_older_than(-1) == 0
    mesh.add("later")
    soon.keep()
    assert mesh.images.image("later") is not None, "it has just been looked"


def test_a_cache_that_is_away_holds_up_nothing() -> None:
    results = MemoryResultStore()
    images = MemoryImages(results)
    cache = MemoryCache()
    mesh = Mesh(results, images, MemoryDeletions(images), cache, Store())
    mesh.add("a")
    cache.available = False
    assert mesh.eraser.erase(["a"]) == {"a": True}
    mesh.eraser.finish(settle_seconds=0)
    cache.available = True
    assert mesh.is_cached()
    assert mesh.eraser.finish(settle_seconds=0) == 1, "it was not finished without the cache"
    assert not mesh.is_cached()
    assert mesh.eraser.finish(settle_seconds=0) == 0


def test_retention_looks_at_all_of_the_cache_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "_AT_ONCE", 2)
    results = MemoryResultStore()
    images = MemoryImages(results)
    cache = MemoryCache()
    mesh = Mesh(results, images, MemoryDeletions(images), cache, Store())
    digests = [f"{number:02}" * 32 for number in range(7)]
    for number, digest in enumerate(digests):
        mesh.add(f"{number}", sha256=digest)
    assert mesh.eraser.erase_older_than(-1) == 7
    assert not any(mesh.is_cached(digest) for digest in digests)
    assert cache.walks == 1


# Postgres


def test_no_table_is_left_out(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT table_name FROM information_schema.columns WHERE column_name = 'image_id'"
            " AND table_schema = 'public'"
        ).fetchall()
    assert {name for (name,) in found} == set(TABLES)


def test_a_deletion_waits_for_who_is_writing_and_takes_that_along(database: Database, dsn: str) -> None:
    results, images = PostgresResultStore(database), PostgresImages(database)
    results.save([OutcomeRow("a", "qr-decoder", "done")])
    with psycopg.connect(dsn) as writer:
        writer.execute(BEFORE_WRITING)
        writer.execute("INSERT INTO image_features VALUES ('a', '{0.5}', 'm@1')")
        deleting = threading.Thread(target=PostgresDeletions(database).delete, args=(["a"],))
        deleting.start()
        with psycopg.connect(dsn, autocommit=True) as looking:
            waiters = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            until(lambda: (looking.execute(waiters).fetchone() or (0,))[0] == 1, "a deletion that waits")
        writer.commit()
    deleting.join(WAIT_SECONDS)
    assert images.results("a") is None
    results.save(rows("a"))
    assert images.results("a") is None


MANY = """
    INSERT INTO images (image_id, minio_path, sha256, bytes, media_type, created_at)
        SELECT n, 'raw-images/x', '00', 1, 'image/jpeg', now() - interval '40 days' + n * interval '1 minute'
        FROM generate_series(1, 50000) AS n;
    INSERT INTO task_outcomes (image_id, worker, state, attempt, finished_at)
        SELECT n, 'qr-decoder', 'done', 1, now() - interval '40 days' + n * interval '1 minute'
        FROM generate_series(1, 50000) AS n;
    INSERT INTO deleted_images (image_id, finished_at)
        SELECT n, now() - interval '40 days' + n * interval '1 minute'
        FROM generate_series(50001, 100000) AS n;
    ANALYZE images, task_outcomes, deleted_images;
"""


@pytest.mark.parametrize("question", ["_OLDER_THAN", "_NEVER_UPLOADED", "_FORGET", "_UNFINISHED"])
def test_no_table_is_read_whole_for_what_is_old(dsn: str, question: str) -> None:
    days_20: dict[str, float] = {"seconds": 20 * 86_400, "limit": 100}
    asked = tuple(days_20.values()) if question == "_UNFINISHED" else days_20
    with psycopg.connect(dsn) as connection:
        connection.execute(MANY)
        plan = connection.execute(f"EXPLAIN {getattr(deletion, question)}", asked).fetchall()
        connection.rollback()
    assert "Seq Scan" not in "\n".join(line for (line,) in plan), plan


def test_a_process_with_one_connection_keeps_as_well(dsn: str) -> None:
    with Database(dsn, pool_size=1) as database:
        PostgresResultStore(database).save([OutcomeRow("a", "qr-decoder", "done")])
        RetentionKeeper(Eraser(PostgresDeletions(database), Store(), MemoryCache()), retention_days=-1).keep()
        assert PostgresImages(database).results("a") is None


def test_writers_do_not_wait_for_each_other(database: Database, dsn: str) -> None:
    with psycopg.connect(dsn) as writer:
        writer.execute(BEFORE_WRITING)
        PostgresResultStore(database).save(rows("a"))
    assert PostgresImages(database).results("a") is not None


# HTTP


@pytest.fixture
def client(mesh: Mesh) -> TestClient:
    app: FastAPI = create_app("ingest-api", checks={})
    app.include_router(deletion_routes(mesh.eraser))
    return TestClient(app)


def test_delete_answers_204_every_time_and_404_for_what_was_never_known(
    mesh: Mesh, client: TestClient
) -> None:
    mesh.add("a")
    assert client.delete("/images/b").status_code == 404
    for _ in range(2):
        answer = client.delete("/images/a")
        assert (answer.status_code, answer.content) == (204, b"")
    assert client.delete("/images/a%20b").json()["code"] == "image_not_found"


def test_delete_answers_202_while_the_store_is_away(mesh: Mesh, client: TestClient) -> None:
    mesh.add("a")
    mesh.store.available = False
    answer = client.delete("/images/a")
    assert (answer.status_code, answer.json()["status"]) == (202, "deleting")
    mesh.store.available = True
    assert client.delete("/images/a").status_code == 204
    assert mesh.store.paths() == []


def test_objects_are_deleted_from_a_real_store(session_stack: Stack) -> None:
    endpoints = session_stack.endpoints
    store: ObjectStore = S3ObjectStore(
        endpoints.s3_endpoint,
        access_key=endpoints.s3_access_key,
        secret_key=endpoints.s3_secret_key,
        secure=False,
        allowed_buckets=("raw-images",),
    )
    store.ensure_buckets()
    path = "raw-images/deletion/a.jpg"
    store.put(path, [b"picture"], media_type="image/jpeg")
    results = MemoryResultStore()
    images = MemoryImages(results)
    images.add_image(ImageRow("a", path, DIGEST, 1, "image/jpeg"))
    assert Eraser(MemoryDeletions(images), store, MemoryCache()).erase(["a"]) == {"a": True}
    with pytest.raises(Rejected, match="does not exist"):
        store.get(path, max_bytes=100)
