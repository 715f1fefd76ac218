"""What both stacks do alike: start all servers together, stop all, hand out credentials."""

from __future__ import annotations

import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from visionmesh.stack.process import ServerProcess

USER = "mesh"


class Credentials(msgspec.Struct, frozen=True):
    """The secrets of one stack directory. Other users of the machine reach 127.0.0.1 too."""

    s3_secret_key: str
    postgres_password: str


def stack_credentials(directory: Path) -> Credentials:
    """The credentials of the directory, made once and readable by its owner alone."""
    path = directory / "credentials.json"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        made = Credentials(secrets.token_urlsafe(24), secrets.token_urlsafe(24))
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode(made))
    return msgspec.json.decode(path.read_bytes(), type=Credentials)


class ServerGroup:
    """The servers of a stack, started and stopped as one."""

    def __init__(
        self, kafka: ServerProcess, s3: ServerProcess, postgres: ServerProcess, cache: ServerProcess
    ) -> None:
        self.kafka = kafka
        self.s3 = s3
        self.postgres = postgres
        self.cache = cache

    @property
    def servers(self) -> tuple[ServerProcess, ...]:
        return (self.kafka, self.s3, self.postgres, self.cache)

    def start(self) -> None:
        with ThreadPoolExecutor(max_workers=len(self.servers)) as pool:
            starts = [pool.submit(server.start) for server in self.servers]
        try:
            for start in starts:
                start.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        with ThreadPoolExecutor(max_workers=len(self.servers)) as pool:
            stops = [pool.submit(server.stop) for server in self.servers]
        for stop in stops:
            stop.result()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
