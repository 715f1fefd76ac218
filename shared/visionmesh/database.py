"""Postgres: connections, its failures as outcomes of the mesh, and the schema.

`python -m visionmesh.database migrate` brings the schema up to date; it waits for the server.
"""

from __future__ import annotations

import argparse
import queue
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import psycopg
import stamina
from psycopg import conninfo
from psycopg.pq import TransactionStatus

from visionmesh import columns
from visionmesh.errors import Unavailable
from visionmesh.settings import ROOT, Settings, settings_or_exit

CONNECT_TIMEOUT_SECONDS: Final = 2
# How long a caller waits for another thread to give a connection back.
POOL_TIMEOUT_SECONDS: Final = 5.0
# The longest statement writes a batch in milliseconds; one that outlasts this waits for something.
STATEMENT_TIMEOUT_MS: Final = 10_000
# A frozen process must not hold row locks for ever. The relay publishes inside a transaction, and
# that takes up to `kafka_message_timeout_ms`.
IDLE_IN_TRANSACTION_TIMEOUT_MS: Final = 60_000

MIGRATIONS: Final = ROOT / "deploy" / "postgres" / "migrations"
# Any number, the same in every version of this program.
_MIGRATION_LOCK: Final = 7_346_100_521
_MIGRATION_LOCK_SECONDS: Final = 0.2

# SQLSTATE classes in which the server, and not the data, is at fault: connection, credentials, no such
# database, transaction rollback (deadlock), resources (disk, memory, connections), operator intervention
# (shutdown, statement timeout), system error, internal error.
_UNAVAILABLE_CLASSES: Final = frozenset({"08", "28", "3D", "40", "53", "57", "58", "XX"})
_UNAVAILABLE_STATES: Final = frozenset(
    {
        "25006",  # read-only: a standby, or a primary that became one
        "25P03",  # idle in transaction for too long
        "55P03",  # lock not available
        "42501",  # not allowed to: grants are missing
        "42P01",  # no such table: the schema is older than this program, `migrate` has yet to run
        "42703",  # no such column: likewise
    }
)

Connection = psycopg.Connection[tuple[Any, ...]]


def is_unavailable(error: psycopg.Error) -> bool:
    """Whether the world is at fault, and the same statement may succeed later."""
    if error.sqlstate is not None:
        return error.sqlstate[:2] in _UNAVAILABLE_CLASSES or error.sqlstate in _UNAVAILABLE_STATES
    # Without a state the error comes from libpq (refused, broken, timed out) or from the client, which
    # says InterfaceError of a connection that was closed under it and DataError of bad values.
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


@contextmanager
def _as_outcomes() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        if is_unavailable(error):
            raise Unavailable("database", " ".join(str(error).split())) from error
        raise


class Database:
    """A few connections to one server, shared by the threads of a process.

    Connections are opened by the thread that needs one, at the moment it does. So a server that is away
    fails the caller at once with the server's own reason, and one that is back is used by the very next
    caller; a pool that reconnects in the background with growing pauses (psycopg_pool) gives neither.
    """

    def __init__(self, dsn: str, *, pool_size: int = 4) -> None:
        """Opens nothing yet. `dsn` is a libpq URL or keyword string; what it sets itself is kept."""
        given = conninfo.conninfo_to_dict(dsn)
        defaults: dict[str, str | int] = {
            "application_name": "visionmesh",
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            # A server whose machine vanished is noticed within about ten seconds.
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"
            f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT_MS}",
        }
        self._conninfo = conninfo.make_conninfo("", **{**defaults, **given})
        # Last in, first out: under light load the same warm connection serves every call.
        self._slots: queue.LifoQueue[Connection | None] = queue.LifoQueue()
        self._size = pool_size
        for _ in range(pool_size):
            self._slots.put(None)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(settings.postgres_dsn.get_secret_value(), pool_size=settings.postgres_pool_size)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection inside a transaction: committed when the block ends, rolled back if it raises.

        Raises `Unavailable("database", …)` when the server is away, overloaded or refusing, also for the
        block's own statements. Errors of the data leave as psycopg raised them.
        """
        connection = self._take()
        try:
            with _as_outcomes():
                try:
                    yield connection
                    connection.commit()
                except BaseException:
                    _roll_back(connection)
                    raise
        except Unavailable:
            # What broke this connection (a restart, a failover) has most likely broken its neighbours.
            connection.close()
            self._close_idle()
            raise
        finally:
            self._slots.put(None if connection.closed else connection)

    def one_more(self) -> Self:
        """The same server by one connection beside these, for what holds it while others are asked for."""
        return type(self)(self._conninfo, pool_size=1)

    def ping(self) -> None:
        """Returns if the server answers; raises `Unavailable` if not."""
        with self.transaction() as connection:
            connection.execute("SELECT 1")

    def close(self) -> None:
        """Closes the connections that are not in use. The object opens new ones when used again."""
        self._close_idle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> Connection:
        try:
            idle = self._slots.get(timeout=POOL_TIMEOUT_SECONDS)
        except queue.Empty:
            raise Unavailable("database", f"all {self._size} connections are busy") from None
        if idle is not None:
            if not _was_ended(idle):
                return idle
            idle.close()
        try:
            with _as_outcomes():
                connection = psycopg.connect(self._conninfo)
        except BaseException:
            self._slots.put(None)
            raise
        columns.register(connection)
        return connection

    def _close_idle(self) -> None:
        taken = []
        while True:
            try:
                taken.append(self._slots.get_nowait())
            except queue.Empty:
                break
        for connection in taken:
            if connection is not None:
                connection.close()
            self._slots.put(None)


def _was_ended(idle: Connection) -> bool:
    """Whether the server said something on an idle connection, which is nearly always its farewell."""
    if idle.closed:
        return True
    readable = select.poll()
    readable.register(idle.fileno(), select.POLLIN)
    return bool(readable.poll(0))


def _roll_back(connection: Connection) -> None:
    """Leaves no transaction open, whatever state the connection is in."""
    try:
        connection.rollback()
    except psycopg.Error:
        connection.close()
    if not connection.closed and connection.info.transaction_status != TransactionStatus.IDLE:
        connection.close()


def migrate(dsn: str, *, wait_seconds: float = 60.0) -> None:
    """Brings the schema up to date. Does nothing when it is, and is safe to run many times at once.

    Waits up to `wait_seconds` for the server to answer, then raises `Unavailable`.
    """
    for attempt in stamina.retry_context(
        on=Unavailable, attempts=None, timeout=wait_seconds, wait_initial=0.1, wait_max=2.0
    ):
        with (
            attempt,
            _as_outcomes(),
            psycopg.connect(dsn, connect_timeout=CONNECT_TIMEOUT_SECONDS, autocommit=True) as lock,
        ):
            # Held by this connection, so it goes away with the process. Asked for again and again: an index
            # that is built beside those who write waits for every statement that runs, a waiting one too.
            while lock.execute("SELECT pg_try_advisory_lock(%s)", (_MIGRATION_LOCK,)).fetchone() != (True,):
                time.sleep(_MIGRATION_LOCK_SECONDS)
            _upgrade(dsn)


def _upgrade(dsn: str) -> None:
    # Only the one-shot `migrate` container and the embedded stack have alembic installed.
    import alembic.command
    import alembic.config
    import sqlalchemy

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=sqlalchemy.NullPool
    )
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
    except sqlalchemy.exc.DBAPIError as error:
        # SQLAlchemy wraps psycopg's errors; the rest of the mesh speaks psycopg's.
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from error
        raise


def main() -> None:
    """`python -m visionmesh.database migrate`."""
    parser = argparse.ArgumentParser(prog="python -m visionmesh.database", description=__doc__)
    parser.add_argument("command", choices=["migrate"])
    parser.add_argument("--wait-seconds", type=float, default=60.0, help="how long to wait for the server")
    arguments = parser.parse_args()
    try:
        migrate(settings_or_exit().postgres_dsn.get_secret_value(), wait_seconds=arguments.wait_seconds)
    except Unavailable as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
