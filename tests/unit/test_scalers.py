"""Replicas that are counted, changed and replaced: of `mesh up` by orders, of compose by Docker."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from visionmesh import mesh as supervisor
from visionmesh import orders
from visionmesh.autoscale import ScaleError
from visionmesh.mesh import Mesh, MeshError, Service, hold, running_file
from visionmesh.scalers import ComposeReplicas, MeshReplicas
from visionmesh.stack.ports import free_port

DEADLINE_SECONDS = 60.0

# Ready at once; says in `/ready` nothing, and ends at SIGTERM, after LINGER seconds.
PROGRAM = """
import http.server, os, signal, sys, time
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if not os.path.exists(os.environ["BROKEN"]) else 503)
        self.end_headers()
    def log_message(self, *_): pass
def end(*_):
    time.sleep(float(os.environ.get("LINGER", "0")))
    os._exit(0)
signal.signal(signal.SIGTERM, end)
http.server.HTTPServer(("127.0.0.1", int(os.environ["MESH_HTTP_PORT"])), Ready).serve_forever()
"""

WORKER = Service("worker", "stand_in", None)
DEVICE = Service("device", "stand_in", None, scalable=False)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as long as which is there no process that is started gets ready."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "stand_in.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setenv("BROKEN", str(tmp_path / "broken"))
    return tmp_path / "broken"


@contextmanager
def tended(
    directory: Path,
    scale: dict[str, int],
    services: Sequence[Service] = (WORKER, DEVICE),
    ports: supervisor.Ports = "free",
) -> Iterator[Mesh]:
    """A mesh of stand-ins that a thread tends."""
    held = hold(directory)
    mesh = Mesh(directory, services=services, scale=scale, ports=ports)
    ended = threading.Event()
    with mesh.started({}):
        mesh.wait_until_ready(DEADLINE_SECONDS)
        thread = threading.Thread(target=mesh.keep, args=(ended.is_set,))
        thread.start()
        try:
            yield mesh
        finally:
            ended.set()
            thread.join()
    os.close(held)


def pids(mesh: Mesh) -> list[int | None]:
    return [replica.pid for replica in mesh.replicas if replica.service is WORKER]


def is_gone(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_replicas_come_and_go_while_the_mesh_runs(tmp_path: Path, broken: Path) -> None:
    with tended(tmp_path, {"worker": 1}) as mesh:
        replicas = MeshReplicas(tmp_path)
        assert replicas.replicas() == {"worker": 1, "device": 1}
        (first,) = pids(mesh)
        replicas.scale("worker", 3)
        assert replicas.replicas() == {"worker": 3, "device": 1}
        assert pids(mesh)[0] == first, "what was there goes on"
        further = pids(mesh)[1:]
        replicas.scale("worker", 1)
        assert replicas.replicas() == {"worker": 1, "device": 1}
        assert pids(mesh) == [first]
        assert all(is_gone(pid) for pid in further)
        replicas.scale("worker", 0)
        replicas.scale("worker", 1)
        assert pids(mesh) != [first]


def test_a_port_is_given_again_when_who_had_it_has_ended(
    tmp_path: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINGER", "0.5")
    service = Service("worker", "stand_in", free_port())
    with tended(tmp_path, {}, (service,), "seed") as mesh:
        replicas = MeshReplicas(tmp_path)
        replicas.scale("worker", 0)
        replicas.scale("worker", 1)
        assert [replica.port for replica in mesh.replicas] == [service.port]


def test_further_replicas_that_do_not_get_ready_are_taken_back(
    tmp_path: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tended(tmp_path, {"worker": 1}) as mesh:
        before = pids(mesh)
        broken.touch()
        monkeypatch.setattr(supervisor, "READY_SECONDS", 0.5)
        with pytest.raises(ScaleError, match="worker-2 is not ready"):
            MeshReplicas(tmp_path).scale("worker", 3)
        assert pids(mesh) == before
        assert not mesh._leaving


def test_what_began_before_one_that_can_not_is_taken_back(
    tmp_path: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([free_port()])

    def scarce(taken: set[int]) -> int:
        try:
            return next(ports)
        except StopIteration:
            raise OSError("no port is free") from None

    with tended(tmp_path, {"worker": 1}) as mesh:
        before = pids(mesh)
        monkeypatch.setattr(supervisor, "_free_port", scarce)
        with pytest.raises(ScaleError, match="no port is free"):
            MeshReplicas(tmp_path).scale("worker", 3)
        assert pids(mesh) == before


def test_what_can_not_be_is_answered_with_the_reason(tmp_path: Path, broken: Path) -> None:
    with tended(tmp_path, {}) as mesh:
        replicas = MeshReplicas(tmp_path)
        with pytest.raises(ScaleError, match="no service 'wroker'"):
            replicas.scale("wroker", 2)
        with pytest.raises(ScaleError, match="one device"):
            replicas.scale("device", 2)
        assert len(mesh.replicas) == 2
        assert not list((tmp_path / "orders").iterdir())


def test_every_replica_is_replaced_and_never_fewer_are_ready(
    tmp_path: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that answers late, on a machine that is busy, is ready all the same.
    monkeypatch.setattr(supervisor, "_PROBE_SECONDS", 30.0)
    with tended(tmp_path, {"worker": 2}) as mesh:
        before = pids(mesh)
        urls = [replica.url for replica in mesh.replicas if replica.service is WORKER]
        fewest = 2
        ended = threading.Event()

        def watch() -> None:
            nonlocal fewest
            while not ended.is_set():
                urls = [replica.url for replica in list(mesh.replicas) if replica.service is WORKER]
                ready = sum(supervisor.why_not_ready(url) is None for url in urls)
                # Between the list and the questions a replica may have been let go.
                if urls == [replica.url for replica in list(mesh.replicas) if replica.service is WORKER]:
                    fewest = min(fewest, ready)
                time.sleep(0.01)

        watching = threading.Thread(target=watch)
        watching.start()
        MeshReplicas(tmp_path).restart("worker")
        ended.set()
        watching.join()
        assert not set(before) & set(pids(mesh))
        assert [replica.url for replica in mesh.replicas if replica.service is WORKER] == urls
        assert fewest == 2
        assert all(is_gone(pid) for pid in before)


def test_what_does_not_get_ready_ends_a_restart_before_anything_is_replaced(
    tmp_path: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tended(tmp_path, {"worker": 2}) as mesh:
        before = pids(mesh)
        broken.touch()
        monkeypatch.setattr(supervisor, "READY_SECONDS", 1.0)
        with pytest.raises(ScaleError, match="worker-3 is not ready"):
            MeshReplicas(tmp_path).restart("worker")
        assert pids(mesh) == before
        broken.unlink()
        monkeypatch.setattr(supervisor, "READY_SECONDS", DEADLINE_SECONDS)
        MeshReplicas(tmp_path).restart("worker")
        assert not set(before) & set(pids(mesh))


def test_a_device_is_replaced_in_its_place(tmp_path: Path, broken: Path) -> None:
    with tended(tmp_path, {}) as mesh:
        (before,) = (replica.pid for replica in mesh.replicas if replica.service is DEVICE)
        MeshReplicas(tmp_path).restart("device")
        (after,) = (replica.pid for replica in mesh.replicas if replica.service is DEVICE)
        assert after != before
        assert is_gone(before)


def test_a_mesh_that_is_not_there_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match="No mesh runs"):
        MeshReplicas(tmp_path).replicas()
    given = orders.give(tmp_path, orders.Restart("worker"))
    with pytest.raises(orders.OrderError, match="has ended"):
        orders.wait(given, lambda: False)
    assert orders.next_given(tmp_path) is None


def test_orders_are_taken_as_they_were_given(tmp_path: Path) -> None:
    wanted = [orders.Scale("a", 2), orders.Restart("b"), orders.Scale("a", 1)]
    for order in wanted:
        orders.give(tmp_path, order)
    taken = []
    while (given := orders.next_given(tmp_path)) is not None:
        taken.append(given.order)
        given.done()
    assert taken == wanted


def test_an_order_that_can_not_be_read_holds_up_none(tmp_path: Path) -> None:
    given = orders.give(tmp_path, orders.Scale("a", 2))
    given.path.write_text('{"type": "explode"}')
    second = orders.give(tmp_path, orders.Restart("b"))
    found = orders.next_given(tmp_path)
    assert found is not None
    assert found.path == second.path
    with pytest.raises(orders.OrderError, match="can't be read"):
        orders.wait(given, lambda: True)


def test_what_was_asked_of_a_mesh_that_has_ended_is_forgotten(tmp_path: Path, broken: Path) -> None:
    orders.give(tmp_path, orders.Scale("worker", 5))
    with tended(tmp_path, {"worker": 1}) as mesh:
        assert len(pids(mesh)) == 1


def test_a_step_of_a_scale_that_can_not_be_raises(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, services=(DEVICE,), ports="free")
    with pytest.raises(MeshError):
        next(mesh.scale("device", 2))


# `docker` as far as it is asked: containers are in a file, the calls are written down. Like the real one,
# compose starts what has ended before it makes something new.
DOCKER = """
import json, os, pathlib, sys, uuid
folder = pathlib.Path(os.environ["DOCKER_DOUBLE"])
containers = json.loads((folder / "containers").read_text())
arguments = sys.argv[1:]
status = 0
with (folder / "calls").open("a") as calls:
    calls.write(" ".join(arguments) + "\\n")
def make(service):
    files = os.environ.get("FILES", "/a/docker-compose.yml")
    containers[uuid.uuid4().hex] = [service, "running", "False", files]
if arguments[:2] == ["compose", "ps"]:
    for name, (service, state, oneoff, _) in containers.items():
        if "--all" not in arguments and (state != "running" or oneoff == "True"):
            continue
        if "--quiet" not in arguments:
            print(service)
        elif service == arguments[-1]:
            print(name)
elif arguments[:2] == ["compose", "up"]:
    service = arguments[-1]
    ours = [name for name, (_, _, oneoff, _) in containers.items() if oneoff == "False"]
    there = [name for name in ours if containers[name][0] == service]
    if "--force-recreate" in arguments:
        for name in there:
            del containers[name]
        make(service)
    else:
        count = int(arguments[arguments.index("--scale") + 1].partition("=")[2])
        for name in there[count:]:
            del containers[name]
        for name in there[:count]:
            containers[name][1] = "running"
        for _ in range(count - len(there)):
            make(service)
        if service == "broken":
            status = "container broken-2 is unhealthy"
elif arguments[0] == "inspect":
    print(json.dumps([
        {"Id": name, "State": {"Status": containers[name][1]}, "Config": {"Labels": {
            "com.docker.compose.oneoff": containers[name][2],
            "com.docker.compose.project.config_files": containers[name][3],
        }}}
        for name in arguments[1:]
    ]))
elif arguments[0] == "stop":
    containers[arguments[-1]][1] = "exited"
elif arguments[0] == "rm":
    del containers[arguments[-1]]
(folder / "containers").write_text(json.dumps(containers))
sys.exit(status)
"""

COMPOSED = tuple(
    Service(name, "stand_in", None, scalable=name != "device")
    for name in ("fast", "device", "broken", "nothing")
)


def container(
    service: str, *, state: str = "running", oneoff: bool = False, files: str = "/a/docker-compose.yml"
) -> list[str]:
    return [service, state, str(oneoff), files]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a double of Docker with three containers."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    # This Python, and nothing that is installed for it: it is started a hundred times.
    program.write_text(f"#!{sys.executable} -IS{DOCKER}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_DOUBLE", str(tmp_path))
    there = {"fast-1": container("fast"), "fast-2": container("fast"), "kafka-1": container("kafka")}
    (tmp_path / "containers").write_text(json.dumps(there))
    return tmp_path


@pytest.fixture
def composed(docker: Path) -> ComposeReplicas:
    return ComposeReplicas(docker, COMPOSED)


def containers(docker: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((docker / "containers").read_text())
    return found


def add(docker: Path, name: str, one: list[str]) -> None:
    (docker / "containers").write_text(json.dumps(containers(docker) | {name: one}))


def test_containers_are_counted_by_service(composed: ComposeReplicas) -> None:
    assert composed.replicas() == {"fast": 2, "kafka": 1}


def test_containers_come_and_go_and_the_others_are_left_alone(
    docker: Path, composed: ComposeReplicas
) -> None:
    composed.scale("fast", 4)
    assert composed.replicas() == {"fast": 4, "kafka": 1}
    composed.scale("fast", 1)
    assert containers(docker).keys() == {"fast-1", "kafka-1"}
    calls = (docker / "calls").read_text().splitlines()
    assert all("--no-recreate" in call and "--no-deps" in call for call in calls if " up " in call)


def test_containers_are_replaced_one_by_one_after_a_new_one_is_healthy(
    docker: Path, composed: ComposeReplicas
) -> None:
    composed.restart("fast")
    assert composed.replicas() == {"fast": 2, "kafka": 1}
    assert not {"fast-1", "fast-2"} & containers(docker).keys()
    calls = [call.split() for call in (docker / "calls").read_text().splitlines()[:-1]]
    steps = [call[0] for call in calls if "ps" not in call and call[0] != "inspect"]
    assert steps == ["compose", "stop", "rm"] * 2


@pytest.mark.parametrize("state", ["exited", "created"])
def test_a_stopped_replica_of_before_is_not_taken_for_a_new_one(
    docker: Path, composed: ComposeReplicas, state: str
) -> None:
    add(docker, "fast-3", container("fast", state=state))
    composed.restart("fast")
    assert not {"fast-1", "fast-2", "fast-3"} & containers(docker).keys()
    assert composed.replicas()["fast"] == 2
    add(docker, "fast-9", container("fast", state=state))
    composed.scale("fast", 3)
    assert "fast-9" not in containers(docker)
    assert composed.replicas()["fast"] == 3


def test_what_somebody_runs_beside_the_replicas_goes_on(docker: Path, composed: ComposeReplicas) -> None:
    add(docker, "backup", container("fast", oneoff=True))
    add(docker, "done", container("fast", oneoff=True, state="exited"))
    composed.restart("fast")
    assert {"backup", "done"} <= containers(docker).keys()
    assert composed.replicas()["fast"] == 2


def test_what_docker_says_is_the_reason_and_only_what_is_new_is_taken_away(
    docker: Path, composed: ComposeReplicas
) -> None:
    there = {"broken-1": container("broken"), "backup": container("broken", oneoff=True)}
    (docker / "containers").write_text(json.dumps(there))
    with pytest.raises(ScaleError, match="broken-2 is unhealthy"):
        composed.restart("broken")
    assert containers(docker) == there
    with pytest.raises(ScaleError, match="No container of nothing"):
        composed.restart("nothing")


def test_whoever_breaks_a_restart_off_leaves_nothing_new_behind(
    docker: Path, composed: ComposeReplicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = containers(docker)
    started = ComposeReplicas._up

    def broken_off(replicas: ComposeReplicas, service: str, count: int) -> None:
        started(replicas, service, count)
        raise KeyboardInterrupt

    monkeypatch.setattr(ComposeReplicas, "_up", broken_off)
    with pytest.raises(KeyboardInterrupt):
        composed.restart("fast")
    assert containers(docker) == before


@pytest.mark.parametrize("change", ["restart", "scale"])
def test_other_files_than_the_replicas_were_made_by_are_refused(
    docker: Path, composed: ComposeReplicas, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    two = "/a/docker-compose.yml,/a/docker-compose.qreader.yml"
    there = {"fast-1": container("fast", files=two)}
    (docker / "containers").write_text(json.dumps(there))
    with pytest.raises(ScaleError, match=r"docker-compose.yml:docker-compose.qreader.yml.*COMPOSE_FILE"):
        composed.restart("fast") if change == "restart" else composed.scale("fast", 2)
    assert containers(docker) == there
    monkeypatch.setenv("FILES", two.replace("/a/", "/moved/"))
    composed.restart("fast")
    assert "fast-1" not in containers(docker)


def test_a_device_in_a_container_is_replaced_in_its_place(docker: Path, composed: ComposeReplicas) -> None:
    add(docker, "device-1", container("device"))
    composed.restart("device")
    assert "device-1" not in containers(docker)
    assert composed.replicas()["device"] == 1
    with pytest.raises(ScaleError, match="one device"):
        composed.scale("device", 2)


def test_servers_are_neither_scaled_nor_replaced(docker: Path, composed: ComposeReplicas) -> None:
    before = containers(docker)
    with pytest.raises(ScaleError, match="no service 'kafka'"):
        composed.scale("kafka", 2)
    with pytest.raises(ScaleError, match="no service 'kafka'"):
        composed.restart("kafka")
    assert containers(docker) == before


def test_a_classifier_that_another_file_adds_is_scaled(docker: Path, composed: ComposeReplicas) -> None:
    add(docker, "night-1", container("classifier-night"))
    composed.scale("classifier-night", 2)
    assert composed.replicas()["classifier-night"] == 2


def test_no_docker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ScaleError, match="docker can't be run"):
        ComposeReplicas().replicas()


def test_the_state_of_a_mesh_that_died_is_none(tmp_path: Path) -> None:
    os.close(hold(tmp_path))
    # Its process id is somebody else's by now.
    running_file(tmp_path).write_text(json.dumps({"pid": os.getpid(), "replicas": []}))
    with pytest.raises(ScaleError, match="No mesh runs"):
        MeshReplicas(tmp_path).replicas()
