"""The mesh in containers while it is operated on: replaced, scaled by its lag, backed up, opened to others.

`pytest -m docker` (Docker with compose; takes minutes).
"""

from __future__ import annotations

import io
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
from PIL import Image, ImageDraw

import waiting
from compose_mesh import ROOT, ComposeMesh, compose_mesh, free_ports, http
from steady_uploads import SteadyUploads

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

DEADLINE_SECONDS: Final = 300.0
until = partial(waiting.eventually, seconds=DEADLINE_SECONDS)

# Docker's own bridge: not loopback, and yet nobody but this machine and its containers reach it.
BRIDGE: Final = ("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
TLS_NAME: Final = "mesh.test"


# Opened to other machines


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """What compose mounts and make needs, in a folder of its own: `make env` writes into it."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "docker-compose.yml"):
        shutil.copy(ROOT / name, folder)
    yield folder
    docker(folder, "compose", "down", "--volumes", "--timeout", "5")


def docker(folder: Path, *arguments: str) -> str:
    """What a command of Docker says, both ways. Raises subprocess.CalledProcessError."""
    environment = os.environ | {"COMPOSE_PROJECT_NAME": f"visionmesh-{folder.parent.name.replace('_', '-')}"}
    # Where other tests have theirs; here `.env` says where.
    environment.pop("MESH_PUBLISH_ADDRESS", None)
    return subprocess.run(
        ["docker", *arguments], cwd=folder, env=environment, check=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ).stdout  # fmt: skip


def test_a_mesh_that_others_reach_asks_for_keys_and_proves_who_it_is(checkout: Path) -> None:
    """By the commands of deploy/README.md."""
    address = docker(checkout, *BRIDGE).strip()
    subprocess.run(["make", "env"], cwd=checkout, check=True, capture_output=True)
    env = checkout / ".env"
    with env.open("a") as file:
        file.write(f"MESH_PUBLISH_ADDRESS={address}\nMESH_TLS=internal\nMESH_TLS_NAMES={TLS_NAME}\n")
        # Another mesh may run on this machine.
        for name, port in free_ports().items():
            file.write(f"{name}={port}\n")
    values = dict(line.split("=", 1) for line in env.read_text().splitlines())

    keys = checkout / "keys" / "api-keys.json"
    kept = keys.rename(keys.with_name("away.json"))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        docker(checkout, "compose", "up", "--pull", "never", "--no-build", "--detach", "gateway")
    said = docker(checkout, "compose", "logs", "publishing")
    assert "keys" in said, refused.value.output
    assert not docker(checkout, "compose", "ps", "--quiet", "gateway").strip()

    kept.rename(keys)
    services = ("gateway", "ingest-api", "feature-extractor", "classifier-fast", "prometheus")
    docker(checkout, "compose", "up", "--pull", "never", "--no-build", "--detach", "--wait", *services)
    authority = checkout / "root.crt"

    def authority_is_there() -> bool:
        # It is made with the first certificate.
        with pytest.raises(httpx.HTTPError):
            ask(address, "/health", ssl.create_default_context())
        try:
            docker(
                checkout,
                "compose",
                "cp",
                "gateway:/data/caddy/pki/authorities/local/root.crt",
                str(authority),
            )
        except subprocess.CalledProcessError:
            return False
        return True

    until(authority_is_there, "the gateway's authority")
    trusted = ssl.create_default_context(cafile=str(authority))
    until(lambda: ask(address, "/health", trusted).status_code == 200, "an answer")
    operator, uploader = ({"X-API-Key": values[name]} for name in ("MESH_API_KEY", "MESH_UPLOAD_KEY"))
    for path in ("/ready", "/metrics", "/predictions/one", "/docs"):
        assert ask(address, path, trusted).status_code == 401
        assert ask(address, path, trusted, headers=uploader).status_code == 403
    assert ask(address, "/metrics", trusted, headers=operator).status_code == 200
    cat = {"file": (ROOT / "samples" / "cat.jpg").read_bytes()}
    assert ask(address, "/upload", trusted, method="POST", files=cat).status_code == 401
    answer = ask(address, "/upload", trusted, method="POST", files=cat, headers=uploader)
    assert answer.status_code == 202, answer.text
    predictions = f"/predictions/{answer.json()['image_id']}"
    until(
        lambda: bool(ask(address, predictions, trusted, headers=operator).json()["predictions"]),
        "a prediction",
    )
    with pytest.raises(httpx.HTTPError):
        ask(address, "/health", trusted, name="stranger.test")
    assert httpx.get(f"http://{address}:8001/health").status_code == 400, "plain HTTP on a port of TLS"


def ask(
    address: str,
    path: str,
    context: ssl.SSLContext,
    *,
    method: str = "GET",
    name: str = TLS_NAME,
    **request: Any,
) -> httpx.Response:
    """What the gateway answers to somebody who looked `name` up and found `address`."""
    headers: Mapping[str, str] = {"Host": f"{name}:8001"} | request.pop("headers", {})
    with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
        return client.request(
            method,
            f"https://{address}:8001{path}",
            headers=headers,
            extensions={"sni_hostname": name},
            **request,
        )


# Operated on: one mesh for all that follows


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeMesh]:
    with compose_mesh(tmp_path_factory.mktemp("compose")) as mesh:
        mesh.up("--build", replicas={"ingest-api": 2, "feature-extractor": 2, "sensor-sink": 2})
        yield mesh


def command(mesh: ComposeMesh, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """A `mesh` command, and its environment."""
    return [sys.executable, "-m", "visionmesh.cli", *arguments, "--compose"], mesh.environment()


def run(mesh: ComposeMesh, *arguments: str) -> str:
    words, environment = command(mesh, *arguments)
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(image_id: str) -> dict[str, Any]:
    answer = httpx.get(f"{http(8001)}/results/{image_id}", timeout=30)
    found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
    return found


def is_done(image_id: str) -> bool:
    found = results(image_id)
    return found.get("status") == "done" and found["consensus"]["complete"]


def test_replicas_share_the_work(mesh: ComposeMesh) -> None:
    """Of what has no port of its own to give away, the gateway in front of the first."""
    for group in ("feature-extractor", "sensor-sink"):
        until(partial(lambda group: sorted(mesh.members(group)) == [6, 6], group), f"both of {group} at work")
    with SteadyUploads(http(8001)) as uploads:
        until(lambda: len(uploads.accepted) >= 20, "twenty uploads")
    assert not uploads.refused
    taken = mesh.prometheus('mesh_uploads_total{outcome="accepted"}')
    until(
        lambda: len(mesh.prometheus('mesh_uploads_total{outcome="accepted"} > 0')) == 2,
        f"uploads at both of ingest-api: {taken}",
    )


def test_every_service_is_replaced_under_load_and_nothing_is_lost(mesh: ComposeMesh) -> None:
    services = ("ingest-api", "feature-extractor", "classifier-fast", "classifier-accurate", "qr-decoder")
    before = {name: mesh.containers(name) for name in services}
    with SteadyUploads(http(8001)) as uploads:
        until(lambda: len(uploads.accepted) > 3, "first uploads")
        run(mesh, "restart", *services)
        reached = len(uploads.accepted)
        until(lambda: len(uploads.accepted) > reached + 3, "uploads afterwards")
    after = {name: mesh.containers(name) for name in services}
    assert {name: len(each) for name, each in after.items()} == {n: len(each) for n, each in before.items()}
    assert not {one for each in before.values() for one in each} & {
        o for each in after.values() for o in each
    }
    assert uploads.refused == []
    print(f"{len(uploads.accepted)} pictures accepted, {uploads.again} tried again")
    for image_id in uploads.accepted:
        until(partial(is_done, image_id), f"results of {image_id}")
        assert [one["label"] for one in results(image_id)["predictions"]] == ["cat"] * 3


def sheet(number: int) -> bytes:
    """A page that takes longer to read than to send."""
    page = Image.new("RGB", (800, 1000), "white")
    lines = "\n".join(f"Hoja {number}, renglon {line}" for line in range(25))
    ImageDraw.Draw(page).text((40, 40), lines, fill="black", font_size=28)
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


def test_replicas_follow_the_lag_up_and_down_again(mesh: ComposeMesh, tmp_path: Path) -> None:
    def waiting_messages() -> int:
        lag = mesh.prometheus('sum(mesh_group_lag_messages{group="ocr-worker"})')
        return int(lag[0]["value"][1])

    sent: list[str] = []

    def two_under_load() -> bool:
        """Keeps pages waiting, whatever the speed of this machine, until there are two replicas."""
        if waiting_messages() < 30:
            with httpx.Client(base_url=http(8001), timeout=60) as client:
                for _ in range(20):
                    sent.append(f"page-{uuid4()}")
                    asked = {"image_id": sent[-1], "tasks": "ocr"}
                    answer = client.post("/upload", params=asked, files={"file": sheet(len(sent))})
                    assert answer.status_code == 202, answer.text
        return len(mesh.containers("ocr-worker")) == 2

    log = tmp_path / "autoscale.log"
    words, environment = command(mesh, "autoscale", "ocr-worker=1:2:5", "--cool-down", "5", "--settle", "1")
    with log.open("wb") as file:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=file)
    try:
        until(two_under_load, "two replicas")
        until(lambda: len(mesh.containers("ocr-worker")) == 1, "one replica again")
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        assert process.wait(DEADLINE_SECONDS) == 0, log.read_text()
    for image_id in sent:
        until(partial(is_answered, image_id), f"an end of {image_id}")


def is_answered(image_id: str) -> bool:
    outcomes = {one["worker"]: one["state"] for one in results(image_id).get("outcomes", [])}
    return outcomes.get("ocr-worker") == "done"


def test_what_was_backed_up_is_there_again_in_a_mesh_that_was_wiped(
    mesh: ComposeMesh, tmp_path: Path
) -> None:
    """By the commands of docs/operations.md."""
    asked = httpx.post(
        f"{http(8001)}/upload", files={"file": (ROOT / "samples" / "qr.png").read_bytes()}
    ).json()
    until(partial(is_done, asked["image_id"]), "results before")
    before = results(asked["image_id"])
    content = httpx.get(f"{http(8001)}/images/{asked['image_id']}/content").content
    folder = tmp_path / "backup"
    folder.mkdir()

    def backup(command: str) -> None:
        mesh.compose(
            "run", "--rm", "--no-deps", "--user", str(os.getuid()), "-v", f"{folder}:/backup", "topics",
            "python", "-m", "visionmesh.backup", command, "/backup/today",
        )  # fmt: skip

    backup("backup")
    mesh.compose("down", "--volumes", "--timeout", "15")
    # Without the device, whose readings and pictures would come first.
    mesh.compose("up", "--detach", "--wait", "gateway", "ingest-api")
    assert httpx.get(f"{http(8001)}/results/{asked['image_id']}").status_code == 404
    backup("restore")
    assert results(asked["image_id"]) == before
    assert httpx.get(f"{http(8001)}/images/{asked['image_id']}/content").content == content
    mesh.up()
    with SteadyUploads(http(8001)) as uploads:
        until(lambda: len(uploads.accepted) > 3, "uploads afterwards")
    for image_id in uploads.accepted:
        until(partial(is_done, image_id), f"results of {image_id}")
