"""The profile `ultralight`, beside the same levels with OpenCV."""

from __future__ import annotations

import io

import numpy as np
import pytest
import segno
from numpy.typing import NDArray
from PIL import Image

from qr_decoder import domain
from qr_decoder.domain import cascade


def sheet(*contents: str, scale: int = 4, grey: int = 255) -> NDArray[np.uint8]:
    """Codes side by side, uint8 [height, width]."""
    codes = []
    for content in contents:
        file = io.BytesIO()
        segno.make(content, error="m", micro=False).save(file, kind="png", scale=scale, border=6)
        codes.append(np.asarray(Image.open(file).convert("L")))
    height = max(code.shape[0] for code in codes)
    padded = [np.pad(code, ((0, height - len(code)), (0, 0)), constant_values=255) for code in codes]
    return np.asarray(np.concatenate(padded, axis=1) * (grey / 255), np.uint8)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_corners_are_those_of_the_cascade(turns: int, mirrored: bool) -> None:
    picture = np.ascontiguousarray(np.rot90(sheet("which way up"), turns)[:, :: -1 if mirrored else 1])
    (expected,) = cascade.read(picture, profile="raw").codes
    for (found,) in (
        domain.read(picture, profile="ultralight").codes,
        cascade.read(picture, profile="raw+zbar").codes,
    ):
        assert found.content == "which way up"
        assert found.data == b"which way up"
        assert found.decoder == "zbar"
        assert np.abs(np.array(found.corners) - np.array(expected.corners)).max() < 2.5


def test_a_large_picture_is_reduced_and_its_corners_are_not() -> None:
    picture = np.full((1500, 3000), 255, np.uint8)
    code = sheet("large", scale=16)
    picture[400 : 400 + code.shape[0], 1500 : 1500 + code.shape[1]] = code
    (found,) = domain.read(picture, profile="ultralight").codes
    assert (found.level, found.preprocessing) == ("raw+zbar", "reduced")
    assert np.abs(np.array(found.corners[0]) - (1500 + 6 * 16, 400 + 6 * 16)).max() < 5


def test_what_is_too_small_in_the_reduced_picture_is_read_in_the_whole() -> None:
    picture = np.full((2160, 3840), 255, np.uint8)
    code = sheet("small", scale=2)
    picture[1000 : 1000 + code.shape[0], 2001 : 2001 + code.shape[1]] = code
    (found,) = domain.read(picture, profile="ultralight").codes
    assert (found.level, found.preprocessing) == ("raw+zbar", "raw")


def test_what_is_done_to_a_picture_is_told() -> None:
    noisy = sheet("noisy", scale=12).astype(int) + np.random.default_rng(1).normal(0, 160, (396, 396))
    (found,) = domain.read(np.clip(noisy, 0, 255).astype(np.uint8), profile="ultralight").codes
    assert (found.level, found.preprocessing) == ("downscale+zbar", "downscale")


def test_several_codes_and_dark_ones() -> None:
    codes = domain.read(sheet("left", "right", grey=40), profile="ultralight").codes
    assert {code.content for code in codes} == {"left", "right"}


def test_nothing_is_found_in_noise_by_any_level() -> None:
    noise = np.random.default_rng(5).integers(0, 256, (200, 300), np.uint8)
    result = domain.read(noise, profile="ultralight")
    assert (result.codes, result.truncated) == ((), False)
    assert result.levels == domain.PROFILES["ultralight"]


def test_the_budget_ends_it() -> None:
    noise = np.random.default_rng(5).integers(0, 256, (200, 300), np.uint8)
    result = domain.read(noise, profile="ultralight", budget_ms=0)
    assert result.truncated
    assert result.levels == ("raw+zbar",)


def test_what_zxing_reads_otherwise_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from qr_decoder.domain import ultralight

    monkeypatch.setattr(ultralight, "same_text", lambda content, data: False)
    assert domain.read(sheet("unconfirmed"), profile="ultralight").codes == ()
