"""The environment of `make train`, and pictures to train on."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from visionmesh.settings import ROOT

PYTHON: Final = Path(os.environ.get("MESH_TRAIN_PYTHON", ROOT / ".venv-train" / "bin" / "python"))

needs_training = pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON}; `make train` makes it")


def trained(*arguments: str) -> None:
    """Runs that Python, on one thread, and sees that it ends well."""
    done = run(*arguments)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]


def run(*arguments: str, tracking_uri: str = "") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("shared", "services", "models")),
        "OMP_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "MLFLOW_TRACKING_URI": tracking_uri,
    }
    return subprocess.run(
        [PYTHON, *arguments], cwd=ROOT / "models", env=environment, capture_output=True, text=True
    )


def pictures(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures uint8 [count, 32, 32, 3] whose brightness tells their label."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    rgb = labels[:, None, None, None] * 25 + random.integers(0, 20, (count, 32, 32, 3))
    return rgb.astype(np.uint8), labels


def npz(folder: Path, train: int, test: int) -> Path:
    """A file of them as `training.data` reads it."""
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        rgb, labels = pictures(count, count)
        files = []
        for picture in rgb:
            out = io.BytesIO()
            Image.fromarray(picture).save(out, "JPEG", quality=95)
            files.append(out.getvalue())
        arrays[f"{split}_jpg"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, files)]).astype(np.uint32)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    path = folder / "pictures.npz"
    np.savez(path, **arrays)
    return path
