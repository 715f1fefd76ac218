"""The role of the dashboards, on a real Postgres: it reads what panels show, and can do nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, errors

from visionmesh.reader_role import ROLE, TABLES, make_reader

BOARD = Path(__file__).parents[2] / "deploy/grafana/dashboards/recognition.json"
QUERIES = [
    pytest.param(target["rawSql"], id=panel["title"])
    for panel in json.loads(BOARD.read_text())["panels"]
    for target in panel.get("targets", [])
    if "rawSql" in target
]


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
    # What Grafana makes of its macro.
    sql = sql.replace("$__timeFilter(created_at)", "created_at > now() - interval '1 hour'")
    sql = sql.replace("$__timeFilter(a.created_at)", "a.created_at > now() - interval '1 hour'")
    assert "$__" not in sql
    reader.execute(sql)


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
