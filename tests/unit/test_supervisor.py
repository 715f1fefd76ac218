"""The supervisor's own decisions; what it does to real services is tested end to end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

from visionmesh import mesh as supervisor
from visionmesh import orders
from visionmesh.mesh import (
    SERVICES,
    Mesh,
    MeshError,
    Replica,
    Service,
    extra_classifiers,
    hold,
    parse_scale,
    parse_services,
    running,
    running_file,
)
from visionmesh.stack import logs
from visionmesh.stack.ports import LINUX_EPHEMERAL_RANGE
from visionmesh.topics import PARTITIONS

WORKER = Service("worker", "stand_in", None)


def test_a_scale_is_read() -> None:
    assert parse_scale(["classifier-fast=3", "feature-extractor=2"]) == {
        "classifier-fast": 3,
        "feature-extractor": 2,
    }


def test_a_device_is_one() -> None:
    assert parse_scale(["edge-publisher=0"]) == {"edge-publisher": 0}
    with pytest.raises(MeshError, match="edge-publisher stands for one device"):
        parse_scale(["edge-publisher=2"])


def test_more_replicas_than_partitions_are_refused() -> None:
    assert parse_scale([f"classifier-fast={PARTITIONS}"])
    with pytest.raises(MeshError, match="100000 replicas of classifier-fast are too many"):
        parse_scale(["classifier-fast=100000"])


@pytest.mark.parametrize("text", ["classifier-slow=2", "classifier-fast", "classifier-fast=-1", "=2", ""])
def test_a_scale_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(MeshError):
        parse_scale([text])


def test_a_fourth_classifier_is_one_more_service() -> None:
    services = parse_services(["night=classifier-forest:8010", "day=models:/classifier-fast@champion"])
    assert services[: len(SERVICES)] == SERVICES
    assert services[len(SERVICES) :] == (
        Service(
            "classifier-night",
            "classifier",
            8010,
            {"MESH_CLASSIFIER": "night", "MESH_CLASSIFIER_MODEL": "classifier-forest"},
        ),
        Service(
            "classifier-day",
            "classifier",
            None,
            {"MESH_CLASSIFIER": "day", "MESH_CLASSIFIER_MODEL": "models:/classifier-fast@champion"},
        ),
    )
    assert extra_classifiers(services) == ("night", "day")
    assert parse_scale(["classifier-night=2"], services) == {"classifier-night": 2}


def test_a_classifier_of_the_table_gets_another_model() -> None:
    services = parse_services(["fast=models:/classifier-fast/3"], ["classifier-fast=classifier-balanced"])
    (fast,) = (service for service in services if service.name == "classifier-fast")
    assert fast.port == 8003
    assert fast.environment == {
        "MESH_CLASSIFIER": "fast",
        "MESH_CLASSIFIER_MODEL": "models:/classifier-fast/3",
        "MESH_SHADOW_MODEL": "classifier-balanced",
    }
    assert len(services) == len(SERVICES)
    assert extra_classifiers(services) == ()


def test_models_in_shadow() -> None:
    services = parse_services(["night=x"], ["feature-extractor=extractor-fp32", "classifier-night=y"])
    found = {service.name: service.environment.get("MESH_SHADOW_MODEL") for service in services}
    assert {name: model for name, model in found.items() if model} == {
        "feature-extractor": "extractor-fp32",
        "classifier-night": "y",
    }


@pytest.mark.parametrize(
    ("classifiers", "shadows"),
    [
        (["night"], []),
        (["night="], []),
        (["=model"], []),
        (["Night=model"], []),
        (["night.1=model"], []),
        (["night=model:8001"], []),
        (["night=model:65536"], []),
        (["night=model:8010", "day=model:8010"], []),
        ([], ["classifier-night=model"]),
        ([], ["classifier-fast"]),
        ([], ["classifier-fast="]),
        ([], ["ingest-api=model"]),
        ([], ["qr-decoder=model"]),
    ],
)
def test_services_that_are_not_understood(classifiers: list[str], shadows: list[str]) -> None:
    with pytest.raises(MeshError):
        parse_services(classifiers, shadows)


def test_a_service_without_a_port_gets_a_free_one(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, services=parse_services(["night=model"]), ports="free")
    ports = [replica.port for replica in mesh.replicas]
    assert len(set(ports)) == len(SERVICES) + 1
    assert mesh.url_of("classifier-night").endswith(f":{ports[-1]}")


def test_the_first_replica_owns_the_published_port_and_further_ones_take_free_ports(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, scale={"classifier-fast": 3}, ports="free")
    assert len(mesh.replicas) == len(SERVICES) + 2
    assert len({replica.port for replica in mesh.replicas}) == len(SERVICES) + 2
    published = {service.port for service in supervisor.SERVICES}
    assert not published & {replica.port for replica in mesh.replicas}
    if LINUX_EPHEMERAL_RANGE.exists():
        # A client that retries a dead replica there may be given its port, and block its restart.
        lowest, highest = map(int, LINUX_EPHEMERAL_RANGE.read_text().split())
        assert not {replica.port for replica in mesh.replicas} & set(range(lowest, highest + 1))


def test_a_taken_port_is_named_with_its_service_and_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind((supervisor.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(supervisor, "SERVICES", (Service("ingest-api", "ingest_api", port),))
        with pytest.raises(MeshError, match=rf"Port {port}.*ingest-api.*--ports free"):
            Mesh(tmp_path)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `crashing` whose program each test writes."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder / "crashing.py"


@pytest.fixture
def crashing(tmp_path: Path, package: Path) -> Replica:
    """A replica whose program ends with status 3 whenever it is started; not started yet."""
    package.write_text("raise SystemExit(3)")
    return Replica(Service("crashing", "crashing", 1), 1, 1, tmp_path / "log")


def test_what_crashes_is_started_again_with_growing_pauses(
    crashing: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = crashing
    now = 0.0
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now)
    replica.start(os.environ)
    pauses = []
    for _ in range(4):
        assert replica._process is not None
        replica._process.wait(30)
        assert replica.tend() == "ended with status 3"
        before = now
        while replica.pid is None:
            now += 0.25
            replica.tend()
        pauses.append(now - before)
    replica.stop(10)
    assert pauses == sorted(pauses)
    assert pauses[-1] > pauses[0]
    assert replica.restarts == 4


def test_what_can_not_be_started_is_tried_again_after_a_pause(
    crashing: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = crashing
    now = 0.0
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now)
    replica.start(os.environ)
    assert replica._process is not None
    replica._process.wait(30)
    replica.tend()
    with monkeypatch.context() as crowded:
        crowded.setattr(supervisor.subprocess, "Popen", refuse)
        now += 1
        assert replica.tend() == "can't be started ([Errno 11] no further process)"
        assert replica.tend() is None, "it waits"
        assert replica.pid is None
    now += 60
    assert replica.tend() is None
    assert replica.pid is not None
    replica.stop(10)


def refuse(*_: object, **__: object) -> NoReturn:
    raise BlockingIOError(errno.EAGAIN, "no further process")


def idle(directory: Path, report: Callable[[str], None] = lambda _: None) -> Mesh:
    """A mesh of which nothing runs yet."""
    return Mesh(directory, services=(WORKER,), scale={"worker": 0}, ports="free", report=report)


@pytest.mark.parametrize("missing", ["_free_port", "subprocess.Popen"])
def test_an_order_for_which_the_machine_has_no_room_ends_nothing_but_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    mesh = idle(tmp_path)
    with mesh.started({}):
        given = orders.give(tmp_path, orders.Scale("worker", 1))
        with monkeypatch.context() as crowded:
            crowded.setattr(f"visionmesh.mesh.{missing}", refuse)
            mesh.tend()
        with pytest.raises(orders.OrderError, match="no further process"):
            orders.wait(given, lambda: True)
        assert mesh.replicas == []
        mesh.tend()


def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    reports: list[str] = []
    mesh = idle(tmp_path, reports.append)
    in_the_way = running_file(tmp_path).with_suffix(".new")
    in_the_way.mkdir()
    with mesh.started({}):
        mesh.tend()
        assert len(reports) == 1
        assert "running.new" in reports[0]
        in_the_way.rmdir()
        mesh.tend()
        assert running_file(tmp_path).exists()


def test_a_reason_that_no_disk_takes_is_still_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = orders.give(tmp_path, orders.Scale("worker", 1))
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", refuse)
        given.failed("too many")
    with pytest.raises(orders.OrderError, match="what the mesh prints"):
        orders.wait(given, lambda: True)


def test_logs_stay_short_while_somebody_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES", 10)
    mesh = Mesh(tmp_path, services=(WORKER,), ports="free")
    (replica,) = mesh.replicas
    with replica.log.open("ab", buffering=0) as log:
        log.write(b"12345678901")
        mesh._bound_logs()
        log.write(b"later")
        mesh._bound_logs()
    before = replica.log.with_name("worker-1.log.1")
    assert (before.read_bytes(), replica.log.read_bytes()) == (b"12345678901", b"later")
    Mesh(tmp_path, services=(WORKER,), scale={"worker": 0}, ports="free")
    assert not list(replica.log.parent.iterdir()), "those of another run, whatever their number"


def test_a_mesh_that_stops_ends_what_ignores_sigterm(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\n"
        "while True: time.sleep(1)\n"
    )
    monkeypatch.setattr(supervisor, "SERVICES", (Service("crashing", "crashing", 1),))
    reports: list[str] = []
    mesh = Mesh(tmp_path, ports="free", report=reports.append)
    with mesh.started({"MESH_KAFKA_BOOTSTRAP": "x"}):
        (replica,) = mesh.replicas
        deadline = time.monotonic() + 30
        while "deaf" not in replica.last_lines():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pid = replica.pid
        assert pid is not None
        assert running_file(tmp_path).stat().st_mode & 0o077 == 0
        mesh.stop(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert re.search("crashing-1 .* was killed", reports[0])
    assert not running_file(tmp_path).exists()


def test_a_service_that_never_gets_ready_is_named_with_its_log(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.write_text("import time\nprint('waiting for godot', flush=True)\ntime.sleep(60)")
    monkeypatch.setattr(supervisor, "SERVICES", (Service("crashing", "crashing", 1),))
    mesh = Mesh(tmp_path, ports="free")
    with mesh.started({}), pytest.raises(MeshError, match=r"crashing-1: nothing answers"):
        mesh.wait_until_ready(0.5)


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-other\r\n", b"", b"HTTP/1.1 503 no\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n"],
)
def test_whatever_else_listens_there_is_not_ready(answer: bytes) -> None:
    with socket.create_server((supervisor.HOST, 0)) as server, ThreadPoolExecutor(1) as pool:

        def listen() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(answer)

        listening = pool.submit(listen)
        why = supervisor.why_not_ready(f"http://{supervisor.HOST}:{server.getsockname()[1]}")
        listening.result()
    assert why is not None
    assert "no way that is understood" in why


def test_a_second_mesh_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    hold = "import sys, pathlib; from visionmesh.mesh import hold; hold(pathlib.Path(sys.argv[1]))"
    wait = "; print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold + wait, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        second = subprocess.run([sys.executable, "-c", hold, tmp_path], capture_output=True, text=True)
        assert "MeshError" in second.stderr
        assert "--directory" in second.stderr
        # As a process id it is one that lives all the same.
        running_file(tmp_path).write_text(json.dumps({"pid": os.getpid()}))
        assert running(tmp_path) == {"pid": os.getpid()}
        first.kill()
    assert running(tmp_path) is None
    subprocess.run([sys.executable, "-c", hold, tmp_path], check=True)
    assert not running_file(tmp_path).exists(), "the next one has other addresses"


def test_who_looks_whether_a_mesh_runs_keeps_none_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(hold(tmp_path))
    looking = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(supervisor.time, "sleep", lambda _: os.close(looking))
    os.close(hold(tmp_path))


def test_the_command_answers_help_without_importing_what_is_heavy() -> None:
    program = (
        "import sys, visionmesh.cli\n"
        "print([n for n in ('numpy', 'onnxruntime', 'confluent_kafka', 'minio', 'psycopg', 'httpx') "
        "if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
