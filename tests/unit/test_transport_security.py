"""What the settings say of TLS and of accounts reaches the clients, and the clients mean it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from tls import Authority, authority, tls_server
from visionmesh.cache import open_cache
from visionmesh.database import Database
from visionmesh.errors import Unavailable
from visionmesh.kafka import KafkaPublisher, client_config
from visionmesh.object_store import S3ObjectStore
from visionmesh.settings import Settings

# Of an object store that is asked where its bucket lies.
HERE = b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\nConnection: close\r\n\r\n<LocationConstraint/>"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls"))


# Kafka ----------------------------------------------------------------------------------------------------


def test_plaintext_needs_no_word() -> None:
    config = client_config(Settings(kafka_sasl_password=SecretStr("geheim")))
    assert not [name for name in config if name.startswith(("sasl.", "ssl.", "security."))]


def test_sasl_over_tls() -> None:
    settings = Settings(
        kafka_security_protocol="sasl_ssl",
        kafka_sasl_mechanism="SCRAM-SHA-256",
        kafka_sasl_username="mesh",
        kafka_sasl_password=SecretStr("geheim"),
        kafka_tls_ca=Path("/ca.pem"),
        kafka_tls_certificate=Path("/tls.crt"),
        kafka_tls_key=Path("/tls.key"),
        kafka_tls_key_password=SecretStr("schlüssel"),
    )
    config = client_config(settings)
    assert {name: config[name] for name in config if name.startswith(("sasl.", "ssl.", "security."))} == {
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": "mesh",
        "sasl.password": "geheim",
        "ssl.endpoint.identification.algorithm": "https",
        "ssl.ca.location": "/ca.pem",
        "ssl.certificate.location": "/tls.crt",
        "ssl.key.location": "/tls.key",
        "ssl.key.password": "schlüssel",
    }
    assert "geheim" not in repr(settings)
    assert "schlüssel" not in str(settings)


@pytest.mark.parametrize(
    ("protocol", "words"), [("ssl", {"security", "ssl"}), ("sasl_plaintext", {"security", "sasl"})]
)
def test_one_without_the_other(protocol: Any, words: set[str]) -> None:
    settings = Settings(
        kafka_security_protocol=protocol, kafka_sasl_username="mesh", kafka_sasl_password=SecretStr("geheim")
    )
    config = client_config(settings)
    assert {name.split(".")[0] for name in config} & {"security", "ssl", "sasl"} == words
    Producer(config)


def kafka(port: int, **more: Any) -> Settings:
    return Settings(kafka_bootstrap=f"127.0.0.1:{port}", kafka_security_protocol="ssl", **more)


def test_a_broker_is_believed_by_its_authority_alone(files: Authority) -> None:
    with tls_server(files) as (port, said):
        with pytest.raises(Unavailable):
            KafkaPublisher(kafka(port)).ping()
        assert not any(said)
        # It is no broker, but it was told something over TLS.
        with pytest.raises(Unavailable):
            KafkaPublisher(kafka(port, kafka_tls_ca=files.ca)).ping()
        assert b"rdkafka" in b"".join(said)


def test_a_broker_is_shown_a_certificate(files: Authority) -> None:
    with tls_server(files, ask=True) as (port, said):
        shown: dict[str, Any] = {"kafka_tls_certificate": files.certificate, "kafka_tls_key": files.key}
        with pytest.raises(Unavailable):
            KafkaPublisher(kafka(port, kafka_tls_ca=files.ca, **shown)).ping()
        assert b"rdkafka" in b"".join(said)


# Object store ---------------------------------------------------------------------------------------------


def store(port: int, ca: Path | None) -> S3ObjectStore:
    return S3ObjectStore.from_settings(
        Settings(s3_endpoint=f"127.0.0.1:{port}", s3_secure=True, s3_tls_ca=ca)
    )


def test_an_object_store_is_believed_by_its_authority_alone(files: Authority) -> None:
    with tls_server(files, HERE) as (port, said):
        with pytest.raises(Unavailable, match="certificate"):
            store(port, None).ping()
        assert not any(said)
        store(port, files.ca).ping()
        assert said[0].startswith(b"GET /raw-images")


# Postgres and the cache -----------------------------------------------------------------------------------


def test_what_the_address_says_of_tls_is_kept() -> None:
    dsn = "postgresql://mesh:geheim@db:5432/mesh?sslmode=verify-full&sslrootcert=/ca.pem&sslcert=/tls.crt"
    database = Database.from_settings(Settings(postgres_dsn=SecretStr(dsn)))
    given = conninfo_to_dict(database._conninfo)
    assert (given["sslmode"], given["sslrootcert"], given["sslcert"]) == (
        "verify-full",
        "/ca.pem",
        "/tls.crt",
    )


def test_a_cache_is_believed_by_its_authority_alone(files: Authority) -> None:
    with tls_server(files, b"-ERR no such server\r\n") as (port, said):
        address = f"rediss://:geheim@127.0.0.1:{port}/0?socket_timeout=5&socket_connect_timeout=5"
        for more, heard in (("", False), (f"&ssl_ca_certs={files.ca}", True)):
            cache: Any = open_cache(Settings(cache_url=SecretStr(address + more)))
            with pytest.raises(Unavailable):
                cache.ping()
            assert any(said) is heard
