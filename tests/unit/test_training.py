"""What `make train` is made of. The run itself needs the environment of requirements/train.txt."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from visionmesh.model_store import ModelStore
from visionmesh.settings import ROOT

TRAIN_PYTHON = Path(os.environ.get("MESH_TRAIN_PYTHON", ROOT / ".venv-train" / "bin" / "python"))


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "models"))
    import training.data

    return training.data


def pictures(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures whose brightness tells their label."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    rgb = labels[:, None, None, None] * 25 + random.integers(0, 20, (count, 32, 32, 3))
    return rgb.astype(np.uint8), labels


def archive(folder: Path, per_batch: int) -> Path:
    """A file laid out like the public archive: pickled batches with the planes of each picture in a row."""
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
            rgb, labels = pictures(per_batch, number)
            planes = rgb.transpose(0, 3, 1, 2).reshape(per_batch, -1)
            content = pickle.dumps({b"data": planes, b"labels": labels.tolist()})
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def npz(folder: Path, train: int, test: int) -> Path:
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


def test_the_public_archive_is_downloaded_checked_and_read(data: ModuleType, tmp_path: Path) -> None:
    path = archive(tmp_path, per_batch=7)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    train, test = data.load_archive(path.as_uri(), sha256)
    expected = [pictures(7, number) for number in range(6)]
    assert np.array_equal(train.rgb, np.concatenate([rgb for rgb, _ in expected[:5]]))
    assert np.array_equal(train.labels, np.concatenate([labels for _, labels in expected[:5]]))
    assert np.array_equal(test.rgb, expected[5][0])
    assert data.ARCHIVE.startswith("https://")


def test_another_archive_is_refused_before_it_is_unpickled(
    data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(ValueError, match=data.ARCHIVE_SHA256):
        data.load_archive(archive(tmp_path, per_batch=1).as_uri(), data.ARCHIVE_SHA256)


def test_without_a_file_the_public_archive_is_used(
    data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path, per_batch=10)
    monkeypatch.setattr(data, "ARCHIVE", path.as_uri())
    monkeypatch.setattr(data, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    dataset = data.load(None, seed=1)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (40, 10, 10)


def test_jpeg_files_are_read_and_split_without_overlap(data: ModuleType, tmp_path: Path) -> None:
    dataset = data.load(npz(tmp_path, train=50, test=20), seed=1)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (40, 10, 20)
    split = {rgb.tobytes() for rgb in dataset.train.rgb} | {rgb.tobytes() for rgb in dataset.validation.rgb}
    assert len(split) == 50
    expected, labels = pictures(20, 20)
    assert np.abs(dataset.test.rgb.astype(int) - expected).mean() < 8
    assert np.array_equal(dataset.test.labels, labels)


def test_the_split_depends_on_the_seed_alone(data: ModuleType, tmp_path: Path) -> None:
    path = npz(tmp_path, train=50, test=20)
    once, again, other = (data.load(path, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(once.train.rgb, again.train.rgb)
    assert not np.array_equal(once.train.rgb, other.train.rgb)


def test_a_limit_keeps_that_many(data: ModuleType, tmp_path: Path) -> None:
    dataset = data.load(npz(tmp_path, train=50, test=20), seed=1, limit=20)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (20, 4, 4)


@pytest.mark.skipif(not TRAIN_PYTHON.exists(), reason=f"no {TRAIN_PYTHON}; `make train` makes it")
def test_a_small_training_gives_models_that_load_and_beat_chance(tmp_path: Path) -> None:
    arguments = ["--data", str(npz(tmp_path, train=1_000, test=100)), "--epochs", "8"]
    subprocess.run(
        [TRAIN_PYTHON, "-m", "training", *arguments, "--models", str(tmp_path)],
        cwd=ROOT / "models",
        check=True,
        capture_output=True,
    )
    store = ModelStore(tmp_path)
    assert len(store.names("extractor")) == 2
    assert len(store.names("classifier")) == 3
    extractor = store.load("extractor")
    rgb, labels = pictures(100, 100)
    descriptors = extractor.run(rgb)[0]
    for name in store.names("classifier"):
        found, probabilities = store.load(name).run(descriptors)
        assert probabilities.shape == (100, 10)
        assert (found == labels).mean() > 0.3
