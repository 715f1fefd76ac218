"""The role of the dashboards, on a real Postgres: it reads what panels show, and can do nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import conninfo, errors

import grafana
from visionmesh.database import migrate
from visionmesh.reader_role import ROLE, TABLES, make_reader
from visionmesh.stack import Stack

QUERIES = [pytest.param(sql, id=where) for where, sql in grafana.statements()]

RESULTS = """
    CREATE TEMP TABLE picture AS
        SELECT 'p' || n AS image_id, now() - n * interval '1 minute' AS at FROM generate_series(1, 20000) n;
    INSERT INTO predictions
        SELECT image_id, classifier, 'cat', 0.9, '{cat}', '{1}', 'm', '1', 0.1, at
        FROM picture, unnest('{fast,balanced,accurate}'::text[]) classifier;
    INSERT INTO qr_codes
        SELECT image_id, 1, 'text', '', '{}', 'd', 'qr', 1, 'direct', false, '', NULL, 1, 1, 1, NULL, at
        FROM picture;
    INSERT INTO ocr_documents SELECT image_id, 'text', '[]', '[]', 'es', 'e', '{}', '', at FROM picture;
"""


@pytest.fixture
def reader(postgres_dsn: str) -> Iterator[psycopg.Connection]:
    make_reader(postgres_dsn, "first")
    # Again, as at every start; what was granted by hand is gone then.
    with psycopg.connect(postgres_dsn) as owner:
        owner.execute(f"GRANT SELECT ON images TO {ROLE}")
    make_reader(postgres_dsn, "se'cond")
    dsn = conninfo.make_conninfo(postgres_dsn, user=ROLE, password="se'cond")
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("sql", QUERIES)
def test_every_table_of_the_boards_can_be_read(reader: psycopg.Connection, sql: str) -> None:
    reader.execute(sql)


@pytest.fixture(scope="module")
def full(session_stack: Stack) -> Iterator[psycopg.Connection]:
    """A database with the results of two weeks, a picture a minute."""
    name = f"full_{uuid.uuid4().hex[:8]}"
    dsn = session_stack.endpoints.postgres_dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    there = conninfo.make_conninfo(dsn, dbname=name)
    migrate(there)
    with psycopg.connect(there) as connection:
        connection.execute(RESULTS)
        connection.commit()
        connection.execute("ANALYZE")
        yield connection
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("sql", QUERIES)
def test_no_query_reads_a_whole_table(full: psycopg.Connection, sql: str) -> None:
    plan = "\n".join(line for (line,) in full.execute(f"EXPLAIN {sql}").fetchall())
    assert "Seq Scan" not in plan, plan
    assert "_newest" in plan, plan


@pytest.mark.parametrize("sql", QUERIES)
def test_every_query_shows_what_there_is(full: psycopg.Connection, sql: str) -> None:
    assert full.execute(sql).fetchall()


@pytest.mark.parametrize(
    "sql",
    ["SELECT * FROM images", "SELECT * FROM sensor_readings", "SELECT pg_read_file('/etc/passwd')"],
)
def test_nothing_else_can_be_read(reader: psycopg.Connection, sql: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        reader.execute(sql)


@pytest.mark.parametrize("table", TABLES)
def test_nothing_can_be_written_even_where_that_is_tried(reader: psycopg.Connection, table: str) -> None:
    with pytest.raises(errors.ReadOnlySqlTransaction):
        reader.execute(f"DELETE FROM {table}")
    reader.execute("SET default_transaction_read_only = off")
    with pytest.raises(errors.InsufficientPrivilege):
        reader.execute(f"DELETE FROM {table}")


def test_no_query_goes_on_for_ever(reader: psycopg.Connection) -> None:
    ((timeout,),) = reader.execute("SHOW statement_timeout").fetchall()
    assert timeout == "8s"
