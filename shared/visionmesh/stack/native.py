"""The stack of the real servers as plain processes: Apache Kafka (KRaft), MinIO, PostgreSQL, Valkey."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from visionmesh.stack.base import USER, ServerGroup, stack_credentials
from visionmesh.stack.ports import free_port
from visionmesh.stack.postgres import PostgresServer, installed_binaries
from visionmesh.stack.prepare import java, kafka_jars, minio_binary, prepare_native
from visionmesh.stack.process import ServerProcess, StackError
from visionmesh.stack.protocol import Endpoints, Ports
from visionmesh.stack.readiness import probe_kafka, probe_s3
from visionmesh.stack.valkey import ValkeyServer
from visionmesh.topics import PARTITIONS

log = logging.getLogger(__name__)

# Any 16 bytes in base64 will do; a constant one keeps a directory's broker the same broker.
CLUSTER_ID = "dmlzaW9ubWVzaG1lc2gwMQ"

KAFKA_HEAP = ("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC")

LOG4J = """\
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %m (%c{1})%n
rootLogger.level = WARN
rootLogger.appenderRef.console.ref = console
logger.lifecycle.name = org.apache.kafka.server.BrokerLifecycleManager
logger.lifecycle.level = INFO
"""


class KafkaServer(ServerProcess):
    """One Apache Kafka node, broker and controller in one."""

    # A clean end writes the recovery point of every partition, which saves reading the logs at the start.
    stop_seconds = 20.0

    def __init__(self, directory: Path, port: int | None) -> None:
        super().__init__("kafka", directory, port)
        self._controller_port = free_port()

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def prepare(self) -> None:
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))
        self._log4j.write_text(LOG4J)
        if (self.data / "meta.properties").exists():
            return
        formatted = subprocess.run(
            [
                *self._java("-XX:TieredStopAtLevel=1"),
                "kafka.tools.StorageTool",
                "format",
                "--cluster-id",
                CLUSTER_ID,
                "--config",
                str(self._properties),
            ],
            capture_output=True,
            text=True,
        )
        if formatted.returncode != 0:
            raise StackError(f"Kafka could not format {self.data}:\n{formatted.stdout}{formatted.stderr}")

    def command(self) -> Sequence[str]:
        return [*self._java(*KAFKA_HEAP), "kafka.Kafka", str(self._properties)]

    def probe(self) -> None:
        probe_kafka(self.port)

    @property
    def _properties(self) -> Path:
        return self.directory / "server.properties"

    @property
    def _log4j(self) -> Path:
        return self.directory / "log4j2.properties"

    def _java(self, *options: str) -> list[str]:
        return [
            java(),
            *options,
            f"-Dlog4j2.configurationFile={self._log4j}",
            "-cp",
            f"{kafka_jars()}/*",
        ]

    def _settings(self) -> Mapping[str, str]:
        controller = f"127.0.0.1:{self._controller_port}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.data),
            "num.partitions": str(PARTITIONS),
            # A misspelt topic is an error, and dead-letter topics need limits of their own.
            "auto.create.topics.enable": "false",
            # One node holds the only copy of everything.
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            # Sized for a handful of groups; 50 each, the default, are made at the first join of a group.
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.num.partitions": "4",
            # After a kill -9 the controller takes the broker for alive, and refuses the new one, until this
            # long after its last heartbeat; 9 s by default.
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "500",
            # The default sets 128 MB of the heap aside.
            "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),
            # Takeover within 8 s of a kill -9, in the classic protocol by what the client asks for ...
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "6000",
            # ... and in KIP-848 by what the broker says, since clients have no say.
            "group.consumer.session.timeout.ms": "6000",
            "group.consumer.min.session.timeout.ms": "6000",
            "group.consumer.heartbeat.interval.ms": "1000",
            "group.consumer.min.heartbeat.interval.ms": "1000",
        }


class MinioServer(ServerProcess):
    """MinIO on one folder."""

    def __init__(self, directory: Path, port: int | None, secret_key: str) -> None:
        super().__init__("s3", directory, port)
        self._secret_key = secret_key

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def prepare(self) -> None:
        self.data.mkdir(exist_ok=True)

    def command(self) -> Sequence[str]:
        return [str(minio_binary()), "server", str(self.data), "--address", self.address]

    def environment(self) -> Mapping[str, str]:
        return {
            "MINIO_ROOT_USER": USER,
            "MINIO_ROOT_PASSWORD": self._secret_key,
            # Its console and its look for updates; nobody uses the one, the other leaves the machine.
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        }

    def probe(self) -> None:
        probe_s3(self.port, USER, self._secret_key)


class NativeStack(ServerGroup):
    """The real servers; what they store in `directory` is there again at the next start, but for the
    cache.

    group_protocol: what the endpoints tell consumers to use; the broker serves both.
    """

    def __init__(
        self,
        directory: Path,
        *,
        ports: Ports | None = None,
        group_protocol: Literal["classic", "consumer"] = "classic",
    ) -> None:
        ports = ports or Ports()
        directory = directory.absolute()
        credentials = stack_credentials(directory)
        kafka = KafkaServer(directory / "kafka", ports.kafka)
        s3 = MinioServer(directory / "s3", ports.s3, credentials.s3_secret_key)
        postgres = PostgresServer(
            directory / "postgres",
            ports.postgres,
            binaries=installed_binaries(),
            user=USER,
            password=credentials.postgres_password,
            durable=True,
        )
        cache = ValkeyServer(directory / "cache", ports.cache)
        super().__init__(kafka, s3, postgres, cache)
        self.endpoints = Endpoints(
            kafka_bootstrap=kafka.address,
            s3_endpoint=s3.address,
            s3_access_key=USER,
            s3_secret_key=credentials.s3_secret_key,
            postgres_dsn=postgres.dsn,
            cache_url=cache.url,
            group_protocol=group_protocol,
        )

    def start(self) -> None:
        prepare_native(log.info)
        super().start()
