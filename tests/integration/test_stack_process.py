"""A server that does not start says why, and ports are chosen where they stay ours."""

from __future__ import annotations

import socket
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from visionmesh.stack import Ports, StackError, open_stack
from visionmesh.stack.base import stack_credentials
from visionmesh.stack.ports import LINUX_EPHEMERAL_RANGE, free_port, is_free
from visionmesh.stack.process import NotReadyError, ServerProcess
from visionmesh.stack.readiness import probe_port


class Script(ServerProcess):
    """A server of a few lines of shell that never answers."""

    def __init__(self, directory: Path, script: str) -> None:
        super().__init__("script", directory, None)
        self._script = script

    def command(self) -> Sequence[str]:
        return ["/bin/sh", "-c", self._script]

    def probe(self) -> None:
        probe_port(self.port)


def test_the_end_of_the_log_is_in_the_error_of_a_server_that_ends(tmp_path: Path) -> None:
    server = Script(tmp_path, "echo no such disk >&2; exit 3")
    with pytest.raises(StackError, match=r"(?s)status 3.*no such disk"):
        server.start()
    assert not server.is_running


def test_a_log_that_has_grown_long_is_moved_aside_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionmesh.stack.logs.LOG_BYTES", 10)
    server = Script(tmp_path, "echo anew; exit 3")
    server.log_path.write_text("a line of before")
    with pytest.raises(StackError):
        server.start()
    assert (tmp_path / "script.log.1").read_text() == "a line of before"
    assert server.log_path.read_text() == "anew\n"


def test_a_server_that_never_answers_is_given_up_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionmesh.stack.process.READY_SECONDS", 0.3)
    server = Script(tmp_path, "echo thinking; exec sleep 60")
    with pytest.raises(StackError, match=r"(?s)did not answer.*thinking"):
        server.start()
    assert not server.is_running


def test_a_server_that_ignores_the_request_to_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Script(tmp_path, "trap '' TERM; touch started; while :; do sleep 1; done")

    def started() -> None:
        if not (tmp_path / "started").exists():
            raise NotReadyError("not yet")

    monkeypatch.setattr(server, "probe", started)
    monkeypatch.setattr(server, "stop_seconds", 0.2)
    server.start()
    assert server.is_running
    server.stop()
    assert not server.is_running


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = open_stack("embedded", tmp_path, ports=Ports(s3=port))
        with pytest.raises(StackError, match=f"127.0.0.1:{port}: the port is taken"):
            stack.start()
    assert not any(server.is_running for server in stack.servers)


def test_a_free_port_is_none_that_a_client_may_be_given() -> None:
    port = free_port()
    assert is_free(port)
    assert port < int(LINUX_EPHEMERAL_RANGE.read_text().split()[0])


def test_a_port_in_use_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not is_free(taken.getsockname()[1])


def test_credentials_are_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    first = stack_credentials(tmp_path)
    assert stack_credentials(tmp_path) == first
    assert stat.S_IMODE((tmp_path / "credentials.json").stat().st_mode) == 0o600
    assert stack_credentials(tmp_path / "other") != first
