"""The engine `qreader` in the service: its child, its routes and its start, on a double of the package.

The last tests run the package itself. They need an interpreter that has it (`make .venv-qreader/installed`,
or MESH_QREADER_PYTHON), and make their own weights.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import segno
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from qr_decoder import qreader_engine, weights
from qr_decoder.http import make_app
from qr_decoder.qreader_engine import Weights
from qr_decoder.reader import Reader
from visionmesh.cli import app as mesh
from visionmesh.errors import Rejected
from visionmesh.isolated import Isolated
from visionmesh.settings import ROOT

DOUBLE = Path(__file__).parents[1] / "qreader_double"
MEMORY_BYTES = 1024**3
CONTENT = "https://example.org/?q=1"


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def code() -> Image.Image:
    """640 x 640 pixels, the code in the middle."""
    file = io.BytesIO()
    segno.make(CONTENT, error="m", micro=False).save(file, kind="png", scale=5)
    sheet, small = Image.new("RGB", (640, 640), "white"), Image.open(file)
    sheet.paste(small, ((640 - small.width) // 2, (640 - small.height) // 2))
    return sheet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights.file_of("n", tmp_path).write_bytes(b"weights")
    return tmp_path


@pytest.fixture
def client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    # Children import from where this process does.
    monkeypatch.syspath_prepend(str(DOUBLE))
    with Isolated(qreader_engine.prepare, deadline_seconds=60, memory_bytes=MEMORY_BYTES) as isolated:
        isolated.call(Weights("n", folder))
    with Isolated(qreader_engine.read_one, deadline_seconds=60, memory_bytes=MEMORY_BYTES) as isolated:
        read = Reader(isolated, folder, profile="qreader-n", budget_ms=30_000)
        app = make_app(
            "qr-decoder", read, own_profile="qreader-n", checks={}, max_bytes=2**24, max_budget_ms=30_000
        )
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client


def test_the_routes_are_the_same(client: TestClient) -> None:
    answer = client.post("/qr/hybrid-fallback", content=png(code()))
    assert (answer.status_code, answer.json()) == (200, {"content": CONTENT})
    body = client.post("/detect", files={"picture": ("p", png(code()))}).json()
    assert (body["success"], body["data"], body["model"]) == (True, CONTENT, "qreader-n")
    (found,) = body["codes"]
    assert (found["decoder"], found["level"], found["level_used"]) == ("qreader", "qreader-n", 101)
    assert found["bytes"] == CONTENT.encode().hex()


def test_nothing_found_and_what_can_t_be_asked_for(client: TestClient) -> None:
    nothing = png(Image.linear_gradient("L"))
    assert client.post("/qr/hybrid-fallback", content=nothing).status_code == 404
    body = client.post("/detect", content=nothing).json()
    assert (body["success"], body["truncated"], body["image_size"]) == (False, False, [256, 256])
    for profile, said in (("cascade", "unknown_profile"), ("qreader-l", "profile_unavailable")):
        refused = client.post("/detect", params={"profile": profile}, content=png(code()))
        assert (refused.status_code, refused.json()["code"]) == (422, said)


def test_a_child_tells_why_it_has_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOUBLE))
    with Isolated(qreader_engine.prepare, deadline_seconds=60, memory_bytes=MEMORY_BYTES) as isolated:
        with pytest.raises(Rejected, match="could not be downloaded") as error:
            isolated.call(Weights("s", tmp_path / "empty"))
    assert error.value.code == "weights_missing"


# The start of the process


def started(python: Path, *, sources: tuple[Path, ...] = (), **settings: str) -> tuple[int, dict[str, Any]]:
    """What a qr-decoder that can't start says at last: its exit status and the line."""
    process = subprocess.run(
        [str(python), "-m", "qr_decoder"],
        env=environment(sources, {"MESH_QR_ENGINE": "qreader", **settings}),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    lines = [line for line in (process.stdout + process.stderr).splitlines() if "cannot_start" in line]
    assert lines, process.stdout + process.stderr
    said: dict[str, Any] = json.loads(lines[-1])
    return process.returncode, said


def environment(sources: tuple[Path, ...], settings: Mapping[str, str]) -> dict[str, str]:
    path = [ROOT / "shared", ROOT / "services", *sources]
    return {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(map(str, path))}


def test_without_the_package_the_service_does_not_start(tmp_path: Path) -> None:
    # In its place one that is not there, wherever the tests run.
    (tmp_path / "qreader.py").write_text("raise ImportError(\"No module named 'qreader'\")")
    status, said = started(Path(sys.executable), sources=(tmp_path,))
    assert status == 1
    assert "The package qreader is not installed here" in said["reason"]


def test_without_weights_the_service_does_not_start(tmp_path: Path) -> None:
    status, said = started(
        Path(sys.executable), sources=(DOUBLE,), MESH_QR_READER_WEIGHTS=str(tmp_path), MESH_QR_READER_SIZE="l"
    )
    assert status == 1
    assert "qrdet-l.pt is not there and could not be downloaded" in said["reason"]


# The package itself


@pytest.fixture(scope="module")
def python() -> Path:
    named = os.environ.get("MESH_QREADER_PYTHON")
    python = Path(named) if named else ROOT / ".venv-qreader" / "bin" / "python"
    if not (python if named else ROOT / ".venv-qreader" / "installed").is_file():
        pytest.skip("no environment with the qreader package: `make .venv-qreader/installed` makes one")
    return python


@pytest.fixture(scope="module")
def own_weights(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights for n, which see large boxes everywhere."""
    folder = tmp_path_factory.mktemp("qrdet")
    program = Path(__file__).parents[1] / "qrdet_weights.py"
    environment = {**os.environ, **weights.QUIET, "YOLO_CONFIG_DIR": str(folder)}
    subprocess.run([python, program, "n", weights.file_of("n", folder)], env=environment, check=True)
    return folder


# Loading torch takes half a minute where the disk or the processor is busy.
@pytest.mark.timeout(600)
def test_the_package_s_detector_becomes_a_locator(
    python: Path, own_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from qr_decoder.domain import locators_in

    monkeypatch.setenv("MESH_QREADER_PYTHON", str(python))
    file = str(weights.file_of("n", own_weights))
    result = CliRunner().invoke(
        mesh, ["models", "export-qrdet", "--size", "n", "--weights", file, "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    found = locators_in(tmp_path)["n"].locate(np.asarray(code()))
    # Boxes of 480 pixels to every side of cells of 32, their masks as large: the picture but for its rim.
    assert found
    assert any(np.ptp(each.corners, axis=0).min() > 560 for each in found)


@pytest.mark.timeout(600)
def test_the_package_reads_in_the_child(python: Path, own_weights: Path, tmp_path: Path) -> None:
    picture = tmp_path / "code.png"
    picture.write_bytes(png(code()))
    program = f"""
import json, os
from pathlib import Path
from qr_decoder import weights
os.environ.update(weights.QUIET)
from qr_decoder.__main__ import QREADER_BYTES
from qr_decoder.qreader_engine import PACKAGE, Weights, prepare, read_one
from qr_decoder.reader import Reader
from visionmesh.isolated import Isolated
limits = dict(deadline_seconds=200, memory_bytes=QREADER_BYTES, preload=(PACKAGE,))
folder = Path({str(own_weights)!r})
if __name__ == "__main__":
    with Isolated(prepare, **limits) as isolated:
        isolated.call(Weights("n", folder))
    with Isolated(read_one, **limits) as isolated:
        read = Reader(isolated, folder, profile="qreader-n", budget_ms=100_000)
        found = read(Path({str(picture)!r}).read_bytes())
        print(json.dumps([found.truncated, [(code.content, code.level_used) for code in found.codes]]))
"""
    script = tmp_path / "read.py"
    script.write_text(program)
    process = subprocess.run(
        [python, script],
        env=environment((), {"YOLO_CONFIG_DIR": str(tmp_path)}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(process.stdout.splitlines()[-1]) == [False, [[CONTENT, 101]]]
