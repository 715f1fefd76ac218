"""Real servers that speak TLS: our clients use them by their authority and their name, and not otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from tls import Authority, authority
from visionmesh.database import Database
from visionmesh.errors import Unavailable
from visionmesh.settings import Settings
from visionmesh.stack.postgres import PostgresServer, installed_binaries, packaged_binaries

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Of the servers, whose certificate names 127.0.0.1 alone."""
    return authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority, which has the same name."""
    return authority(tmp_path_factory.mktemp("stranger"))


# Postgres -------------------------------------------------------------------------------------------------


class SecurePostgres(PostgresServer):
    """The native stack's, with a certificate."""

    def __init__(self, directory: Path, files: Authority) -> None:
        super().__init__(
            directory, None, binaries=installed_binaries(), user="mesh", password="geheim", durable=False
        )
        self._files = files

    def prepare(self) -> None:
        super().prepare()
        # It refuses a key that others may read.
        self._files.key.chmod(0o600)

    def command(self) -> Sequence[str]:
        own = {"ssl": "on", "ssl_cert_file": self._files.certificate, "ssl_key_file": self._files.key}
        return [*super().command(), *(part for name in own for part in ("-c", f"{name}={own[name]}"))]

    def database(self, ca: Path | None, host: str = "127.0.0.1") -> Database:
        """Ours, told by the address alone how to speak to the server."""
        dsn = self.dsn.replace("127.0.0.1", host) + "?sslmode=verify-full"
        return Database.from_settings(
            Settings(postgres_dsn=SecretStr(dsn if ca is None else f"{dsn}&sslrootcert={ca}"))
        )


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory, files: Authority) -> Iterator[SecurePostgres]:
    if installed_binaries() == packaged_binaries():
        pytest.skip("the packaged PostgreSQL was built without TLS")
    server = SecurePostgres(tmp_path_factory.mktemp("postgres") / "postgres", files)
    server.start()
    yield server
    server.stop()


def test_rows_are_written_and_read_over_tls(postgres: SecurePostgres, files: Authority) -> None:
    with postgres.database(files.ca).transaction() as connection:
        connection.execute("CREATE TABLE said (word text)")
        connection.execute("INSERT INTO said VALUES ('hello')")
    with postgres.database(files.ca).transaction() as connection:
        assert connection.execute("SELECT word FROM said").fetchall() == [("hello",)]
        own = connection.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert own.fetchall() == [(True, "TLSv1.3")]


def test_a_postgres_of_another_authority_is_unavailable(
    postgres: SecurePostgres, stranger: Authority
) -> None:
    with pytest.raises(Unavailable, match="SSL error") as raised:
        postgres.database(stranger.ca).ping()
    assert raised.value.server == "database"
    # No authority named is none believed: libpq asks for a file, and not the system's.
    with pytest.raises(Unavailable):
        postgres.database(None).ping()


def test_a_postgres_of_another_name_is_unavailable(postgres: SecurePostgres, files: Authority) -> None:
    with pytest.raises(Unavailable, match='does not match host name "localhost"'):
        postgres.database(files.ca, "localhost").ping()
