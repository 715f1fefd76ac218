"""What does not fit together is found: on Postgres, with listings made up and with one of a real store."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from unittest import mock

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from typer.testing import CliRunner

from ingest_api.domain import object_key, uuid7
from visionmesh.cli import app
from visionmesh.database import Database
from visionmesh.kafka import client_config, create_topics, partition_offsets
from visionmesh.object_store import Listed, S3ObjectStore
from visionmesh.reconcile import Comparison, Reconciliation, Unanswered
from visionmesh.results import ImageRow, OutcomeRow, OutcomeState, PostgresImages, PostgresResultStore
from visionmesh.settings import Settings, get_settings
from visionmesh.stack import Stack
from visionmesh.topics import readers

EVERYBODY = (
    "classifier-accurate",
    "classifier-balanced",
    "classifier-fast",
    "feature-extractor",
    "ocr-worker",
    "qr-decoder",
)


@pytest.fixture
def dsn(own_stack: Stack) -> Iterator[str]:
    dsn = own_stack.endpoints.postgres_dsn

    def empty() -> None:
        with psycopg.connect(dsn) as connection:
            connection.execute("TRUNCATE images, task_outcomes, deleted_images")

    empty()
    yield dsn
    empty()


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    with Database(dsn) as database:
        yield database


def add(database: Database, *image_ids: str, tasks: tuple[str, ...] | None = None) -> None:
    """Pictures that were stored and announced an hour and a half ago."""
    images = PostgresImages(database)
    for image_id in image_ids:
        images.add_image(
            ImageRow(image_id, path_of(image_id), "00", 1, "image/jpeg", tasks=tasks, width=1, height=1)
        )
    with database.transaction() as connection:
        connection.execute(
            "UPDATE images SET created_at = now() - interval '90 minutes',"
            " published_at = now() - interval '90 minutes' WHERE image_id = ANY(%s)",
            (list(image_ids),),
        )


def end(database: Database, image_id: str, *workers: str, state: OutcomeState = "done") -> None:
    PostgresResultStore(database).save([OutcomeRow(image_id, worker, state) for worker in workers])


def path_of(image_id: str) -> str:
    """Where the upload of a client's own id lies."""
    return f"raw-images/2026/11/21/{image_id}.0123456789ab.jpg"


def listed(*paths: str, age: timedelta = timedelta(hours=2)) -> list[Listed]:
    return [Listed(path, 1, datetime.now(UTC) - age) for path in paths]


def orphans(database: Database, *objects: Listed) -> tuple[str, ...]:
    return compare(database, *objects).orphans


def compare(database: Database, *objects: Listed, seconds: float = 3600) -> Comparison:
    return Reconciliation(database).compare(objects, upload_bucket="raw-images", older_than_seconds=seconds)


def unanswered(database: Database, *busy: str, limit: int = 100, after: str = "") -> list[Unanswered]:
    return Reconciliation(database).unanswered(
        older_than_seconds=3600, limit=limit, after=after, busy=busy, extra_classifiers=()
    )


# Objects and rows


def test_an_object_that_no_row_speaks_of_is_an_orphan(database: Database) -> None:
    add(database, "a")
    assert orphans(database, *listed(path_of("a"), path_of("b"))) == (path_of("b"),)


def test_an_upload_that_is_still_on_its_way_is_none(database: Database) -> None:
    assert orphans(database, *listed(path_of("b"), age=timedelta(minutes=5))) == ()


@pytest.mark.parametrize(
    "path",
    [
        "raw-images/test.jpg",
        "raw-images/2026/a.jpg",
        # Its message may name any image, or wait to be published.
        "raw-images/2026/11/21/frame-0001.jpg",
        "raw-images/2026/11/21/6f1c1e0e-8a57-4b63-9d0c-0123456789ab.jpg",
        "elsewhere/2026/11/21/a.0123456789ab.jpg",
    ],
)
def test_what_no_upload_has_stored_is_none(database: Database, path: str) -> None:
    assert orphans(database, *listed(path)) == ()


@pytest.mark.parametrize("image_id", [None, "mine", "frame.0001"])
def test_what_an_upload_stores_is_one_without_its_row(database: Database, image_id: str | None) -> None:
    upload_id = uuid7(1_790_000_000_000, b"0123456789")
    path = f"raw-images/{object_key(date(2026, 11, 21), upload_id, image_id, 'jpg')}"
    assert orphans(database, *listed(path)) == (path,)
    assert Reconciliation(database).is_orphan(path)
    row = ImageRow(image_id or upload_id, path, "00", 1, "image/jpeg", width=1, height=1)
    PostgresImages(database).add_image(row)
    assert orphans(database, *listed(path)) == ()
    assert not Reconciliation(database).is_orphan(path), "it has come to its end"


def test_what_a_producer_put_there_by_itself_and_was_worked_on_is_none(database: Database) -> None:
    end(database, "mine", "qr-decoder")
    end(database, "mine.too.0123456789ab", "qr-decoder", state="failed")
    assert orphans(database, *listed(path_of("mine"), path_of("mine.too"))) == ()
    assert orphans(database, *listed(path_of("theirs"))) == (path_of("theirs"),)


def test_what_an_upload_left_that_was_cut_off_and_came_again_is_an_orphan(database: Database) -> None:
    add(database, "a")
    end(database, "a", "qr-decoder")
    first, second = path_of("a"), path_of("a").replace("0123456789ab", "fedcba987654")
    with database.transaction() as connection:
        connection.execute("UPDATE images SET minio_path = %s", (second,))
    assert orphans(database, *listed(first, second)) == (first,)


def test_what_is_about_to_be_deleted_is_none(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("INSERT INTO deleted_images VALUES ('a', %s)", (path_of("a"),))
    assert orphans(database, *listed(path_of("a"))) == ()


def test_a_row_whose_object_is_gone_is_lost(database: Database) -> None:
    add(database, "a", "b")
    found = compare(database, *listed(path_of("a")))
    assert (found.orphans, found.lost) == ((), ("b",))
    found = compare(database, seconds=7200)
    assert found.lost == (), "they are younger than that"


# Pictures and results


def test_a_picture_that_nobody_has_answered_is_asked_of_everybody_who_reads_pictures(
    database: Database,
) -> None:
    add(database, "a")
    readers = ("feature-extractor", "ocr-worker", "qr-decoder")
    assert unanswered(database) == [Unanswered("a", readers)]


def test_a_picture_with_all_its_results_is_not_asked_for(database: Database) -> None:
    add(database, "a")
    end(database, "a", *EVERYBODY)
    assert unanswered(database) == []


@pytest.mark.parametrize("state", ["skipped", "failed"])
def test_classifiers_are_not_waited_for_where_the_extractor_had_nothing_for_them(
    database: Database, state: OutcomeState
) -> None:
    add(database, "a")
    end(database, "a", "ocr-worker", "qr-decoder")
    end(database, "a", "feature-extractor", state=state)
    assert unanswered(database) == []


def test_a_classifier_that_has_not_answered_is_one(database: Database) -> None:
    add(database, "a")
    end(database, "a", *(worker for worker in EVERYBODY if worker != "classifier-fast"))
    assert unanswered(database) == [Unanswered("a", ("classifier-fast",))]


def test_an_attempt_that_never_ended_is_no_answer(database: Database) -> None:
    add(database, "a", tasks=("qr",))
    PostgresResultStore(database).begin("qr-decoder", ["a"])
    assert unanswered(database) == [Unanswered("a", ("qr-decoder",))]


def test_tasks_that_were_not_asked_for_are_not_missing(database: Database) -> None:
    add(database, "a", tasks=("ocr",))
    end(database, "a", "ocr-worker")
    assert unanswered(database) == []


def test_who_has_messages_waiting_is_not_asked_about(database: Database) -> None:
    add(database, "a")
    end(database, "a", "feature-extractor")
    assert unanswered(database, "qr-decoder", "ocr-worker", "feature-extractor") == []
    assert unanswered(database, "qr-decoder", "ocr-worker")[0].workers == EVERYBODY[:3]


def test_what_is_in_the_outbox_is_on_its_way(database: Database) -> None:
    add(database, "a", "b")
    assert Reconciliation(database).ask_again(["a"]) == 1
    assert [each.image_id for each in unanswered(database)] == ["b"]
    assert PostgresImages(database).pending() == 1
    with PostgresImages(database).unpublished(older_than_seconds=5, limit=10) as claim:
        assert [image.image_id for image in claim.images] == ["a"]


def test_what_was_asked_for_again_a_moment_ago_is_not_asked_for_again(database: Database) -> None:
    add(database, "a")
    Reconciliation(database).ask_again(["a"])
    PostgresImages(database).mark_published(["a"])
    assert unanswered(database) == []


def test_pages_follow_each_other(database: Database) -> None:
    add(database, "a", "b", "c")
    first = unanswered(database, limit=2)
    assert [each.image_id for each in first] == ["a", "b"]
    assert [each.image_id for each in unanswered(database, limit=2, after="b")] == ["c"]


# The command


def finish_everything(settings: Settings) -> None:
    """What other tests have left in Kafka keeps no worker busy."""
    for topic, group in readers():
        consumer = Consumer(client_config(settings) | {"group.id": group, "enable.auto.commit": False})
        ends = [
            TopicPartition(topic.name, each.partition, each.high)
            for each in partition_offsets(settings, topic.name, group)
        ]
        consumer.commit(offsets=ends, asynchronous=False)
        consumer.close()


@pytest.fixture
def settings(own_stack: Stack, dsn: str) -> Iterator[Settings]:
    environment = own_stack.endpoints.environment()
    with mock.patch.dict(os.environ, environment):
        get_settings.cache_clear()
        settings = Settings()
        if settings.kafka_group_protocol == "classic":
            create_topics(settings)
        finish_everything(settings)
        yield settings
    get_settings.cache_clear()


def command(*arguments: str) -> tuple[int, list[dict[str, object]]]:
    result = CliRunner().invoke(app, ["reconcile", "--json", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


def test_the_command_tells_asks_again_and_deletes_what_it_is_told_to(
    settings: Settings, database: Database
) -> None:
    store = S3ObjectStore.from_settings(settings)
    store.ensure_buckets()
    for each in list(store.objects()):
        store.delete(each.minio_path)
    kept, orphan = path_of("kept"), path_of("orphan")
    for path in (kept, orphan):
        store.put(path, [b"picture"], media_type="image/jpeg")
    assert {(each.minio_path, each.length) for each in store.objects()} == {(kept, 7), (orphan, 7)}
    add(database, "kept", "lost")
    end(database, "lost", *EVERYBODY)

    status, found = command("--older-than", "0", "--look-only", "--delete-orphans")
    assert status == 1, "an object is lost"
    told = {(each["finding"], each["name"], each["done"]) for each in found}
    assert told == {
        ("object without a row", orphan, "left"),
        ("row without its object", "lost", "lost"),
        ("picture without results", "kept", "left"),
    }
    assert PostgresImages(database).pending() == 0

    _, found = command("--older-than", "0", "--delete-orphans")
    assert {each["done"] for each in found} == {"deleted", "lost", "asked for again"}
    assert [each.minio_path for each in store.objects()] == [kept]
    assert PostgresImages(database).pending() == 1
    store.delete(kept)


def test_how_many_each_worker_has_not_answered_is_told(settings: Settings, database: Database) -> None:
    add(database, "a", "b", "c")
    for image_id in ("a", "b"):
        end(database, image_id, *(worker for worker in EVERYBODY if worker != "ocr-worker"))
    end(database, "c", *(worker for worker in EVERYBODY if worker != "qr-decoder"))
    result = CliRunner().invoke(app, ["reconcile", "--look-only", "--limit", "2"])
    assert "ocr-worker has not answered 2 of them" in result.stdout
    assert "more of them than 2" in result.stdout
    result = CliRunner().invoke(app, ["reconcile", "--look-only"])
    assert "qr-decoder has not answered 1 of them" in result.stdout
    assert "more of them" not in result.stdout
