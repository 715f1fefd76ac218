"""`mesh models export-qrdet`: what the package's environment is asked for, and what is made of its answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from visionmesh.cli import app
from visionmesh.settings import ROOT, get_settings

QRDET = ([1, 37, 8400], [1, 32, 160, 160])
COCO = ([1, 116, 8400], [1, 32, 160, 160])

# In the place of an interpreter with the package: writes down how it was called, and copies a net.
INTERPRETER = """\
#!{python}
import json, os, shutil, sys
json.dump({{"arguments": sys.argv[1:], "path": os.environ["PYTHONPATH"]}}, open({calls!r}, "w"))
{end}
"""


class Rig:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.models = folder / "models"
        self.calls = folder / "called.json"
        self.python = folder / "python"
        monkeypatch.setenv("MESH_MODELS_DIR", str(self.models))
        monkeypatch.setenv("MESH_QR_READER_WEIGHTS", str(folder / "weights"))
        monkeypatch.setenv("MESH_QREADER_PYTHON", str(self.python))
        self.answers_with(QRDET)

    def answers_with(self, outputs: Sequence[list[int]]) -> None:
        net = self.folder / "net.onnx"
        net.write_bytes(detector(outputs))
        self.ends(f"shutil.copyfile({str(net)!r}, sys.argv[-1])")

    def ends(self, end: str) -> None:
        self.python.write_text(INTERPRETER.format(python=sys.executable, calls=str(self.calls), end=end))
        self.python.chmod(0o755)

    @property
    def called(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.calls.read_text())
        return found


def detector(outputs: Sequence[list[int]]) -> bytes:
    """A net that finds nothing, with outputs of these shapes."""
    names = [f"output{n}" for n in range(len(outputs))]
    nodes = [
        helper.make_node(
            "ConstantOfShape",
            [f"shape{n}"],
            [name],
            value=helper.make_tensor("", TensorProto.FLOAT, [1], [0.0]),
        )
        for n, name in enumerate(names)
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 640, 640])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip(names, outputs, strict=True)
        ],
        [numpy_helper.from_array(np.array(shape, np.int64), f"shape{n}") for n, shape in enumerate(outputs)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    get_settings.cache_clear()
    yield Rig(tmp_path, monkeypatch)
    get_settings.cache_clear()


def export(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", "export-qrdet", *arguments])


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ("n", "qreader_nano.onnx"),
        ("s", "qreader_small.onnx"),
        ("m", "qreader_medium.onnx"),
        ("l", "qreader_large.onnx"),
    ],
)
def test_the_file_is_the_seed_s_and_the_decoder_finds_it(rig: Rig, size: str, name: str) -> None:
    from qr_decoder.domain import locators_in

    result = export("--size", size)
    assert result.exit_code == 0, result.output
    assert [file.name for file in rig.models.iterdir()] == [name]
    assert list(locators_in(rig.models)) == [size]
    assert f"locator-{size}" in result.stdout


def test_without_a_file_the_package_gets_the_folder_to_download_into(rig: Rig) -> None:
    assert export("--size", "s").exit_code == 0
    module, *arguments = rig.called["arguments"][1:]
    assert module == "qr_decoder.export_qrdet"
    assert arguments[:4] == ["--size", "s", "--weights-folder", str(rig.folder / "weights")]
    assert rig.called["path"].split(os.pathsep) == [str(ROOT / name) for name in ("shared", "services")]


def test_weights_and_folder_of_the_caller(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rig.folder)
    Path("mine.pt").touch()
    result = export("--size", "m", "--weights", "mine.pt", "--out", "else where")
    assert result.exit_code == 0, result.output
    assert rig.called["arguments"][2:6] == ["--size", "m", "--weights", str(rig.folder / "mine.pt")]
    assert (rig.folder / "else where" / "qreader_medium.onnx").is_file()
    assert not rig.models.exists()


def test_a_second_time_replaces_the_file(rig: Rig) -> None:
    for _ in range(2):
        assert export("--size", "n").exit_code == 0
    assert [file.name for file in rig.models.iterdir()] == ["qreader_nano.onnx"]


@pytest.mark.parametrize("outputs", [COCO, QRDET[:1]], ids=["eighty classes", "no masks"])
def test_another_net_is_refused_and_the_old_file_stays(rig: Rig, outputs: Sequence[list[int]]) -> None:
    assert export("--size", "n").exit_code == 0
    before = (rig.models / "qreader_nano.onnx").read_bytes()
    rig.answers_with(outputs)
    result = export("--size", "n")
    assert result.exit_code == 1
    assert "of no QRDet detector" in result.output
    assert [file.name for file in rig.models.iterdir()] == ["qreader_nano.onnx"]
    assert (rig.models / "qreader_nano.onnx").read_bytes() == before


def test_a_failed_export_makes_no_file(rig: Rig) -> None:
    rig.ends("sys.exit(1)")
    result = export("--size", "s")
    assert result.exit_code == 1
    assert "qreader_small.onnx was not made" in result.output
    assert not rig.models.exists()


def test_without_an_environment_it_says_how_to_make_one(rig: Rig) -> None:
    rig.python.unlink()
    result = export("--size", "s")
    assert result.exit_code == 1
    assert "make .venv-qreader/installed" in result.output
    assert "Traceback" not in result.output


def test_a_file_that_is_not_there_and_a_size_that_is_none(rig: Rig) -> None:
    assert export("--size", "s", "--weights", "gone.pt").exit_code == 2
    assert export("--size", "x").exit_code == 2
    assert not rig.calls.exists()
