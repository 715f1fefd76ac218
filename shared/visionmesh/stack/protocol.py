"""What a stack is to those who use it, and what it hands out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self


@dataclass(frozen=True)
class Ports:
    """Where the servers listen on 127.0.0.1; None takes a free port."""

    kafka: int | None = None
    s3: int | None = None
    postgres: int | None = None
    cache: int | None = None


@dataclass(frozen=True)
class Endpoints:
    """Where the servers of a stack are and how to get in; plain values, no client."""

    kafka_bootstrap: str
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str = field(repr=False)
    postgres_dsn: str = field(repr=False)
    cache_url: str = field(repr=False)
    group_protocol: Literal["classic", "consumer"]
    kafka_fetch_wait_max_ms: int | None = None

    def environment(self) -> dict[str, str]:
        """The variables that point `visionmesh.settings.Settings` at this stack."""
        variables = {
            "MESH_KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "MESH_KAFKA_GROUP_PROTOCOL": self.group_protocol,
            "MESH_S3_ENDPOINT": self.s3_endpoint,
            "MESH_S3_ACCESS_KEY": self.s3_access_key,
            "MESH_S3_SECRET_KEY": self.s3_secret_key,
            "MESH_S3_SECURE": "false",
            "MESH_POSTGRES_DSN": self.postgres_dsn,
            "MESH_CACHE_URL": self.cache_url,
        }
        if self.kafka_fetch_wait_max_ms is not None:
            variables["MESH_KAFKA_FETCH_WAIT_MAX_MS"] = str(self.kafka_fetch_wait_max_ms)
        return variables


class Server(Protocol):
    """One server of a stack. Its port and its data directory are the same for as long as the stack lives.

    What survives a restart is the server's own affair: everything on the native stack and in any
    PostgreSQL, nothing in the embedded Kafka and S3 and in the cache, which keep their data in memory.
    """

    @property
    def name(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def pid(self) -> int | None:
        """The process that `kill` would hit, None while the server is down."""
        ...

    @property
    def log_path(self) -> Path: ...

    @property
    def is_running(self) -> bool: ...

    def start(self) -> None:
        """Start and return when the server answers; does nothing to one that runs. Raises StackError."""
        ...

    def stop(self) -> None:
        """Ask the server to end and wait for it; one that does not end in time is killed."""
        ...

    def kill(self) -> None:
        """Send SIGKILL to the server and its children."""
        ...

    def restart(self) -> None:
        """Start again on the same port and data, after a stop if the server runs. Raises StackError."""
        ...


class Stack(Protocol):
    """Kafka, S3, PostgreSQL and Valkey for one mesh."""

    @property
    def endpoints(self) -> Endpoints: ...

    @property
    def kafka(self) -> Server: ...

    @property
    def s3(self) -> Server: ...

    @property
    def postgres(self) -> Server: ...

    @property
    def cache(self) -> Server: ...

    @property
    def servers(self) -> tuple[Server, ...]: ...

    def start(self) -> None:
        """Start all servers at once; if one fails none stays. Raises StackError."""
        ...

    def stop(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
