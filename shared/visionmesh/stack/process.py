"""A server as a child process: start until it answers, stop, kill, start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil

from visionmesh.stack import tether
from visionmesh.stack.logs import bound_log
from visionmesh.stack.ports import LOOPBACK, free_port, is_free

# Linux sends the death signal when the thread that started the child ends, not its process. All children
# are therefore started by this one thread, which lives as long as the process.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stack-starter")

# For a server that hangs; one that ends is told at once. A broker that was killed recovers its log first.
READY_SECONDS = 180.0
PROBE_INTERVAL_SECONDS = 0.05
PORT_RELEASE_SECONDS = 5.0
LOG_TAIL_LINES = 30


class StackError(RuntimeError):
    """A server could not be prepared or started; the message says why and what to do."""


class NotReadyError(Exception):
    """The server does not answer yet; the message is what it answered last."""


class ServerProcess(ABC):
    """A server that runs as one child process (which may have children of its own).

    Subclasses say how to prepare its directory, which command to run, and how to tell that it answers.
    """

    # What asks the server to end in good order, and how long it may take.
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    # What the server gets when the process that started it dies.
    orphan_signal: signal.Signals = signal.SIGKILL

    def __init__(self, name: str, directory: Path, port: int | None) -> None:
        self.name = name
        self.directory = directory.absolute()
        self.port = port if port is not None else free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def is_running(self) -> bool:
        return self.pid is not None

    def start(self) -> None:
        if self.is_running:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._wait_for_port()
        self.prepare()
        bound_log(self.log_path)
        with self.log_path.open("ab") as log:
            self._process = _starter.submit(self._spawn, log).result()
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(self.stop_signal)
        try:
            process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        process = self._process
        if process is None:
            return
        # PostgreSQL's backends leave their process group, so a killpg would not reach them, and as long as
        # one lives the next server refuses the data directory.
        children = _descendants(process.pid) if process.poll() is None else []
        process.kill()
        process.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        _wait_until_gone(children, self.stop_seconds)

    def restart(self) -> None:
        self.stop()
        self.start()

    def prepare(self) -> None:
        """Bring the server's directory into the state that `command` needs; called at every start."""
        return None

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The program and its arguments."""

    def environment(self) -> Mapping[str, str]:
        """What the server's environment has beyond ours."""
        return {}

    @abstractmethod
    def probe(self) -> None:
        """Use the server once as a client would; raises NotReadyError while it does not answer."""

    def log_tail(self) -> str:
        """The last lines of the log, for error messages."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(lines[-LOG_TAIL_LINES:]) or "(the log is empty)"

    def _spawn(self, log: BinaryIO) -> subprocess.Popen[bytes]:
        tied = [
            sys.executable,
            "-I",
            "-S",
            tether.__file__,
            str(int(self.orphan_signal)),
            str(os.getpid()),
        ]
        return subprocess.Popen(
            [*self.command_prefix(), *tied, *self.command()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env={**os.environ, **self.environment()},
            # Ctrl-C is for the program in the foreground, which stops its servers after its workers.
            start_new_session=True,
        )

    def command_prefix(self) -> Sequence[str]:
        """What runs the command as somebody else; empty for ourselves."""
        return ()

    def _wait_for_port(self) -> None:
        # A server killed a moment ago may still be giving its sockets back.
        deadline = time.monotonic() + PORT_RELEASE_SECONDS
        while not is_free(self.port):
            if self._process is None or time.monotonic() > deadline:
                raise StackError(
                    f"{self.name} cannot listen on {self.address}: the port is taken. "
                    f"Stop what uses it or choose another port."
                )
            time.sleep(PROBE_INTERVAL_SECONDS)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        last = NotReadyError("it was not asked yet")
        while time.monotonic() < deadline:
            status = process.poll()
            if status is not None:
                raise StackError(
                    f"{self.name} ended with status {status} while starting. "
                    f"End of {self.log_path}:\n{self.log_tail()}"
                )
            try:
                self.probe()
            except NotReadyError as not_ready:
                last = not_ready
                time.sleep(PROBE_INTERVAL_SECONDS)
            else:
                return
        raise StackError(
            f"{self.name} did not answer on {self.address} within {READY_SECONDS:.0f} s ({last}). "
            f"End of {self.log_path}:\n{self.log_tail()}"
        )


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _wait_until_gone(processes: Sequence[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(_lives(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(PROBE_INTERVAL_SECONDS)


def _lives(process: psutil.Process) -> bool:
    # A zombie has given back its files, ports and memory; when its new parent reaps it is no matter of ours.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
