"""One process of a service: its HTTP server and its worker loop, started and stopped together.

The loop runs in the main thread, where signals arrive, and HTTP in a thread of its own. After SIGTERM or
SIGINT both finish what they have begun, within one budget; the same signal again ends the process at once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from threading import Event, Thread, Timer
from types import FrameType
from typing import Any, Final, Protocol

import structlog
import uvicorn
from fastapi import FastAPI

from visionmesh.access import Guard
from visionmesh.api_keys import KeysError
from visionmesh.errors import Unavailable
from visionmesh.http_connection import BoundedConnection
from visionmesh.observability import spans
from visionmesh.observability.health import Check
from visionmesh.settings import Settings, settings_or_exit

log = structlog.get_logger()

_BACKLOG: Final = 2048
_MAX_WEBSOCKET_BYTES: Final = 64 * 1024

# What a shell shows of a process that a signal ended.
_SIGNALLED: Final = 128

_ENDED_WELL: Final = 0
_ENDED_BADLY: Final = 1
_WRONG_SETTINGS: Final = 2


class Loop(Protocol):
    """What runs beside HTTP; `visionmesh.worker.loop.Worker` is one."""

    def run(self) -> None:
        """Works until `stop` is called."""

    def stop(self) -> None:
        """Asks `run` to return; called from a signal handler or another thread."""

    def status(self) -> dict[str, Any]:
        """`ready`, and `waiting_for` (`server` and `reason`, or None)."""


def ready_when(loop: Loop) -> Check:
    """The check of a worker loop, for `create_app`: ready unless it waits for a server or is stopping."""

    def check() -> dict[str, Any]:
        status = loop.status()
        if not status["ready"]:
            waiting = status["waiting_for"] or {"server": "worker", "reason": "the worker is stopping"}
            raise Unavailable("worker", f"{waiting['server']}: {waiting['reason']}")
        return {"partitions": status["partitions"]}

    return check


def start(service: Callable[[Settings], int]) -> int:
    """Calls `service` with the settings of this process; returns the exit status.

    What keeps it from starting is told in one line: a setting that does not parse by the name of its
    variable, anything else in the log.
    """
    settings = settings_or_exit()
    try:
        return service(settings)
    except Exception as error:
        log.exception("cannot_start", reason=str(error))
        return _ENDED_BADLY


def run_service(app: FastAPI, loop: Loop | None, *, port: int, settings: Settings) -> int:
    """Runs until a signal or a failure ends it; returns the exit status of the process.

    port: the service's own, which `settings.http_port` overrides. A loop or a server that fails makes the
    status 1, so that whoever started the process starts it again.
    """
    port = port if settings.http_port is None else settings.http_port
    try:
        app.state.guard = Guard.from_settings(settings)
    except KeysError as error:
        log.error("cannot_start", reason=str(error))
        return _WRONG_SETTINGS
    try:
        listener = _listen(settings.http_host, port)
    except OSError as error:
        address = f"{settings.http_host}:{port}"
        log.error(
            "cannot_listen", address=address, reason=error.strerror, hint="set MESH_HTTP_PORT to a free one"
        )
        return _ENDED_BADLY
    with spans.exported(app.title, settings):
        return _Process(app, loop or _Idle(), listener, settings.worker_shutdown_seconds).run()


class _Idle:
    """The loop of a service that has none."""

    def __init__(self) -> None:
        self._stop = Event()

    def run(self) -> None:
        self._stop.wait()

    def stop(self) -> None:
        self._stop.set()

    def status(self) -> dict[str, Any]:
        return {"ready": not self._stop.is_set(), "partitions": [], "waiting_for": None}


class _Process:
    def __init__(self, app: FastAPI, loop: Loop, listener: socket.socket, shutdown_seconds: float) -> None:
        self._loop = loop
        self._listener = listener
        self._shutdown_seconds = shutdown_seconds
        self._signals: set[int] = set()
        self._stopping = False
        self._failed = False
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=BoundedConnection,
                log_config=None,
                access_log=False,
                # Nobody says anything over a WebSocket here; they listen.
                ws_max_size=_MAX_WEBSOCKET_BYTES,
                server_header=False,
                timeout_graceful_shutdown=max(1, int(shutdown_seconds) - 1),
            )
        )
        self._thread = Thread(target=self._serve, name="http", daemon=True)

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        host, port = self._listener.getsockname()[:2]
        log.info("started", address=f"http://{host}:{port}")
        self._thread.start()
        try:
            self._loop.run()
        except Exception:
            log.exception("loop_failed")
            self._failed = True
        self._stop()
        self._thread.join()
        log.info("stopped", failed=self._failed)
        return _ENDED_BADLY if self._failed else _ENDED_WELL

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        # Uvicorn ends with SystemExit when the application does not start.
        except (Exception, SystemExit):
            log.exception("http_failed")
        if not self._stopping:
            self._failed = True
            self._stop()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        # The same one again: Ctrl-C in a terminal reaches the whole group, and is then followed by the
        # SIGTERM of whatever started this process.
        if number in self._signals:
            os._exit(_SIGNALLED + number)
        self._signals.add(number)
        self._stop()

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        budget = Timer(self._shutdown_seconds, self._give_up)
        budget.daemon = True
        budget.start()
        self._server.should_exit = True
        self._loop.stop()

    def _give_up(self) -> None:
        # Nothing is lost by this: what was not committed is delivered again.
        log.error("shutdown_took_too_long", seconds=self._shutdown_seconds)
        sys.stderr.flush()
        os._exit(_ENDED_BADLY)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port in use is found out before anything else is started."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(False)
    return listener
