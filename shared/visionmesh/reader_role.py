"""The role by which dashboards read results: three tables and nothing else; no statement for long, unless it
asks for that itself.

`python -m visionmesh.reader_role` makes it, or gives it the password of `GRAFANA_POSTGRES_PASSWORD` anew.
Whoever may edit a query in Grafana may ask the data source for anything, so the role of the services would be
too much.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import psycopg
from psycopg import sql

from visionmesh.settings import settings_or_exit

ROLE: Final = "grafana"
TABLES: Final = ("predictions", "qr_codes", "ocr_documents")

_PASSWORD: Final = "GRAFANA_POSTGRES_PASSWORD"

# Longer than any panel's query takes; a panel that is refreshed every 10 s must not pile up.
_STATEMENT_TIMEOUT: Final = "8s"
_CONNECTIONS: Final = 8


def make_reader(dsn: str, password: str) -> None:
    """Makes the role, or brings it to what it has to be. The tables must exist. Raises psycopg's errors."""
    role = sql.Identifier(ROLE)
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        (database,) = connection.execute("SELECT current_database()").fetchone() or ("",)
        known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone()
        verb = sql.SQL("ALTER" if known else "CREATE")
        # Encrypted here, so that no log of the server's has it in clear.
        verifier = connection.pgconn.encrypt_password(password.encode(), ROLE.encode(), b"scram-sha-256")
        connection.execute(
            sql.SQL(
                "{verb} ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
                "CONNECTION LIMIT {limit} PASSWORD {password}"
            ).format(
                verb=verb, role=role, limit=sql.Literal(_CONNECTIONS), password=sql.Literal(verifier.decode())
            )
        )
        # What a session begins with, and may change: it writes nothing all the same, for want of privileges.
        for name, value in {
            "default_transaction_read_only": "on",
            "statement_timeout": _STATEMENT_TIMEOUT,
        }.items():
            connection.execute(
                sql.SQL("ALTER ROLE {} SET {} = {}").format(role, sql.Identifier(name), sql.Literal(value))
            )
        for statement in (
            "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}",
            "GRANT CONNECT ON DATABASE {database} TO {role}",
            "GRANT USAGE ON SCHEMA public TO {role}",
        ):
            connection.execute(sql.SQL(statement).format(role=role, database=sql.Identifier(database)))
        for table in TABLES:
            connection.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(sql.Identifier(table), role))


def main() -> int:
    password = os.environ.get(_PASSWORD)
    if not password:
        sys.stderr.write(f"{_PASSWORD} is not set; `make env` makes one.\n")
        return 2
    try:
        make_reader(settings_or_exit().postgres_dsn.get_secret_value(), password)
    except psycopg.Error as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
