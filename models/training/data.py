"""CIFAR-10 as arrays: from a file of JPEG pictures, or from the public archive."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VALIDATION = 5_000

# Which pictures are held out. One split for every training, whatever the seed of the training itself is:
# what several seeds differ in is then luck of the training, and no figure is of pictures that were fitted.
SPLIT = 20241006


@dataclass(frozen=True)
class Pictures:
    """RGB pictures uint8 [N,32,32,3] and their labels int64 [N], indices into LABELS."""

    rgb: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: NDArray[np.int64] | slice) -> Pictures:
        return Pictures(self.rgb[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """Pictures to fit on, to choose and calibrate with, and to state the final figure from."""

    train: Pictures
    validation: Pictures
    test: Pictures


def load(path: Path | None, *, seed: int = SPLIT, limit: int | None = None) -> Dataset:
    """Reads `path` (an .npz of JPEG files), or the public archive when there is none.

    The archive's training pictures are split by `seed`; its test pictures stay whole. `limit` keeps
    only that many training pictures (and a fifth as many of the other two), for a quick try.
    """
    train, test = load_archive(ARCHIVE, ARCHIVE_SHA256) if path is None else load_npz(path)
    order = np.random.default_rng(seed).permutation(len(train))
    held_out = min(VALIDATION, len(train) // 5)
    fit, validation = order[held_out:], order[:held_out]
    if limit is not None:
        fit, validation = fit[:limit], validation[: limit // 5]
        # A file may hold its test pictures class by class.
        test = test.take(np.random.default_rng(seed).permutation(len(test))[: limit // 5])
    return Dataset(train.take(fit), train.take(validation), test)


def shifted(rgb: NDArray[np.uint8], by: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Each picture of uint8 [N,H,W,3] moved by up to `by` pixels down and right, or up and left.

    What comes in at the edge is the mirror image of what stands beside it.
    """
    height, width = rgb.shape[1:3]
    padded = np.pad(rgb, ((0, 0), (by, by), (by, by), (0, 0)), "reflect")
    moved = np.empty_like(rgb)
    tops, lefts = random.integers(0, 2 * by + 1, (2, len(rgb)))
    for top in range(2 * by + 1):
        for left in range(2 * by + 1):
            chosen = (tops == top) & (lefts == left)
            moved[chosen] = padded[chosen, top : top + height, left : left + width]
    return moved


def load_npz(path: Path) -> tuple[Pictures, Pictures]:
    """Training and test pictures of an .npz that holds JPEG files end to end.

    Picture i of a split is `<split>_jpg[<split>_offsets[i]:<split>_offsets[i + 1]]`.
    """
    with np.load(path) as arrays:
        train, test = (
            Pictures(
                decode_jpegs(arrays[f"{split}_jpg"], arrays[f"{split}_offsets"]),
                arrays[f"{split}_labels"].astype(np.int64),
            )
            for split in ("train", "test")
        )
    return train, test


def decode_jpegs(data: NDArray[np.uint8], offsets: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """JPEG files laid end to end in `data` -> uint8 [N,32,32,3]."""
    rgb = np.empty((len(offsets) - 1, 32, 32, 3), np.uint8)
    for index, (start, end) in enumerate(pairwise(offsets)):
        rgb[index] = Image.open(io.BytesIO(data[start:end].tobytes())).convert("RGB")
    return rgb


def load_archive(address: str, sha256: str) -> tuple[Pictures, Pictures]:
    """Training and test pictures of the CIFAR-10 python archive at `address`.

    Raises ValueError when the archive is not the one `sha256` stands for: its batches are pickles,
    and a pickle from elsewhere could run anything.
    """
    with tempfile.TemporaryFile() as copy:
        with urllib.request.urlopen(address) as response:
            while block := response.read(1 << 20):
                copy.write(block)
        copy.seek(0)
        found = hashlib.file_digest(copy, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{address} has sha256 {found}, expected {sha256}")
        copy.seek(0)
        with tarfile.open(fileobj=copy) as archive:
            batches = [_batch(archive, f"data_batch_{number}") for number in range(1, 6)]
            test = _batch(archive, "test_batch")
    train = Pictures(
        np.concatenate([batch.rgb for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
    )
    return train, test


def _batch(archive: tarfile.TarFile, name: str) -> Pictures:
    member = archive.extractfile(f"cifar-10-batches-py/{name}")
    if member is None:
        raise ValueError(f"{name} is no file of the archive")
    content = pickle.load(member, encoding="bytes")
    planes = np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32)
    return Pictures(planes.transpose(0, 2, 3, 1).copy(), np.asarray(content[b"labels"], np.int64))
