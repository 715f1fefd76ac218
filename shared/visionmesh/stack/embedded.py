"""The stack of Python packages alone: librdkafka's mock cluster, moto, a packaged PostgreSQL and Valkey."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from visionmesh.stack.base import USER, ServerGroup, stack_credentials
from visionmesh.stack.postgres import PostgresServer, packaged_binaries
from visionmesh.stack.process import ServerProcess
from visionmesh.stack.protocol import Endpoints, Ports
from visionmesh.stack.readiness import probe_kafka, probe_s3
from visionmesh.stack.retention import forgotten_records
from visionmesh.stack.valkey import ValkeyServer
from visionmesh.topics import PARTITIONS, TOPICS, dead_letter_topics

# The mock broker answers an empty fetch only when its wait is over: at the client's default a hop takes
# 470 ms, with this 1.4 ms.
FETCH_WAIT_MAX_MS = 10

# Objects up to this size stay in the memory of the S3 server, which would else grow with every photograph.
S3_MEMORY_BYTES = 64 * 1024


class MockKafkaServer(ServerProcess):
    """Kafka in memory; see `visionmesh.stack.mock_kafka` for what it is and is not."""

    def __init__(self, directory: Path, port: int | None, topics: Sequence[str]) -> None:
        super().__init__("kafka", directory, port)
        self._topics = topics

    def command(self) -> Sequence[str]:
        topics = [part for name in self._topics for part in ("--topic", f"{name}:{PARTITIONS}")]
        return [sys.executable, "-m", "visionmesh.stack.mock_kafka", "--port", str(self.port), *topics]

    def probe(self) -> None:
        probe_kafka(self.port)


class MotoServer(ServerProcess):
    """S3 that forgets everything when it ends: small objects in memory, others in unnamed temporary files.

    It accepts any credentials.
    """

    def __init__(self, directory: Path, port: int | None, secret_key: str) -> None:
        super().__init__("s3", directory, port)
        self._secret_key = secret_key

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "visionmesh.stack.moto_s3", "--port", str(self.port)]

    def environment(self) -> Mapping[str, str]:
        return {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(S3_MEMORY_BYTES), "TMPDIR": str(self.directory)}

    def probe(self) -> None:
        probe_s3(self.port, USER, self._secret_key)


class EmbeddedStack(ServerGroup):
    """Kafka, S3 and the cache in memory, PostgreSQL in `directory`.

    Every start of the stack is a new mesh: PostgreSQL begins empty as well, since rows that speak of objects
    and offsets that no longer exist would be worse than none. A restart of PostgreSQL alone keeps its rows.
    """

    def __init__(
        self, directory: Path, *, ports: Ports | None = None, topics: Sequence[str] | None = None
    ) -> None:
        ports = ports or Ports()
        directory = directory.absolute()
        credentials = stack_credentials(directory)
        if topics is None:
            topics = [*(topic.name for topic in TOPICS), *dead_letter_topics()]
        postgres = PostgresServer(
            directory / "postgres",
            ports.postgres,
            binaries=packaged_binaries(),
            user=USER,
            password=credentials.postgres_password,
            durable=False,
        )
        kafka = MockKafkaServer(directory / "kafka", ports.kafka, topics)
        s3 = MotoServer(directory / "s3", ports.s3, credentials.s3_secret_key)
        cache = ValkeyServer(directory / "cache", ports.cache)
        super().__init__(kafka, s3, postgres, cache)
        self._postgres_data = postgres.data
        self.endpoints = Endpoints(
            kafka_bootstrap=kafka.address,
            s3_endpoint=s3.address,
            s3_access_key=USER,
            s3_secret_key=credentials.s3_secret_key,
            postgres_dsn=postgres.dsn,
            cache_url=cache.url,
            group_protocol="consumer",
            kafka_fetch_wait_max_ms=FETCH_WAIT_MAX_MS,
        )

    def start(self) -> None:
        if not any(server.is_running for server in self.servers):
            shutil.rmtree(self._postgres_data, ignore_errors=True)
        super().start()

    def forgotten(self) -> dict[str, int]:
        """Records that Kafka dropped for want of room, by topic; empty is what it should be."""
        return forgotten_records(self.endpoints.kafka_bootstrap)
