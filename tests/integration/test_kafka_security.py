"""A real broker that asks who its clients are, over TLS: topics, records and groups as ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tls import Authority, authority
from visionmesh.errors import Unavailable
from visionmesh.kafka import KafkaPublisher, Record, create_topics, open_consumer, partition_offsets
from visionmesh.settings import Settings
from visionmesh.stack.native import KafkaServer
from visionmesh.stack.prepare import prepare_native
from visionmesh.stack.process import NotReadyError
from visionmesh.topics import IMAGES

pytestmark = pytest.mark.native

_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


class SecureKafka(KafkaServer):
    """The native stack's broker, but for its one listener for clients."""

    def __init__(self, directory: Path, files: Authority) -> None:
        super().__init__(directory, None)
        self._files = files

    def settings(self, **changed: Any) -> Settings:
        known: dict[str, Any] = {
            "kafka_bootstrap": self.address,
            "kafka_security_protocol": "sasl_ssl",
            "kafka_sasl_mechanism": "PLAIN",
            "kafka_sasl_username": "mesh",
            "kafka_sasl_password": SecretStr("geheim"),
            "kafka_tls_ca": self._files.ca,
        }
        return Settings(**known | changed)

    def probe(self) -> None:
        try:
            KafkaPublisher(self.settings()).ping()
        except Unavailable as error:
            raise NotReadyError(str(error)) from error

    def _settings(self) -> Mapping[str, str]:
        both = self.directory / "server.pem"
        both.write_bytes(self._files.key.read_bytes() + self._files.certificate.read_bytes())
        secure = {
            name: value.replace("PLAINTEXT:PLAINTEXT", "SASL_SSL:SASL_SSL").replace(
                "PLAINTEXT://", "SASL_SSL://"
            )
            for name, value in super()._settings().items()
        }
        secure["listener.security.protocol.map"] = "SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT"
        return secure | {
            "inter.broker.listener.name": "SASL_SSL",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": (
                f'{_LOGIN} username="mesh" password="geheim" user_mesh="geheim";'
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(both),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self._files.ca),
        }


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    prepare_native(print)
    server = SecureKafka(
        tmp_path_factory.mktemp("kafka") / "kafka", authority(tmp_path_factory.mktemp("tls"))
    )
    server.start()
    yield server
    server.stop()


def test_topics_records_and_groups(broker: SecureKafka) -> None:
    settings = broker.settings()
    assert IMAGES.name in create_topics(settings)
    assert KafkaPublisher(settings).publish([Record(IMAGES.name, b"key", b"value")]) == {}
    consumer = open_consumer(settings, "qr-decoder")
    consumer.subscribe(
        [IMAGES.name], on_assign=lambda *_: None, on_revoke=lambda *_: None, on_lost=lambda *_: None
    )
    found = None
    for _ in range(100):
        found = consumer.poll(0.5)
        if found is not None:
            break
    assert found is not None
    assert found.value() == b"value"
    consumer.close()
    assert sum(each.lag for each in partition_offsets(settings, IMAGES.name, "qr-decoder")) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"kafka_sasl_password": SecretStr("wrong")},
        {"kafka_sasl_username": "nobody"},
        {"kafka_security_protocol": "ssl"},
        {"kafka_security_protocol": "plaintext"},
        {"kafka_tls_ca": None},
    ],
)
def test_whoever_is_not_known_is_refused(broker: SecureKafka, changed: dict[str, Any]) -> None:
    with pytest.raises(Unavailable):
        KafkaPublisher(broker.settings(**changed)).ping()
