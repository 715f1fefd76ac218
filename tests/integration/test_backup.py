"""Backup, wipe, restore: the same answers. On the servers of `--stack`, without services."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition

from visionmesh import backup as backups
from visionmesh.backup import BackupError, backup, main, read_manifest, restore
from visionmesh.cache import NoCache
from visionmesh.database import Database
from visionmesh.deletion import IMAGE_TABLES, Eraser, PostgresDeletions
from visionmesh.kafka import KafkaPublisher, Record, client_config, create_topics, partition_offsets
from visionmesh.object_store import S3ObjectStore
from visionmesh.ocr_document import OcrDocument, PageSize, TextLine
from visionmesh.results import (
    FeaturesRow,
    ImageResults,
    ImageRow,
    OcrDocumentRow,
    OutcomeRow,
    PostgresImages,
    PostgresResultStore,
    PredictionRow,
)
from visionmesh.sensors import SensorReadingRow
from visionmesh.settings import Settings
from visionmesh.stack import Stack
from visionmesh.topics import FEATURES, IMAGES, dead_letter_topics, readers
from visionmesh.worker import dead_letters
from visionmesh.worker.retry import until_available

WORKERS = ("classifier-accurate", "classifier-balanced", "classifier-fast", "feature-extractor")
READERS = ("ocr-worker", "qr-decoder")


def commit_to_the_end(settings: Settings) -> None:
    """Every group of the mesh has finished everything, and every dead letter was sent home."""
    pairs = [(topic.name, group) for topic, group in readers()]
    pairs += [(topic, backups.REPLAY_GROUP) for topic in dead_letter_topics()]
    for topic, group in pairs:
        ends = [
            TopicPartition(topic, each.partition, each.high)
            for each in partition_offsets(settings, topic, group)
            if each.lag
        ]
        if ends:
            consumer = Consumer(client_config(settings) | {"group.id": group, "enable.auto.commit": False})
            consumer.commit(offsets=ends, asynchronous=False)
            consumer.close()


def empty_tables(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        tables = connection.execute(backups._TABLE_COLUMNS).fetchall()
        connection.execute(f"TRUNCATE {', '.join(name for name, _ in tables)}")


@pytest.fixture(scope="module")
def mesh(own_stack: Stack) -> Settings:
    """Of a mesh that the tests share, one after the other."""
    environment = own_stack.endpoints.environment()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        settings = Settings()
    if settings.kafka_group_protocol == "classic":
        create_topics(settings)
    # A broker that has just been started knows for a while of nobody who keeps what groups have finished.
    until_available(lambda: partition_offsets(settings, IMAGES.name, "anyone"), Event(), lambda _: None)
    return settings


@pytest.fixture
def settings(mesh: Settings) -> Settings:
    """Of a mesh in which there is nothing and everything is finished."""
    wipe(mesh)
    return mesh


def wipe(settings: Settings) -> None:
    empty_tables(settings.postgres_dsn.get_secret_value())
    store = S3ObjectStore.from_settings(settings)
    store.ensure_buckets()
    for each in list(store.objects()):
        store.delete(each.minio_path)
    commit_to_the_end(settings)


def fill(settings: Settings) -> dict[str, ImageResults | None]:
    """Pictures with everything, with nothing yet, and of a producer of its own; what is known of each."""
    store = S3ObjectStore.from_settings(settings)
    line = TextLine("naïve\n\ttext\\N", ((0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 9.0)), 0.9, 1)
    document = OcrDocument(line.text, (line,), (PageSize(10, 10),), "es+en", "rapidocr", {"detect": 0.2})
    with Database.from_settings(settings) as database:
        images, results = PostgresImages(database), PostgresResultStore(database)
        for number, image_id in enumerate(("done", "waiting", "large")):
            path = f"raw-images/2026/11/21/{image_id}.png"
            data = b"\x89PNG\r\n\x1a\n" + bytes([number]) * (6_000_000 if image_id == "large" else 100)
            store.put(path, [data], media_type="image/png")
            images.add_image(ImageRow(image_id, path, "00", len(data), "image/png", 32, 16, ("classify",)))
        store.put("raw-images/of a producer/ä.bin", [b"anything"], media_type="application/octet-stream")
        images.mark_published(["done", "waiting", "large"])
        for image_id in ("done", "plain"):
            results.save(
                [
                    FeaturesRow(image_id, (0.5, -1.25), "extractor@1"),
                    PredictionRow(image_id, "fast", "cat", 0.5, ("cat", "dog"), (0.5, 0.5), "m", "1", 1.5),
                    OcrDocumentRow(image_id, document),
                    *(OutcomeRow(image_id, worker, "done") for worker in (*WORKERS, *READERS)),
                ]
            )
        moment = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
        results.save([SensorReadingRow("pi", "tfluna", 1, moment, {"distance_cm": 1.5}, 7)])
        return known(database)


def known(database: Database) -> dict[str, ImageResults | None]:
    images = PostgresImages(database)
    return {image_id: images.results(image_id) for image_id in ("done", "waiting", "large", "plain")}


def readings(settings: Settings) -> list[tuple[Any, ...]]:
    with psycopg.connect(settings.postgres_dsn.get_secret_value()) as connection:
        return connection.execute("SELECT * FROM sensor_readings ORDER BY 1, 2, 3").fetchall()


def objects(settings: Settings) -> dict[str, bytes]:
    store = S3ObjectStore.from_settings(settings)
    return {each.minio_path: store.get(each.minio_path, max_bytes=10**8) for each in store.objects()}


def announced_again(before: ImageResults | None) -> ImageResults | None:
    """What is known of a picture that is in the outbox again."""
    assert before is not None
    assert before.image is not None
    return replace(before, image=replace(before.image, published_at=None))


def test_backup_wipe_restore_and_everything_answers_as_before(settings: Settings, tmp_path: Path) -> None:
    before, objects_before, readings_before = fill(settings), objects(settings), readings(settings)
    said: list[str] = []
    made = backup(settings, tmp_path / "backup", said.append)
    assert (made.objects, made.records) == (4, 0)
    wipe(settings)
    restore(settings, tmp_path / "backup", say=said.append)
    with Database.from_settings(settings) as database:
        after = known(database)
    assert after["done"] == before["done"]
    assert after["plain"] == before["plain"]
    # What had no results yet is asked for again.
    assert after["waiting"] == announced_again(before["waiting"])
    assert objects(settings) == objects_before
    assert readings(settings) == readings_before
    assert "2 pictures without all results, which are asked for again" in said


def test_a_second_restore_is_refused_and_one_that_replaces_is_not(settings: Settings, tmp_path: Path) -> None:
    fill(settings)
    backup(settings, tmp_path / "backup")
    with pytest.raises(BackupError, match=r"not empty: .* has rows"):
        restore(settings, tmp_path / "backup")
    with Database.from_settings(settings) as database:
        PostgresResultStore(database).save([OutcomeRow("later", "qr-decoder", "done")])
        restore(settings, tmp_path / "backup", replace=True)
        assert PostgresImages(database).results("later") is None
        assert PostgresImages(database).results("done") is not None


# What was deleted


def eraser(settings: Settings, database: Database) -> Eraser:
    return Eraser(PostgresDeletions(database), S3ObjectStore.from_settings(settings), NoCache())


def is_deleted(settings: Settings, database: Database, image_id: str) -> bool:
    """No row, no object, and nothing that comes late is taken."""
    results = PostgresResultStore(database)
    results.save([OutcomeRow(image_id, "qr-decoder", "done")])
    gone = PostgresImages(database).results(image_id) is None
    return gone and not any(image_id in path for path in objects(settings))


def test_what_is_deleted_during_a_backup_does_not_come_back(settings: Settings, tmp_path: Path) -> None:
    fill(settings)
    with Database.from_settings(settings) as database:

        def delete(line: str) -> None:
            # The first: its object is in none of the files. The second: it is among the objects.
            if "tables" in line:
                eraser(settings, database).erase(["done"])
            if "objects" in line:
                eraser(settings, database).erase(["waiting"])

        backup(settings, tmp_path / "backup", delete)
        wipe(settings)
        restore(settings, tmp_path / "backup")
        assert is_deleted(settings, database, "done")
        assert is_deleted(settings, database, "waiting")
        assert PostgresImages(database).image("large") is not None


def test_what_was_deleted_since_a_backup_stays_deleted_where_the_mesh_still_knows(
    settings: Settings, tmp_path: Path
) -> None:
    fill(settings)
    backup(settings, tmp_path / "backup")
    with Database.from_settings(settings) as database:
        eraser(settings, database).erase(["done"])
        eraser(settings, database).finish(settle_seconds=0)
        restore(settings, tmp_path / "backup", replace=True)
        assert is_deleted(settings, database, "done")
        assert PostgresImages(database).image("large") is not None


def test_old_deletions_are_remembered_anew_after_a_restore(settings: Settings, tmp_path: Path) -> None:
    fill(settings)
    with Database.from_settings(settings) as database:
        eraser(settings, database).erase(["done"])
        with database.transaction() as connection:
            connection.execute(
                "UPDATE deleted_images SET deleted_at = now() - interval '60 days',"
                " finished_at = now() - interval '59 days'"
            )
        backup(settings, tmp_path / "backup")
        wipe(settings)
        restore(settings, tmp_path / "backup")
        # Its dead letters have just begun another month.
        assert eraser(settings, database).forget() == 0
        assert is_deleted(settings, database, "done")


def test_readings_that_came_meanwhile_stay(settings: Settings, tmp_path: Path) -> None:
    fill(settings)
    backup(settings, tmp_path / "backup")
    wipe(settings)
    moment = datetime(2026, 2, 3, 5, tzinfo=UTC)
    with Database.from_settings(settings) as database:
        PostgresResultStore(database).save([SensorReadingRow("pi", "tfluna", 2, moment, {}, None)])
    restore(settings, tmp_path / "backup")
    assert len(readings(settings)) == 2


def test_readings_that_a_device_delivers_again_are_no_others(settings: Settings, tmp_path: Path) -> None:
    fill(settings)
    before = readings(settings)
    backup(settings, tmp_path / "backup")
    with psycopg.connect(settings.postgres_dsn.get_secret_value()) as connection:
        connection.execute(f"TRUNCATE {', '.join((*IMAGE_TABLES, 'deleted_images'))}")
    restore(settings, tmp_path / "backup")
    assert readings(settings) == before


def test_no_more_pictures_are_asked_for_than_said(settings: Settings, tmp_path: Path) -> None:
    fill(settings)
    backup(settings, tmp_path / "backup")
    wipe(settings)
    said: list[str] = []
    restore(settings, tmp_path / "backup", ask_again=1, say=said.append)
    with Database.from_settings(settings) as database:
        assert PostgresImages(database).pending() == 1
    assert "there may be more of them: mesh reconcile" in said


def test_what_the_file_system_says_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, reason in (("file", "File exists"), ("file/below", "Not a directory")):
        with pytest.raises(BackupError, match=f"{folder}: {reason}"):
            backup(settings, tmp_path / folder)


def test_a_folder_that_is_in_use_is_not_written_to(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackupError, match="not empty"):
        backup(settings, tmp_path)


@pytest.fixture(scope="module")
def sound(mesh: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup with nothing wrong; the mesh is full after it."""
    wipe(mesh)
    fill(mesh)
    folder = tmp_path_factory.mktemp("sound") / "backup"
    backup(mesh, folder)
    return folder


def spoil_a_byte(folder: Path) -> None:
    path = folder / "objects.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def change_manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / backups.MANIFEST
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


NEWER = [{"name": "images", "columns": ["image_id", "of_tomorrow"], "rows": 0}]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_a_byte, "objects.tar is damaged"),
        (lambda folder: (folder / "records.jsonl.gz").unlink(), "records.jsonl.gz is damaged or missing"),
        (lambda folder: (folder / backups.MANIFEST).unlink(), "no complete backup"),
        (lambda folder: (folder / backups.MANIFEST).write_text("{"), "no complete backup"),
        (change_manifest(format=2), "of format 2"),
        (change_manifest(tables=NEWER), "a newer one"),
    ],
)
def test_what_is_damaged_or_does_not_fit_is_refused_before_anything_is_changed(
    sound: Path, settings: Settings, tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    folder = shutil.copytree(sound, tmp_path / "backup")
    spoil(folder)
    with pytest.raises(BackupError, match=reason):
        restore(settings, folder)
    assert objects(settings) == {}
    with Database.from_settings(settings) as database:
        assert PostgresImages(database).images(limit=1) == []


def test_a_restore_that_fails_half_way_leaves_the_tables_as_they_were(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings)
    folder = tmp_path / "backup"
    backup(settings, folder)
    with Database.from_settings(settings) as database:
        PostgresResultStore(database).save([OutcomeRow("later", "qr-decoder", "done")])
    monkeypatch.setattr(backups, "_check_files", lambda *_: None)
    # The last of the tables, in its middle.
    path = folder / "tables" / "task_outcomes.copy.gz"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(EOFError):
        restore(settings, folder, replace=True)
    with Database.from_settings(settings) as database:
        assert PostgresImages(database).results("later") is not None


# Kafka


def consumed(settings: Settings, topic: str, group: str) -> dict[bytes | None, Record]:
    """What the group has not finished, by key."""
    consumer = Consumer(
        client_config(settings)
        | {"group.id": uuid4().hex, "enable.auto.commit": False, "enable.partition.eof": True}
    )
    found = {}
    try:
        for each in partition_offsets(settings, topic, group):
            if each.lag == 0:
                continue
            begin = max(each.low, each.committed or 0)
            place = TopicPartition(topic, each.partition, begin)
            for record in backups._read(consumer, place, each.high):
                found[record.key] = record
    finally:
        consumer.close()
    return found


def test_what_no_group_has_finished_and_dead_letters_come_back(settings: Settings, tmp_path: Path) -> None:
    publisher = KafkaPublisher(settings)
    old = [Record(IMAGES.name, b"finished", b"{}")]
    publisher.publish(old)
    commit_to_the_end(settings)
    letters = dead_letter_topics()[0]
    publisher.publish(
        [
            Record(IMAGES.name, b"a", b"\xff\x00", (("traceparent", b"00"), ("empty", None))),
            Record(FEATURES.name, b"b", None),
            Record(letters, b"c", b"{}", (("x-original-offset", b"17"), ("x-error", "ñ".encode()))),
        ]
    )
    made = backup(settings, tmp_path / "backup")
    assert made.records == 3
    commit_to_the_end(settings)
    restore(settings, tmp_path / "backup")
    restored = Record(IMAGES.name, b"a", b"\xff\x00", (("traceparent", b"00"), ("empty", None)))
    for group in IMAGES.consumers:
        assert consumed(settings, IMAGES.name, group) == {b"a": restored}
    assert set(consumed(settings, FEATURES.name, "classifier-fast")) == {b"b"}
    (letter,) = consumed(settings, letters, backups.REPLAY_GROUP).values()
    headers = dict(letter.headers)
    assert headers["x-error"] == "ñ".encode()
    # A new broker may have another message at that place.
    assert str(headers["x-original-offset"], "utf-8").startswith("17 before the backup of ")
    commit_to_the_end(settings)
    restore(settings, tmp_path / "backup", with_records=False, replace=True)
    assert consumed(settings, IMAGES.name, "qr-decoder") == {}


def test_records_of_a_topic_that_is_not_there_are_refused_before_anything_is_changed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings)
    KafkaPublisher(settings).publish([Record(IMAGES.name, b"a", b"{}")])
    folder = tmp_path / "backup"
    backup(settings, folder)
    path = folder / "records.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"images-input", b"nights")))
    monkeypatch.setattr(backups, "_check_files", lambda *_: None)
    wipe(settings)
    with pytest.raises(BackupError, match="no topic nights-stream"):
        restore(settings, folder)
    assert objects(settings) == {}
    restore(settings, folder, with_records=False)


def test_a_kafka_that_goes_away_in_the_middle_leaves_a_way_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings)
    KafkaPublisher(settings).publish([Record(IMAGES.name, b"a", b"{}")])
    backup(settings, tmp_path / "backup")
    wipe(settings)
    with monkeypatch.context() as away:
        away.setattr(KafkaPublisher, "publish", lambda *_: {0: "down"})
        with pytest.raises(BackupError, match=r"the records are not: .*down.*--replace"):
            restore(settings, tmp_path / "backup")
    with Database.from_settings(settings) as database:
        assert PostgresImages(database).pending() == 2, "they are asked for all the same"
    restore(settings, tmp_path / "backup", replace=True)
    assert set(consumed(settings, IMAGES.name, "qr-decoder")) == {b"a"}


def test_a_letter_that_is_sent_home_during_a_backup_is_in_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = dead_letter_topics()[0]
    origin = (("x-original-topic", IMAGES.name.encode()), ("x-original-offset", b"17"))
    KafkaPublisher(settings).publish([Record(letters, b"c", b"{}", origin)])
    looked = backups._unfinished

    def sent_home(settings: Settings, topic: str, groups: list[str]) -> dict[int, tuple[int, int]]:
        found = looked(settings, topic, groups)
        if topic == IMAGES.name:
            assert dead_letters.replay(settings, letters) == 1
        return found

    monkeypatch.setattr(backups, "_unfinished", sent_home)
    assert backup(settings, tmp_path / "backup").records == 1


def test_a_partition_whose_beginning_retention_took_is_read_from_what_is_there(settings: Settings) -> None:
    KafkaPublisher(settings).publish([Record(IMAGES.name, b"a", b"{}")])
    (place,) = (each for each in partition_offsets(settings, IMAGES.name, "qr-decoder") if each.lag)
    # As retention leaves it: an offset that is none of the log's any more.
    gone = TopicPartition(IMAGES.name, place.partition, place.high + 1000)
    with closing(Consumer(dead_letters.reader_config(settings, "anyone"))) as consumer:
        found = list(dead_letters.read_partition(consumer, gone, place.high + 2000))
    assert found[-1].key() == b"a"


# The command of the containers


def test_the_module_says_what_is_wrong(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["restore", str(tmp_path)]) == 1
    assert "no complete backup" in capsys.readouterr().err


def test_the_objects_are_a_tar_that_people_can_read(settings: Settings, tmp_path: Path) -> None:
    fill(settings)
    backup(settings, tmp_path / "backup")
    with tarfile.open(tmp_path / "backup" / "objects.tar") as tar:
        assert "raw-images/2026/11/21/done.png" in tar.getnames()
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    assert read_manifest(tmp_path / "backup").objects == 4


def test_a_path_that_no_mesh_would_take_is_refused(settings: Settings, tmp_path: Path) -> None:
    fill(settings)
    folder = tmp_path / "backup"
    backup(settings, folder)
    wipe(settings)
    path = folder / "objects.tar"
    shutil.move(path, tmp_path / "old.tar")
    with tarfile.open(tmp_path / "old.tar") as old, tarfile.open(path, "w") as new:
        entry = old.getmembers()[0]
        file = old.extractfile(entry)
        entry.name = "elsewhere/../../x"
        new.addfile(entry, file)
    data = path.read_bytes()
    manifest = read_manifest(folder)
    files = [
        {"path": each.path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if each.path == "objects.tar"
        else {"path": each.path, "bytes": each.bytes, "sha256": each.sha256}
        for each in manifest.files
    ]
    change_manifest(files=files)(folder)
    with pytest.raises(BackupError, match=r"would not take.*nothing was restored"):
        restore(settings, folder)
    assert objects(settings) == {}


def test_a_schema_that_is_newer_takes_an_older_backup(settings: Settings, tmp_path: Path) -> None:
    fill(settings)
    folder = tmp_path / "backup"
    backup(settings, folder)
    wipe(settings)
    dsn = settings.postgres_dsn.get_secret_value()
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE images ADD COLUMN of_tomorrow text")
    try:
        restore(settings, folder)
        with Database(dsn) as database:
            assert PostgresImages(database).results("done") is not None
    finally:
        with psycopg.connect(dsn) as connection:
            connection.execute("ALTER TABLE images DROP COLUMN of_tomorrow")
