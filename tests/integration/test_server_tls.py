"""Real servers that speak TLS: our clients use them by their authority and their name, and not otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from pydantic import SecretStr

from edge_doubles import eventually
from edge_publisher.mqtt import MqttBroker, MqttSink
from edge_publisher.queue import Stored
from tls import Authority, authority
from visionmesh.database import Database
from visionmesh.errors import Unavailable
from visionmesh.object_store import S3ObjectStore
from visionmesh.settings import Settings
from visionmesh.stack.native import MinioServer
from visionmesh.stack.postgres import PostgresServer, installed_binaries, packaged_binaries
from visionmesh.stack.prepare import prepare_native
from visionmesh.stack.process import NotReadyError, ServerProcess

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


# MinIO ----------------------------------------------------------------------------------------------------


class SecureMinio(MinioServer):
    """The native stack's, with a certificate."""

    def __init__(self, directory: Path, files: Authority) -> None:
        super().__init__(directory, None, "geheim-geheim")
        self._files = files

    def prepare(self) -> None:
        super().prepare()
        self._certificates.mkdir(exist_ok=True)
        shutil.copy(self._files.certificate, self._certificates / "public.crt")
        shutil.copy(self._files.key, self._certificates / "private.key")

    def command(self) -> Sequence[str]:
        return [*super().command(), "--certs-dir", str(self._certificates)]

    def probe(self) -> None:
        try:
            self.store(self._files.ca).ensure_buckets()
        except Unavailable as error:
            raise NotReadyError(str(error)) from error

    def store(self, ca: Path | None, host: str = "127.0.0.1", *, secure: bool = True) -> S3ObjectStore:
        """Ours, by its settings alone."""
        return S3ObjectStore.from_settings(
            Settings(
                s3_endpoint=f"{host}:{self.port}",
                s3_access_key=SecretStr("mesh"),
                s3_secret_key=SecretStr("geheim-geheim"),
                s3_secure=secure,
                s3_tls_ca=ca,
            )
        )

    @property
    def _certificates(self) -> Path:
        return self.directory / "certificates"


PICTURE = "raw-images/picture.jpg"


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory, files: Authority) -> Iterator[SecureMinio]:
    prepare_native(print)
    server = SecureMinio(tmp_path_factory.mktemp("s3") / "s3", files)
    server.start()
    yield server
    server.stop()


def test_a_picture_is_put_and_got_over_tls(minio: SecureMinio, files: Authority) -> None:
    store = minio.store(files.ca)
    assert store.put(PICTURE, [b"picture"], media_type="image/jpeg") == 7
    assert store.get(PICTURE, max_bytes=7) == b"picture"
    assert b"".join(store.stream(PICTURE).pieces) == b"picture"
    # And not otherwise.
    with pytest.raises(Unavailable):
        minio.store(None, secure=False).get(PICTURE, max_bytes=7)


def test_a_minio_of_another_authority_is_unavailable(minio: SecureMinio, stranger: Authority) -> None:
    for ca in (stranger.ca, None):
        store = minio.store(ca)
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED") as raised:
            store.get(PICTURE, max_bytes=7)
        assert raised.value.server == "object_store"
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            store.put("raw-images/never.jpg", [b"picture"], media_type="image/jpeg")


def test_a_minio_of_another_name_is_unavailable(minio: SecureMinio, files: Authority) -> None:
    with pytest.raises(Unavailable, match="Hostname mismatch"):
        minio.store(files.ca, "localhost").get(PICTURE, max_bytes=7)


# MQTT -----------------------------------------------------------------------------------------------------

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")

READING = Stored(1, "pi-1", "tfluna", b"a reading")


class SecureMosquitto(ServerProcess):
    """A broker with a certificate."""

    def __init__(self, directory: Path, files: Authority) -> None:
        super().__init__("mqtt", directory, None)
        self._files = files

    def prepare(self) -> None:
        # Started by root it becomes a user of its own, who may not read what is here.
        (self.directory / "conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\n"
            f"certfile {self._files.certificate}\nkeyfile {self._files.key}\n"
        )

    def command(self) -> Sequence[str]:
        assert MOSQUITTO is not None
        return [MOSQUITTO, "-c", "conf"]

    def probe(self) -> None:
        try:
            self.publish(self._files.ca)
        except Unavailable as error:
            raise NotReadyError(str(error)) from error

    def publish(self, ca: Path | None, host: str = "127.0.0.1") -> None:
        """A reading, by our sink. Raises `Unavailable`."""
        sink = MqttSink(MqttBroker.from_url(f"mqtts://{host}:{self.port}", ca), "home", "test")
        try:
            sink.send([READING], lambda: False)
        finally:
            sink.close()


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory, files: Authority) -> Iterator[SecureMosquitto]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    server = SecureMosquitto(tmp_path_factory.mktemp("mqtt") / "mqtt", files)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def received(mosquitto: SecureMosquitto, files: Authority) -> Iterator[list[tuple[str, bytes]]]:
    """What the broker hands to whoever asks for everything: topic and payload."""
    messages: list[tuple[str, bytes]] = []
    subscribed: list[bool] = []
    client = Client(CallbackAPIVersion.VERSION2)
    client.tls_set(str(files.ca))
    client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
    client.on_subscribe = lambda *_: subscribed.append(True)
    client.on_message = lambda _, __, message: messages.append((message.topic, message.payload))
    client.connect("127.0.0.1", mosquitto.port)
    client.loop_start()
    eventually(lambda: bool(subscribed), "a subscription")
    yield messages
    client.disconnect()
    client.loop_stop()


def test_a_reading_is_published_over_tls(
    mosquitto: SecureMosquitto, files: Authority, received: list[tuple[str, bytes]]
) -> None:
    mosquitto.publish(files.ca)
    eventually(lambda: bool(received), "the reading")
    assert received == [("home/pi-1/tfluna", b"a reading")]


def test_a_broker_of_another_authority_or_name_is_unavailable(
    mosquitto: SecureMosquitto,
    files: Authority,
    stranger: Authority,
    received: list[tuple[str, bytes]],
    tmp_path: Path,
) -> None:
    for ca in (stranger.ca, None):
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED") as raised:
            mosquitto.publish(ca)
        assert raised.value.server == "mqtt"
    with pytest.raises(Unavailable, match="Hostname mismatch"):
        mosquitto.publish(files.ca, "localhost")
    with pytest.raises(Unavailable, match="No such file"):
        mosquitto.publish(tmp_path / "missing.crt")
    # The one that is published is the first to arrive.
    mosquitto.publish(files.ca)
    eventually(lambda: bool(received), "the reading")
    assert len(received) == 1
