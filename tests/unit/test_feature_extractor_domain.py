from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from feature_extractor.domain import Extractor, on_the_wire, prepare, prepare_one
from visionmesh.errors import Rejected
from visionmesh.model_store import ModelStore
from visionmesh.settings import ROOT


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor(ModelStore(ROOT / "models").load("extractor"))


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (count, 32, 32, 3), np.uint8)


def portrait() -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 90))
    return Image.fromarray((np.stack([x, y, x * y], axis=2) * 255).astype(np.uint8))


def png(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, "PNG", exif=exif)
    return out.getvalue()


def test_a_picture_gives_twenty_descriptors(extractor: Extractor) -> None:
    found = extractor.extract(pictures(3))
    assert found.shape == (3, 20)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert len({tuple(row) for row in found.tolist()}) == 3


@pytest.mark.parametrize("count", [0, 1, 64, 65, 130])
def test_any_number_of_pictures(extractor: Extractor, count: int) -> None:
    assert extractor.extract(list(pictures(count))).shape == (count, 20)


def test_a_picture_has_the_same_descriptors_alone_and_among_others(extractor: Extractor) -> None:
    together = extractor.extract(pictures(100))
    alone = [extractor.extract(pictures(100)[index : index + 1])[0] for index in (0, 50, 99)]
    assert np.allclose(together[[0, 50, 99]], alone, atol=1e-4)


def test_extracting_twice_gives_the_same(extractor: Extractor) -> None:
    assert np.array_equal(extractor.extract(pictures(5)), extractor.extract(pictures(5)))


def test_an_exif_rotated_portrait_has_the_descriptors_of_the_upright_picture(extractor: Extractor) -> None:
    turned = portrait().transpose(Image.Transpose.ROTATE_90)
    upright, rotated, sideways = (
        extractor.extract([prepare(data)]) for data in (png(portrait()), png(turned, 6), png(turned))
    )
    assert np.array_equal(upright, rotated)
    assert not np.allclose(upright, sideways, atol=0.1)


def test_a_prepared_picture_keeps_its_pixels_when_it_has_the_size_of_the_net() -> None:
    (picture,) = pictures(1)
    assert np.array_equal(prepare(png(Image.fromarray(picture))), picture)


def test_preparing_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(prepare_one)) is prepare_one
    with pytest.raises(Rejected) as caught:
        prepare_one((b"text", 32))
    assert pickle.loads(pickle.dumps(caught.value)).code == "not_an_image"


def test_four_significant_digits_go_on_the_wire() -> None:
    values = np.array([[1.23456, -0.000123456, 12345.6, 0.0, 0.1, -3.0]], np.float32)
    assert on_the_wire(values) == [(1.235, -0.0001235, 12350.0, 0.0, 0.1, -3.0)]
    assert json.dumps(on_the_wire(values)[0]) == "[1.235, -0.0001235, 12350.0, 0.0, 0.1, -3.0]"


def test_rounding_twice_changes_nothing(extractor: Extractor) -> None:
    once = on_the_wire(extractor.extract(pictures(8)))
    assert on_the_wire(np.array(once, np.float32)) == once


def test_a_classifier_is_no_extractor() -> None:
    with pytest.raises(ValueError, match="is a classifier"):
        Extractor(ModelStore(ROOT / "models").load("classifier-fast"))
