from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from feature_extractor.domain import Extractor, prepare
from feature_extractor.step import make_step
from visionmesh.contracts import ImageFeatures, ImageUploaded
from visionmesh.errors import Rejected, Unavailable
from visionmesh.model_store import Model
from visionmesh.results import FeaturesRow
from visionmesh.topics import FEATURES
from visionmesh.worker.step import Done, Outgoing, Skipped, Verdict


class MeanModel:
    """Stands in for the net: descriptor n is the mean of the picture plus n / 7."""

    kind = "extractor"
    descriptor_count = 20
    address = "mean@1"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, pictures: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        self.batches.append(len(pictures))
        means = pictures.reshape(len(pictures), -1).mean(axis=1, keepdims=True)
        return [(means + np.arange(20) / 7).astype(np.float32)]


def picture(grey: int, size: int = 40) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


OBJECTS = {
    "raw-images/1.png": picture(10),
    "raw-images/2.png": picture(20),
    "raw-images/3.png": picture(30),
    "raw-images/empty": b"",
    "raw-images/text.txt": b"this is no picture",
    "raw-images/cut.png": picture(40, 400)[:200],
    "raw-images/paper.pdf": b"%PDF-1.7 and so on",
}


def fetch(minio_path: str) -> bytes:
    try:
        return OBJECTS[minio_path]
    except KeyError:
        raise Rejected("object_not_found", f"{minio_path} does not exist") from None


def extractor(model: MeanModel | None = None) -> Extractor:
    return Extractor(cast(Model, model or MeanModel()))


def message(name: str, tasks: tuple[str, ...] | None = None) -> ImageUploaded:
    return ImageUploaded(name, f"raw-images/{name}", tasks)


def kinds(verdicts: Sequence[Verdict]) -> list[str]:
    return [v.code if isinstance(v, Rejected) else type(v).__name__ for v in verdicts]


def plain(verdicts: Sequence[Verdict]) -> list[Any]:
    return [(v.code, v.reason) if isinstance(v, Rejected) else v for v in verdicts]


MIXED = [
    message("1.png"),
    message("missing.png"),
    message("2.png"),
    message("empty"),
    message("text.txt"),
    message("cut.png"),
    message("paper.pdf"),
    message("2.png", ("qr", "ocr")),
    message("3.png", ("classify",)),
]


def test_twice_gives_the_same() -> None:
    step = make_step(fetch, prepare, extractor())
    assert plain(step(MIXED)) == plain(step(MIXED))


def test_bad_pictures_cost_only_themselves() -> None:
    verdicts = make_step(fetch, prepare, extractor())(MIXED)
    assert kinds(verdicts) == [
        "Done",
        "object_not_found",
        "Done",
        "empty_file",
        "not_an_image",
        "truncated_image",
        "Skipped",
        "Skipped",
        "Done",
    ]


def test_each_picture_gets_its_own_descriptors() -> None:
    alone = make_step(fetch, prepare, extractor())
    together = make_step(fetch, prepare, extractor())(MIXED)
    for asked, verdict in zip(MIXED, together, strict=True):
        assert plain(alone([asked])) == plain([verdict])
        if isinstance(verdict, Done):
            (row,) = verdict.rows
            assert isinstance(row, FeaturesRow)
            assert row.descriptors[0] == int(asked.image_id[0]) * 10


def test_what_is_stored_and_published() -> None:
    (verdict,) = make_step(fetch, prepare, extractor())([message("1.png")])
    assert isinstance(verdict, Done)
    descriptors = tuple(float(f"{np.float32(10 + n / 7):.4g}") for n in range(20))
    assert verdict.rows == (FeaturesRow("1.png", descriptors, "mean@1"),)
    assert verdict.messages == (Outgoing(FEATURES, ImageFeatures("1.png", descriptors, 20)),)
    # Every byte of a record is paid for a million times: no model, and no digit beyond the fourth.
    assert msgspec.json.encode(verdict.messages[0].value).startswith(
        b'{"image_id":"1.png","descriptors":[10.0,10.14,10.29,'
    )


def test_one_run_of_the_model_for_a_batch() -> None:
    model = MeanModel()
    make_step(fetch, prepare, extractor(model))(MIXED)
    assert model.batches == [3]


def test_no_run_of_the_model_for_nothing() -> None:
    model = MeanModel()
    assert kinds(make_step(fetch, prepare, extractor(model))([message("empty")])) == ["empty_file"]
    assert model.batches == []


def test_a_task_that_is_not_asked_is_not_even_fetched() -> None:
    def never(minio_path: str) -> bytes:
        raise AssertionError(minio_path)

    (verdict,) = make_step(never, prepare, extractor())([message("1.png", ("ocr",))])
    assert isinstance(verdict, Skipped)
    assert verdict.reason.startswith("task_not_asked")


def test_an_object_store_that_is_away_is_the_whole_batch_s_trouble() -> None:
    def away(minio_path: str) -> bytes:
        if minio_path.endswith("2.png"):
            raise Unavailable("object_store", "connection refused")
        return fetch(minio_path)

    with pytest.raises(Unavailable):
        make_step(away, prepare, extractor())(MIXED)


def test_a_bug_is_raised() -> None:
    def broken(data: bytes) -> NDArray[np.uint8]:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        make_step(fetch, broken, extractor())([message("1.png")])
