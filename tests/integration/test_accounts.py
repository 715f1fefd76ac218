"""Each service with its own account, on real servers: its work gets done, and nothing else can be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, errors, sql

from visionmesh.accounts import ACCOUNTS, AccountsError, make_roles, make_users, passwords, policy
from visionmesh.database import Database
from visionmesh.deletion import PostgresDeletions
from visionmesh.errors import Rejected, Unavailable
from visionmesh.object_store import S3ObjectStore
from visionmesh.ocr_document import OcrDocument, PageSize
from visionmesh.results import (
    FeaturesRow,
    ImageRow,
    OcrDocumentRow,
    OutcomeRow,
    PostgresImages,
    PostgresResultStore,
    PredictionRow,
    QrCodesRow,
    Row,
    ShadowFeaturesRow,
    ShadowPredictionRow,
)
from visionmesh.sensors import PostgresSensors, SensorReadingRow
from visionmesh.settings import Settings
from visionmesh.stack import Stack

PASSWORDS = {account.name: f"se'cret {account.name}" for account in ACCOUNTS}
TABLES = sorted({table for account in ACCOUNTS for table in account.tables})
IMAGE = "of-accounts"
# Each asks for the privilege of its name and for no other.
STATEMENTS = {
    "SELECT": "SELECT 1 FROM {0} WHERE false",
    "INSERT": "INSERT INTO {0} DEFAULT VALUES",
    "UPDATE": "UPDATE {0} SET {1} = DEFAULT WHERE false",
    "DELETE": "DELETE FROM {0} WHERE false",
    "TRUNCATE": "TRUNCATE {0}",
}


@pytest.fixture(scope="module")
def roles(postgres_dsn: str) -> str:
    make_roles(postgres_dsn, dict.fromkeys(PASSWORDS, "the first"))
    # Again, as at every start; what was granted by hand is gone then.
    with psycopg.connect(postgres_dsn) as owner:
        owner.execute('GRANT ALL ON images TO "classifier"')
    make_roles(postgres_dsn, PASSWORDS)
    return postgres_dsn


@pytest.mark.parametrize("name", sorted(PASSWORDS))
def test_no_account_makes_tables_of_its_own(roles: str, name: str) -> None:
    with psycopg.connect(dsn_of(name, roles), autocommit=True) as connection:
        for kind in ("", "TEMP "):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(f"CREATE {kind}TABLE of_its_own (a int)")


def dsn_of(name: str, dsn: str) -> str:
    return conninfo.make_conninfo(dsn, user=name, password=PASSWORDS[name])


@pytest.fixture
def database_of(roles: str) -> Iterator[Callable[[str], Database]]:
    opened: list[Database] = []

    def open_database(name: str) -> Database:
        opened.append(Database(dsn_of(name, roles)))
        return opened[-1]

    yield open_database
    for database in opened:
        database.close()


def prediction(kind: type[PredictionRow]) -> PredictionRow:
    return kind(IMAGE, "fast", "cat", 0.9, ("cat", "dog"), (0.9, 0.1), "model", "1", 0.1)


WORK: dict[str, list[Row]] = {
    "feature-extractor": [
        FeaturesRow(IMAGE, (0.5,) * 20, "extractor@1"),
        ShadowFeaturesRow(IMAGE, (0.5,) * 20, "extractor@2", 0.1),
    ],
    "classifier": [prediction(PredictionRow), prediction(ShadowPredictionRow)],
    "qr-decoder": [QrCodesRow(IMAGE, ())],
    "ocr-worker": [
        OcrDocumentRow(IMAGE, OcrDocument("text", (), (PageSize(10, 10),), "es", "engine")),
    ],
}


@pytest.mark.parametrize("name", sorted(WORK))
def test_a_worker_s_work_gets_done_twice(name: str, database_of: Callable[[str], Database]) -> None:
    store = PostgresResultStore(database_of(name))
    for _ in range(2):
        store.begin(name, [IMAGE])
        store.interrupted(name, [IMAGE])
        store.withdraw(name, [IMAGE])
        store.save([*WORK[name], OutcomeRow(IMAGE, name, "done", None)])
        assert store.deleted([IMAGE]) == set()


def test_uploads_results_and_deletions_get_done(database_of: Callable[[str], Database]) -> None:
    database = database_of("ingest-api")
    images, deletions = PostgresImages(database), PostgresDeletions(database)
    image = ImageRow("a-picture", "raw-images/a.jpg", "0" * 64, 3, "image/jpeg")
    images.add_image(image)
    with images.unpublished(older_than_seconds=0, limit=5) as claim:
        claim.published(["a-picture"])
    images.mark_published(["a-picture"])
    images.pending()
    assert images.image("a-picture") is not None
    assert images.results("a-picture") is not None
    images.images(limit=5)
    images.search("text", limit=5)
    PostgresSensors(database).latest()
    assert [each.image_id for each in deletions.delete(["a-picture"])] == ["a-picture"]
    deletions.cleared(["a-picture"], settle_seconds=0)
    deletions.older_than(1e9, limit=5)
    deletions.unfinished(settle_seconds=0, limit=5)
    deletions.never_uploaded(older_than_seconds=1e9, limit=5)
    deletions.forget(older_than_seconds=0, limit=5)
    assert images.image("a-picture") is None


def test_answers_about_text_get_read(database_of: Callable[[str], Database]) -> None:
    images = PostgresImages(database_of("ocr-worker"))
    images.outcome(IMAGE, "ocr-worker")
    images.document(IMAGE)
    image = ImageRow(IMAGE, "raw-images/a.jpg", "0" * 64, 3, "image/jpeg")
    images.waiting_before(image, "ocr-worker", "ocr")


def test_readings_get_stored_and_days_made_and_dropped(database_of: Callable[[str], Database]) -> None:
    database = database_of("sensor-sink")
    moment = datetime(2021, 5, 4, 12, tzinfo=UTC)
    reading = SensorReadingRow("pi-1", "tfluna", 1, moment, {"distance_cm": 1.0})
    PostgresResultStore(database).save([reading])
    PostgresResultStore(database).save([reading])
    with database.transaction() as connection:
        dropped = connection.execute("SELECT drop_sensor_readings_before(%s)", (date(2021, 5, 5),)).fetchall()
    assert dropped == [("sensor_readings_20210504",)]


@pytest.mark.parametrize("account", ACCOUNTS, ids=lambda account: account.name)
def test_nothing_else_may_be_done(account: Any, roles: str) -> None:
    with psycopg.connect(dsn_of(account.name, roles)) as connection:
        for table in [*TABLES, "alembic_version"]:
            # What a statement asks for is tried by one, below.
            for privilege in ("REFERENCES", "TRIGGER"):
                asked = connection.execute(
                    "SELECT has_table_privilege(%s, %s)", (table, privilege)
                ).fetchone()
                allowed = privilege in account.tables.get(table, "").split(", ")
                assert asked == (allowed,), f"{privilege} on {table}"
        for function in ("ensure_sensor_readings_day(date)", "drop_sensor_readings_before(date)"):
            asked = connection.execute("SELECT has_function_privilege(%s, 'EXECUTE')", (function,)).fetchone()
            assert asked == (function in account.functions,)
    for statement in (
        "CREATE TABLE mine ()",
        "CREATE ROLE mine",
        "DROP TABLE images",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
        "SET ROLE mesh",
    ):
        with psycopg.connect(dsn_of(account.name, roles)) as connection:
            with pytest.raises((errors.InsufficientPrivilege, errors.UndefinedObject)):
                connection.execute(statement)


@pytest.fixture(scope="module")
def columns(roles: str) -> Iterator[dict[str, str]]:
    """One column of every table there is, a day of readings among them."""
    with psycopg.connect(roles, autocommit=True) as owner:
        owner.execute("SELECT ensure_sensor_readings_day(%s)", (date(2021, 5, 6),))
        found = owner.execute(
            "SELECT relname, attname FROM pg_class "
            "JOIN pg_attribute ON attrelid = pg_class.oid AND attnum = 1 "
            "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
        ).fetchall()
        yield dict(found)
        owner.execute("DROP TABLE sensor_readings_20210506")


@pytest.mark.parametrize("account", ACCOUNTS, ids=lambda account: account.name)
def test_a_statement_that_is_not_granted_is_refused(
    account: Any, roles: str, columns: dict[str, str]
) -> None:
    assert columns.keys() >= {*TABLES, "alembic_version", "sensor_readings_20210506"}
    with psycopg.connect(dsn_of(account.name, roles)) as connection:
        for table, column in columns.items():
            granted = account.tables.get(table, "").split(", ")
            for privilege, statement in STATEMENTS.items():
                asked = sql.SQL(statement).format(sql.Identifier(table), sql.Identifier(column))
                assert taken(connection, asked) == (privilege in granted), f"{privilege} on {table}"


def taken(connection: psycopg.Connection[Any], statement: sql.Composed) -> bool:
    """Whether it is done, or fails for another reason than that it is forbidden. Nothing of it stays."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement)
    except errors.InsufficientPrivilege:
        return False
    except errors.IntegrityError:
        # A row of nothing but defaults.
        return True
    return True


def test_the_first_password_is_none_any_more(roles: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="authentication"):
        psycopg.connect(conninfo.make_conninfo(roles, user="classifier", password="the first"))


def test_who_calls_a_function_can_not_redirect_it(roles: str) -> None:
    """With the owner's rights, and by names that the caller has made."""
    with psycopg.connect(roles) as connection:
        found = connection.execute(
            "SELECT proname, prosecdef, proconfig FROM pg_proc WHERE proname LIKE '%sensor_readings%'"
        ).fetchall()
    assert len(found) == 2
    assert all(row[1:] == (True, ["search_path=public, pg_temp"]) for row in found)


def test_every_password_is_asked_for() -> None:
    with pytest.raises(AccountsError, match="QR_DECODER_PASSWORD"):
        passwords({account.variable: "x" for account in ACCOUNTS if account.name != "qr-decoder"})


def test_the_tables_of_the_accounts_are_those_of_the_schema(roles: str) -> None:
    """A table that is new belongs to an account, or to nobody for a reason."""
    with psycopg.connect(roles) as connection:
        found = {
            name
            for (name,) in connection.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
                "AND relkind IN ('r', 'p') AND NOT relispartition"
            )
        }
    assert found - {"alembic_version"} == set(TABLES)


# Objects --------------------------------------------------------------------------------------------------


def test_policies_name_the_buckets_of_pictures_alone() -> None:
    for account in ACCOUNTS:
        for statement in policy(account, ["raw-images"])["Statement"]:
            assert all(re.fullmatch(r"arn:aws:s3:::raw-images(/\*)?", name) for name in statement["Resource"])
            assert all("*" not in action for action in statement["Action"])


@pytest.mark.native
def test_objects_are_read_by_workers_and_written_by_ingest_api(session_stack: Stack) -> None:
    endpoints = session_stack.endpoints
    settings = Settings(
        s3_endpoint=endpoints.s3_endpoint,
        s3_access_key=endpoints.s3_access_key,
        s3_secret_key=endpoints.s3_secret_key,
    )
    make_users(settings, PASSWORDS)
    make_users(settings, PASSWORDS)

    def store_of(name: str, *buckets: str) -> S3ObjectStore:
        return S3ObjectStore(
            endpoints.s3_endpoint,
            access_key=name,
            secret_key=PASSWORDS[name],
            secure=False,
            allowed_buckets=buckets or ("raw-images",),
        )

    ingest = store_of("ingest-api")
    ingest.ensure_buckets()
    ingest.put("raw-images/small.jpg", [b"small"], media_type="image/jpeg")
    large = [b"x" * 1024 * 1024] * 12
    ingest.put("raw-images/large.jpg", large, media_type="image/jpeg")
    for name in ("feature-extractor", "qr-decoder", "ocr-worker"):
        reader = store_of(name)
        reader.ping()
        assert reader.get("raw-images/small.jpg", max_bytes=100) == b"small"
        with pytest.raises(Rejected):
            reader.get("raw-images/missing.jpg", max_bytes=100)
        with pytest.raises(Unavailable):
            reader.put("raw-images/other.jpg", [b"x"], media_type="image/jpeg")
        with pytest.raises(Unavailable):
            reader.delete("raw-images/small.jpg")
    with pytest.raises(Unavailable):
        store_of("ingest-api", "mlflow").ensure_buckets()
    ingest.delete("raw-images/small.jpg")
    ingest.delete("raw-images/large.jpg")
