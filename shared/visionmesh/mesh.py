"""The mesh on one machine: every service as a child process.

`Mesh` starts the replicas, restarts what crashes, knows the addresses and stops everything within a
budget. It has no thread of its own: whoever holds it calls `tend` a few times a second. The servers
around the services (Kafka, object store, Postgres) are the stack's business, not the supervisor's.

While it runs it does what other processes ask of it (`visionmesh.orders`), one order after the other: more
replicas or fewer, or every replica of a service anew without a moment in which none works.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from visionmesh import orders
from visionmesh.settings import CLASSIFIER_PATTERN
from visionmesh.stack import tether
from visionmesh.stack.logs import bound_log
from visionmesh.stack.ports import free_port
from visionmesh.topics import PARTITIONS

HOST: Final = "127.0.0.1"

Ports = Literal["seed", "free"]


@dataclass(frozen=True)
class Service:
    """One row of the table of services.

    port: the published port, owned by the first replica; None for a free one. environment: what tells
    instances of one package apart. scalable: whether there may be more than one replica.
    """

    name: str
    package: str
    port: int | None
    environment: Mapping[str, str] = field(default_factory=dict)
    scalable: bool = True


SERVICES: Final = (
    Service("ingest-api", "ingest_api", 8001),
    Service("feature-extractor", "feature_extractor", 8006),
    Service("classifier-fast", "classifier", 8003, {"MESH_CLASSIFIER": "fast"}),
    Service("classifier-balanced", "classifier", 8005, {"MESH_CLASSIFIER": "balanced"}),
    Service("classifier-accurate", "classifier", 8004, {"MESH_CLASSIFIER": "accurate"}),
    Service("qr-decoder", "qr_decoder", 8008),
    Service("ocr-worker", "ocr_worker", 8500),
    Service("edge-publisher", "edge_publisher", 8000, scalable=False),
    Service("sensor-sink", "sensor_sink", 8007),
)

# What an edge-publisher does on a machine of which nothing is known, unless the environment says otherwise:
# the sensors are simulated, at a pace that leaves the cores to the pictures.
_EDGE: Final = {
    "EDGE_SIMULATE": "all",
    "EDGE_TFLUNA_HZ": "20",
    "EDGE_MPU6050_HZ": "20",
    "EDGE_CAMERA_INTERVAL_SECONDS": "2",
}

# Those that answer with no model of the registry.
_WITHOUT_SHADOW: Final = frozenset(
    ("ingest-api", "qr-decoder", "ocr-worker", "edge-publisher", "sensor-sink")
)

# A model may have a colon in it: models:/night@champion.
_CLASSIFIER = re.compile(
    rf"^(?P<name>{CLASSIFIER_PATTERN.strip('^$')})=(?P<model>.+?)(?::(?P<port>[1-9][0-9]{{0,4}}))?$"
)

_LAST_PORT: Final = 65_535

# A replica that lived this long was healthy: its next crash is a first one again.
_HEALTHY_SECONDS: Final = 30.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 15.0

# Above the services' own shutdown budget (`worker_shutdown_seconds`), so that they end by themselves.
STOP_SECONDS: Final = 12.0

# How long a replica may take to be ready before what asked for it is given up.
READY_SECONDS: Final = 120.0

_TEND_SECONDS: Final = 0.05
_PROBE_SECONDS: Final = 2.0

# Above what a look at the lock of a folder takes, which is held for that time.
_HOLD_SECONDS: Final = 1.0


class MeshError(Exception):
    """The mesh can't start or can't go on; the text says why and what to do."""


def parse_services(classifiers: Sequence[str] = (), shadows: Sequence[str] = ()) -> tuple[Service, ...]:
    """The table of services with what a command line changes.

    classifiers: `NAME=MODEL[:PORT]`, a further classifier, or another model for one of the table.
    shadows: `SERVICE=MODEL`, a model in shadow. A model is a name in models.toml or an address in MLflow.

    Raises `MeshError` for what is not understood.
    """
    services = {service.name: service for service in SERVICES}
    for text in classifiers:
        found = _CLASSIFIER.match(text)
        if found is None or int(found["port"] or 0) > _LAST_PORT:
            raise MeshError(f"{text!r} is not understood; write for example --classifier night=MODEL:8010.")
        name = f"classifier-{found['name']}"
        known = services.get(name, Service(name, "classifier", None))
        services[name] = replace(
            known,
            port=int(found["port"]) if found["port"] else known.port,
            environment={"MESH_CLASSIFIER": found["name"], "MESH_CLASSIFIER_MODEL": found["model"]},
        )
    for text in shadows:
        name, _, model = text.partition("=")
        service = services.get(name)
        if service is None or not model or name in _WITHOUT_SHADOW:
            able = ", ".join(each for each in services if each not in _WITHOUT_SHADOW)
            raise MeshError(f"{text!r} is not understood; write --shadow SERVICE=MODEL, with one of {able}.")
        services[name] = replace(service, environment={**service.environment, "MESH_SHADOW_MODEL": model})
    ports = [service.port for service in services.values() if service.port is not None]
    if len(set(ports)) < len(ports):
        raise MeshError("Two services have the same port; give the classifier another one.")
    return tuple(services.values())


def extra_classifiers(services: Sequence[Service]) -> tuple[str, ...]:
    """The names of those classifiers that are not in the table, as in the setting of that name."""
    known = {service.name for service in SERVICES}
    return tuple(service.environment["MESH_CLASSIFIER"] for service in services if service.name not in known)


def parse_scale(texts: list[str], services: Sequence[Service] = SERVICES) -> dict[str, int]:
    """`["classifier-fast=3"]` → replicas per service. Raises `MeshError` for what is not understood."""
    known = {service.name: service for service in services}
    scale = {}
    for text in texts:
        name, _, count = text.partition("=")
        if name not in known:
            raise MeshError(f"There is no service {name!r} to scale; there are {', '.join(sorted(known))}.")
        if not count.isdecimal():
            raise MeshError(f"{text!r} is not understood; write for example --scale {name}=3.")
        check_scale(known[name], int(count))
        scale[name] = int(count)
    return scale


def check_scale(service: Service, replicas: int) -> None:
    """Raises `MeshError` for more replicas than there may be of a service."""
    if replicas > 1 and not service.scalable:
        raise MeshError(
            f"{service.name} stands for one device, of which there is one; start it on another device "
            "instead."
        )
    if replicas > PARTITIONS:
        raise MeshError(
            f"{replicas} replicas of {service.name} are too many for one machine; {PARTITIONS} may be, as "
            "many as a topic has partitions: further readers would have no work."
        )


class Replica:
    """One process of a service, restarted with growing pauses whenever it ends by itself."""

    def __init__(self, service: Service, number: int, port: int, log: Path) -> None:
        self.service = service
        self.number = number
        self.port = port
        self.log = log
        self.restarts = 0
        self._environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_again_at = 0.0
        self._pause = _FIRST_PAUSE_SECONDS
        self._kill_at: float | None = None

    @property
    def name(self) -> str:
        """`classifier-fast-2`: the service and the number of the replica, counted from 1."""
        return f"{self.service.name}-{self.number}"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id, None while the replica waits to be started again."""
        return None if self._process is None else self._process.pid

    def start(self, environment: Mapping[str, str]) -> None:
        """Raises `OSError` when there can't be a process; `tend` tries again then."""
        self._kill_at = None
        self._environment = {
            **environment,
            **self.service.environment,
            "MESH_HTTP_HOST": HOST,
            "MESH_HTTP_PORT": str(self.port),
        }
        self._spawn()

    def _spawn(self) -> None:
        # SIGTERM when the supervisor dies, however it dies.
        tied = [sys.executable, "-I", "-S", tether.__file__, str(int(signal.SIGTERM)), str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*tied, sys.executable, "-m", self.service.package],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A session of its own: Ctrl-C in the terminal reaches only the supervisor, which stops
                # the services in order, and what a service started itself can be ended with it.
                start_new_session=True,
            )
        self._started_at = time.monotonic()

    def tend(self) -> str | None:
        """Starts the process again when it ended and its pause is over, unless it was asked to end.

        Returns what has just gone wrong, in words: how it ended, or why it can't be started.
        """
        if self._kill_at is not None:
            return None
        now = time.monotonic()
        if self._process is None:
            if now < self._start_again_at:
                return None
            try:
                self._spawn()
            except OSError as error:
                self._wait_to_start(now)
                return f"can't be started ({error})"
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._end_group()
        self._process = None
        self.restarts += 1
        if now - self._started_at > _HEALTHY_SECONDS:
            self._pause = _FIRST_PAUSE_SECONDS
        self._wait_to_start(now)
        return f"ended {_describe(status)}"

    def _wait_to_start(self, now: float) -> None:
        self._start_again_at = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    def ask_to_stop(self, seconds: float = STOP_SECONDS) -> None:
        """From now on it is not started again; `has_ended` kills what is left after `seconds`."""
        self._kill_at = time.monotonic() + seconds
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def has_ended(self) -> bool:
        """Whether what was asked to stop has. Does not wait."""
        assert self._kill_at is not None, "it was asked to stop"
        if self._process is None:
            return True
        if self._process.poll() is None and time.monotonic() < self._kill_at:
            return False
        self._end_group()
        self._process.wait()
        self._process = None
        return True

    def stop(self, seconds: float) -> bool:
        """Waits up to `seconds` for the end, then kills; whether it ended by itself."""
        if self._process is None:
            return True
        try:
            self._process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            self._end_group()
            self._process.wait()
            self._process = None

    def last_lines(self, count: int = 5) -> str:
        """The end of the replica's log, for people."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - 8192))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])
        except OSError:
            return ""

    def _end_group(self) -> None:
        """Ends whatever the process left behind in its session."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


class Mesh:
    """All replicas of all services.

    directory: where logs and `running.json` go. services: the table when None; see `parse_services`.
    ports: `seed` gives the first replica of a service its published port, `free` gives none.

    Raises `MeshError` when a published port is taken.
    """

    def __init__(
        self,
        directory: Path,
        *,
        services: Sequence[Service] | None = None,
        scale: Mapping[str, int] | None = None,
        ports: Ports = "seed",
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        services = SERVICES if services is None else services
        self._connection: dict[str, str] = {}
        self._environment: dict[str, str] = {}
        self._directory = directory
        self._report = report
        self._ports = ports
        self._services = {service.name: service for service in services}
        self._leaving: list[Replica] = []
        self._work: Iterator[None] = iter(())
        self._order: orders.Given | None = None
        self._refused = ""
        logs = directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for log in logs.glob("*.log*"):
            log.unlink()
        self.replicas: list[Replica] = []
        for service in services:
            for number in range(1, (scale or {}).get(service.name, 1) + 1):
                self.replicas.append(self._new_replica(service, number))

    def _new_replica(self, service: Service, number: int) -> Replica:
        if number == 1 and self._ports == "seed" and service.port is not None:
            port = service.port
            _refuse_taken(port, service.name)
        else:
            published = {each.port for each in self._services.values() if each.port is not None}
            port = _free_port(published | {replica.port for replica in [*self.replicas, *self._leaving]})
        return Replica(service, number, port, self._directory / "logs" / f"{service.name}-{number}.log")

    @contextlib.contextmanager
    def started(self, environment: Mapping[str, str]) -> Iterator[None]:
        """All replicas as running processes; none of them after the block.

        environment: the settings that connect the services to the servers of a stack.
        """
        self._connection = dict(environment)
        queue = {"EDGE_QUEUE_PATH": str(self._directory.resolve() / "edge" / "queue.db")}
        own = {"PYTHONUNBUFFERED": "1", **self._own_addresses()}
        self._environment = {**_EDGE, **queue, **os.environ, **environment, **own}
        orders.forget(self._directory)
        try:
            for replica in self.replicas:
                replica.start(self._environment)
            self.tend()
            yield
        finally:
            self.stop()

    def _own_addresses(self) -> dict[str, str]:
        """The settings by which services find each other."""
        intake = [replica.url for replica in self.replicas if replica.service.name == "ingest-api"]
        return {"MESH_INGEST_URL": intake[0]} if intake else {}

    def tend(self) -> None:
        """Restarts what ended and goes on with what was asked for; to be called a few times a second. Keeps
        `running.json` true and logs short. What the system refuses (a full disk, no further process) is
        reported and tried again: what runs goes on.
        """
        for replica in self.replicas:
            fault = replica.tend()
            if fault is not None:
                self._report(
                    f"{replica.name} {fault} and is started again; "
                    f"its log is {replica.log}:\n{replica.last_lines()}"
                )
        self._leaving = [replica for replica in self._leaving if not replica.has_ended()]
        steps = (self._go_on, self._write_running, self._bound_logs)
        refused = "; ".join(filter(None, map(_refusal, steps)))
        if refused and refused != self._refused:
            self._report(f"{refused}; it is tried again until it can be done")
        self._refused = refused

    def scale(self, name: str, replicas: int) -> Iterator[None]:
        """Starts or ends replicas of a service until there are so many; a step for each call of `tend`.

        The highest numbers go first, and have ended at the last step. Raises `MeshError` for what can't be,
        at the first step, and when a further one does not get ready: there are as many as before then.
        """
        service = self._service(name)
        check_scale(service, replicas)
        there = self._replicas_of(name)
        further: list[Replica] = []
        try:
            for number in range(len(there) + 1, replicas + 1):
                further.append(self._begin(service, number))
            for replica in further:
                yield from self._until_ready(replica)
        except (MeshError, OSError):
            yield from self._end(further)
            raise
        yield from self._end(there[replicas:])

    def restart(self, name: str) -> Iterator[None]:
        """Every replica of a service anew, one after the other, with one more of them meanwhile, so that
        never fewer work than before; a step for each call of `tend`.

        Of a device there is but one, which is away for as long as it takes. Raises `MeshError` at the first
        new process that does not get ready; what has not had its turn by then goes on as it is, and the one
        more stands in for who failed.
        """
        service = self._service(name)
        there = self._replicas_of(name)
        further = None
        if service.scalable and there:
            further = self._begin(service, len(there) + 1)
            try:
                yield from self._until_ready(further)
            except MeshError:
                yield from self._end([further])
                raise
        for replica in there:
            replica.ask_to_stop()
            while not replica.has_ended():
                yield
            replica.start(self._environment)
            yield from self._until_ready(replica)
        if further is not None:
            yield from self._end([further])

    def _service(self, name: str) -> Service:
        if name not in self._services:
            raise MeshError(f"There is no service {name!r}; there are {', '.join(sorted(self._services))}.")
        return self._services[name]

    def _replicas_of(self, name: str) -> list[Replica]:
        return [replica for replica in self.replicas if replica.service.name == name]

    def _begin(self, service: Service, number: int) -> Replica:
        replica = self._new_replica(service, number)
        replica.start(self._environment)
        self.replicas.append(replica)
        return replica

    def _end(self, replicas: Sequence[Replica]) -> Iterator[None]:
        """Lets go of replicas and waits until they have ended: before that, their ports are taken."""
        for replica in replicas:
            replica.ask_to_stop()
            self.replicas.remove(replica)
            self._leaving.append(replica)
        while any(replica in self._leaving for replica in replicas):
            yield

    def _until_ready(self, replica: Replica) -> Iterator[None]:
        deadline = time.monotonic() + READY_SECONDS
        while (why := why_not_ready(replica.url)) is not None:
            if time.monotonic() > deadline:
                raise MeshError(
                    f"{replica.name} is not ready after {READY_SECONDS:.0f} s: {why}\n{replica.last_lines()}"
                )
            yield
        self._report(f"{replica.name} is ready: {replica.url}")

    def _go_on(self) -> None:
        """One step of the order in hand, or the next order."""
        if self._order is None:
            self._order = orders.next_given(self._directory)
            if self._order is None:
                return
            order = self._order.order
            self._report(f"asked for: {order.text}")
            if isinstance(order, orders.Scale):
                self._work = self.scale(order.service, order.replicas)
            else:
                self._work = self.restart(order.service)
        try:
            next(self._work)
            return
        except StopIteration:
            # Who waits for the order reads there what came of it.
            _refusal(self._write_running)
            self._order.done()
        except (MeshError, OSError) as error:
            self._report(str(error))
            self._order.failed(str(error))
        self._order = None

    def wait_until_ready(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Returns when every replica answers `/ready` with 200, or when `stop` says so.

        Raises `MeshError` with each laggard's own reason when that takes longer than `seconds`.
        """
        deadline = time.monotonic() + seconds
        waiting = {replica.name: (replica, "was not asked yet") for replica in self.replicas}
        while waiting and not stop():
            self.tend()
            for replica, _ in list(waiting.values()):
                why = why_not_ready(replica.url)
                if why is None:
                    del waiting[replica.name]
                else:
                    waiting[replica.name] = (replica, why)
            if waiting and time.monotonic() > deadline:
                reasons = "\n".join(
                    f"{name}: {why}\n{replica.last_lines()}" for name, (replica, why) in waiting.items()
                )
                raise MeshError(f"Not ready after {seconds:.0f} s:\n{reasons}")
            time.sleep(_TEND_SECONDS)

    def keep(self, stop: Callable[[], bool]) -> None:
        """Tends the replicas until `stop` says so."""
        while not stop():
            self.tend()
            time.sleep(_TEND_SECONDS)

    def url_of(self, service: str) -> str:
        """The address of a service's first replica."""
        return next(replica.url for replica in self.replicas if replica.service.name == service)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ends every process: SIGTERM to all at once, SIGKILL to what is left after `seconds`."""
        deadline = time.monotonic() + seconds
        ending = [*self.replicas, *self._leaving]
        for replica in ending:
            replica.ask_to_stop()
        for replica in ending:
            if not replica.stop(max(0.0, deadline - time.monotonic())):
                self._report(f"{replica.name} had not ended after {seconds:.0f} s and was killed.")
        running_file(self._directory).unlink(missing_ok=True)

    def _bound_logs(self) -> None:
        for replica in [*self.replicas, *self._leaving]:
            bound_log(replica.log)

    def _write_running(self) -> None:
        state = {
            "pid": os.getpid(),
            "environment": self._connection,
            "replicas": [
                {
                    "service": replica.service.name,
                    "number": replica.number,
                    "url": replica.url,
                    "pid": replica.pid,
                    "restarts": replica.restarts,
                }
                for replica in self.replicas
            ],
        }
        path = running_file(self._directory)
        text = json.dumps(state, indent=2)
        if path.exists() and path.read_text() == text:
            return
        # Written beside and renamed, so that no reader sees half of it; it holds the stack's secrets.
        draft = path.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_text(text)
        draft.replace(path)


def running_file(directory: Path) -> Path:
    """Where a running mesh writes down its addresses, for the other commands."""
    return directory / "running.json"


def hold(directory: Path) -> int:
    """Makes a folder this process's own until it ends, however it ends, or closes the descriptor returned.

    Two meshes in one would overwrite each other's logs and addresses. Raises `MeshError` for the second.
    """
    lock = os.open(_lock_file(directory), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _HOLD_SECONDS
    while not _locks(lock, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            os.close(lock)
            raise MeshError(
                f"Another mesh runs in {directory}. Stop that one, or start this one with a --directory of "
                "its own and --ports free."
            )
        time.sleep(_TEND_SECONDS)
    # That of one that was killed: nobody is to take its addresses for ours.
    running_file(directory).unlink(missing_ok=True)
    return lock


def running(directory: Path) -> dict[str, Any] | None:
    """What the mesh that holds a folder wrote down; None when none does, or its services have not begun.

    Told by the lock: the process id of one that was killed may be somebody else's by now.
    """
    try:
        lock = os.open(_lock_file(directory), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _locks(lock, fcntl.LOCK_SH):
                return None
        finally:
            os.close(lock)
        state: dict[str, Any] = json.loads(running_file(directory).read_text())
    except (OSError, ValueError):
        return None
    return state


def _locks(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_file(directory: Path) -> Path:
    return directory / "lock"


def why_not_ready(url: str) -> str | None:
    """None when `GET /ready` answers 200, else why not, in words."""
    try:
        return _fault_at(f"{url}/ready")
    except urllib.error.URLError as error:
        return f"nothing answers on {url} ({error.reason})"
    except (http.client.HTTPException, OSError, ValueError) as error:
        return f"{url} answers in no way that is understood ({error!r})"


def _fault_at(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        # To read it may fail as well.
        return f"/ready answers {error.code}: {error.read(2000).decode(errors='replace')}"


def _refusal(step: Callable[[], None]) -> str:
    """What the system says against a step, empty when it was done."""
    try:
        step()
    except OSError as error:
        return str(error)
    return ""


def _refuse_taken(port: int, service: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise MeshError(
                f"Port {port}, which belongs to {service}, is taken by another process (another mesh?). "
                "Stop that one, or use --ports free."
            ) from None


def _free_port(taken: set[int]) -> int:
    """A port that nothing listens on, no client is given, and no other replica was given."""
    while (port := free_port()) in taken:
        pass
    taken.add(port)
    return port


def _describe(status: int) -> str:
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
