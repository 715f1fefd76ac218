"""Learned locators: both YOLO layouts, masks, suppression, tiles, and the interface of our own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import segno
from numpy.typing import NDArray

from qr_decoder.domain import locator
from qr_decoder.domain.locator import LazyLocator, Located, QuadLocator, YoloLocator
from visionmesh.model_store import ModelStore
from visionmesh.settings import ROOT

MODELS = ROOT / "models"


class Model:
    """A session that answers with what it was given."""

    def __init__(self, *outputs: Any) -> None:
        self.outputs = list(outputs)
        self.inputs: list[dict[str, Any]] = []

    def run(self, outputs: Any, inputs: dict[str, Any]) -> list[Any]:
        self.inputs.append(inputs)
        return self.outputs

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="images", shape=[1, 3, 640, 640])]

    def get_outputs(self) -> list[Any]:
        return []


PICTURE = np.zeros((480, 960, 3), np.uint8)


def yolov5(*rows: tuple[float, ...]) -> np.ndarray[Any, Any]:
    output = np.zeros((1, 25200, 85), np.float32)
    for n, row in enumerate(rows):
        output[0, n, : len(row)] = row
    return output


def test_the_letterbox_keeps_the_shape_and_pads_with_114() -> None:
    tensor, scale, (left, top) = locator.letterboxed(np.full((480, 960, 3), 255, np.uint8))
    assert tensor.shape == (1, 3, 640, 640)
    assert (left, top) == (0, 160)
    assert scale == pytest.approx(640 / 960)
    assert tensor[0, :, 320, 320] == pytest.approx(1.0)
    assert tensor[0, :, 10, 320] == pytest.approx(114 / 255)


def test_boxes_of_yolov5_come_back_in_the_pixels_of_the_picture() -> None:
    model = Model(
        yolov5((320, 320, 64, 64, 0.9, 0.95), (322, 320, 64, 64, 0.8, 0.95), (100, 200, 40, 40, 0.5, 0.9))
    )
    (found,) = YoloLocator("n", model).locate(PICTURE)
    assert found.confidence == pytest.approx(0.855)
    expected = np.array([[432, 192], [528, 192], [528, 288], [432, 288]])
    assert np.abs(found.corners - expected).max() < 0.01


def test_masks_of_yolov8_become_quadrilaterals() -> None:
    rows = np.zeros((1, 37, 8400), np.float32)
    rows[0, :6, 7] = (320, 320, 240, 240, 0.8, 1.0)
    prototypes = np.full((1, 32, 160, 160), 0.0, np.float32)
    y, x = np.mgrid[:160, :160]
    # A square that stands on its corner.
    prototypes[0, 0] = np.where(abs(x - 79.5) + abs(y - 79.5) < 25, 9.0, -9.0)
    (found,) = YoloLocator("n", Model(rows, prototypes)).locate(PICTURE)
    middle = np.array((480, 240))
    away = np.abs(found.corners - middle).sum(axis=1)
    assert found.confidence == pytest.approx(0.8)
    assert np.abs(away - 25 * 4 * 1.5).max() < 10
    assert np.abs(found.corners - middle).min(axis=1).max() < 10


def test_a_large_picture_is_looked_at_in_tiles_when_the_whole_shows_nothing() -> None:
    class Tiled(Model):
        def run(self, outputs: Any, inputs: dict[str, Any]) -> list[Any]:
            super().run(outputs, inputs)
            return [yolov5((320, 320, 64, 64, 0.9, 1.0)) if len(self.inputs) == 4 else yolov5()]

    model = Tiled()
    (found,) = YoloLocator("n", model).locate(np.zeros((2160, 3840, 3), np.uint8))
    assert len(model.inputs) == 1 + 2 * 4
    # The third tile of the first row: from 1920 on, 1280 pixels a side.
    assert found.corners.mean(axis=0) == pytest.approx((1920 + 640, 640), abs=1)


class Looks(Model):
    """A model of our own: by the longest side of what it is shown, squares of (left and top, side, score)."""

    def __init__(self, seen: dict[int, list[tuple[float, float, float]]]) -> None:
        super().__init__()
        self._seen = seen

    @property
    def shown(self) -> list[tuple[int, ...]]:
        return [given["picture"].shape for given in self.inputs]

    def run(self, outputs: Any, inputs: dict[str, Any]) -> list[Any]:
        super().run(outputs, inputs)
        places = self._seen.get(max(inputs["picture"].shape), [])
        quads = [np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * side + at for at, side, _ in places]
        return [
            np.array(quads, np.float32).reshape(-1, 4, 2),
            np.array([score for _, _, score in places], np.float32),
        ]


LARGE = np.zeros((1080, 1920, 3), np.uint8)


def confidences(found: list[Located]) -> list[float]:
    return [round(each.confidence, 2) for each in found]


def test_a_model_of_our_own_gives_quads_in_the_pixels_of_the_picture() -> None:
    model = Looks({640: [(20, 100, 0.9)]})
    (found,) = QuadLocator("n", model).locate(LARGE)
    assert found.confidence == pytest.approx(0.9)
    # Three times as large; the middle of the first pixel is 0 in both.
    assert found.corners[2] == pytest.approx((3 * 120.5 - 0.5, 3 * 120.5 - 0.5))
    assert model.shown == [(1, 384, 640), (1, 160, 256)]
    assert model.inputs[0]["picture"].dtype == np.uint8


@pytest.mark.parametrize("seen", [[(20, 50, 0.9)], [(20, 100, 0.3)], []], ids=["small", "unsure", "nothing"])
def test_a_large_picture_is_looked_at_in_detail_where_the_whole_does_not_tell(seen: list[Any]) -> None:
    model = Looks({640: seen, 1120: [(900, 60, 0.8)]})
    found = QuadLocator("n", model).locate(LARGE)
    assert 0.8 in confidences(found)
    # In two parts, that share what the largest code takes.
    assert model.shown[2:] == [(1, 1088, 1120)] * 2
    assert sorted(int(each.corners[0, 0]) for each in found if each.confidence > 0.7)[-2:] == [900, 1720]


def test_parts_of_a_picture_are_all_of_it() -> None:
    for shape in [(1440, 1920), (1920, 1440), (1080, 1920), (1920, 1920), (50, 1920), (1, 1), (1920, 1)]:
        grey = np.zeros(shape, np.uint8)
        shared = np.argmax(shape)
        end = None
        for top, left, part in locator._parts(grey, 280):
            assert 0 < part.size <= locator._PART
            assert np.shares_memory(part, grey[top:, left:])
            assert end in (None, (top, left)[shared] + 280)
            end = (top, left)[shared] + part.shape[shared]
            part += 1
        assert grey.min() >= 1


def test_a_small_picture_is_looked_at_once() -> None:
    model = Looks({})
    assert QuadLocator("n", model).locate(np.zeros((200, 150, 3), np.uint8)) == []
    assert model.shown == [(1, 224, 160)]


@pytest.mark.parametrize("shape", [(1, 3000), (9000, 2), (20, 12_000)])
def test_a_strip_has_no_room_for_a_code(shape: tuple[int, int]) -> None:
    model = Looks({})
    assert QuadLocator("n", model).locate(np.zeros(shape, np.uint8)) == []
    assert model.shown == []


def test_a_strip_is_looked_at_where_it_has_room_for_a_code() -> None:
    model = Looks({})
    assert QuadLocator("n", model).locate(np.zeros((60, 3000), np.uint8)) == []
    assert model.shown == [(1, 64, 1920)]


def test_the_likeliest_places_are_given_where_none_is_sure() -> None:
    doubtful = [
        (at, 20.0, score) for at, score in ((0, 0.21), (40, 0.35), (80, 0.25), (120, 0.3), (160, 0.1))
    ]
    picture = LARGE[:400, :640]
    assert confidences(QuadLocator("n", Looks({640: doubtful})).locate(picture)) == [0.35, 0.3, 0.25]
    sure = [*doubtful, (200, 20.0, 0.5)]
    assert confidences(QuadLocator("n", Looks({640: sure})).locate(picture)) == [0.5]


def test_a_code_that_two_looks_show_is_given_once() -> None:
    model = Looks({640: [(20, 100, 0.6), (200, 100, 0.5)], 256: [(8, 40, 0.7)]})
    assert confidences(QuadLocator("n", model).locate(LARGE)) == [0.7, 0.5]


def test_a_part_of_a_code_is_no_code() -> None:
    model = Looks({640: [(40, 30, 0.6), (200, 30, 0.5)], 256: [(8, 40, 0.7)]})
    assert confidences(QuadLocator("n", model).locate(LARGE)) == [0.7, 0.5]


def test_what_a_look_was_not_taught_to_see_does_not_count() -> None:
    model = Looks({640: [(0, 300, 0.9), (310, 10, 0.8), (310, 100, 0.7)], 256: [(8, 40, 0.5)]})
    assert confidences(QuadLocator("n", model).locate(LARGE)) == [0.7, 0.5]


def test_a_locator_is_loaded_once_when_it_is_first_asked() -> None:
    loaded = []

    def load() -> YoloLocator:
        loaded.append(1)
        return YoloLocator("n", Model(yolov5()))

    lazy = LazyLocator("n", load)
    assert not loaded
    assert lazy.locate(PICTURE) == lazy.locate(PICTURE) == []
    assert loaded == [1]


def test_only_locators_whose_files_are_there_are_offered(tmp_path: Path) -> None:
    assert locator.locators_in(tmp_path) == {}
    (tmp_path / "qreader_small.onnx").touch()
    assert list(locator.locators_in(tmp_path)) == ["s"]


def laid(picture: NDArray[np.uint8], corners: list[list[float]]) -> NDArray[np.float32]:
    """Lays a code, and its quiet zone, so that its corners are these."""
    modules = np.pad(np.array([list(row) for row in segno.make("a code", version=2).matrix], np.uint8), 4)
    paper = np.kron(1 - modules, np.ones((8, 8), np.uint8)) * np.uint8(230) + np.uint8(20)
    near, far = 4 * 8 - 0.5, len(paper) - 4 * 8 - 0.5
    there = np.array(corners, np.float32)
    onto = cv2.getPerspectiveTransform(
        np.float32([[near, near], [far, near], [far, far], [near, far]]), there
    )
    size = picture.shape[1::-1]
    code = cv2.warpPerspective(paper, onto, size, flags=cv2.INTER_AREA)
    there_is = cv2.warpPerspective(np.full_like(paper, 255), onto, size) > 127
    picture[there_is] = code[there_is][:, None]
    return there


def test_the_deployed_locators_find_drawn_codes() -> None:
    store = ModelStore(MODELS)
    deployed = locator.locators_in(MODELS)
    assert "n" in deployed
    assert [f"locator-{size}" for size in deployed] == list(store.names("locator"))
    empty = np.random.default_rng(1).normal(130, 8, (960, 1280, 3)).clip(0, 255).astype(np.uint8)
    picture = empty.copy()
    codes = [
        laid(picture, [[100, 100], [220, 100], [220, 220], [100, 220]]),
        laid(picture, [[700, 300], [1010, 380], [960, 700], [650, 640]]),
        laid(picture, [[400, 600], [480, 620], [460, 700], [380, 680]]),
    ]
    for size, where in deployed.items():
        table = store.describe(f"locator-{size}")
        assert table["file"] == locator.FILES[size]
        assert hashlib.sha256((MODELS / table["file"]).read_bytes()).hexdigest() == table["sha256"]
        found = where.locate(picture)
        assert len(found) == len(codes)
        for code in codes:
            nearest = min(found, key=lambda each: float(np.abs(each.corners.mean(0) - code.mean(0)).sum()))
            assert nearest.confidence > 0.5
            away = np.linalg.norm(nearest.corners[:, None] - code, axis=-1).min(axis=0)
            assert away.max() < 0.12 * np.linalg.norm(code[1] - code[0])
        assert all(each.confidence < locator.QUAD_CONFIDENCE for each in where.locate(empty))
