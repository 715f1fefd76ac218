"""Codes found by their outline or two finder patterns, and the orientation and version of what is found."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import segno
from numpy.typing import NDArray

from qr_decoder import domain
from qr_decoder.domain import cascade, finders, grid
from qr_decoder.domain.outlines import outlines

Grey = NDArray[np.uint8]

SCALE = 8


def drawn(content: str, version: int, error: str = "h") -> Grey:
    code = segno.make(content, version=version, error=error, boost_error=False, micro=False)
    modules = np.array([list(row) for row in code.matrix], np.uint8)
    return (230 - 200 * np.kron(modules, np.ones((SCALE, SCALE)))).astype(np.uint8)


def scratched(code: Grey, seed: int = 4) -> Grey:
    """Lines and stains over all of it, the finder patterns first."""
    generator = np.random.default_rng(seed)
    done = code.copy()
    size = len(code)
    for x, y in ((28, 28), (size - 28, 28), (28, size - 28)):
        cv2.line(done, (x - 26, y - 20), (x + 24, y + 26), 255, 5)
        cv2.line(done, (x + 24, y - 22), (x - 24, y + 14), 0, 4)
    for _ in range(22):
        start, end = generator.integers(0, size, (2, 2))
        cv2.line(done, start.tolist(), end.tolist(), int(generator.choice([255, 128, 0])), 3)
    return done


def laid(code: Grey, corners: list[tuple[float, float]]) -> tuple[Grey, NDArray[np.float32]]:
    """The code between four corners of a picture of light paper, and the corners."""
    side = float(len(code))
    onto = np.array(corners, np.float32)
    square = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32) - 0.5
    flat = cv2.getPerspectiveTransform(square.astype(np.float32), onto)
    picture = np.full((700, 900), 230, np.uint8)
    return cv2.warpPerspective(code, flat, (900, 700), picture, borderMode=cv2.BORDER_TRANSPARENT), onto


CORNERS = [(310.0, 160.0), (590.0, 200.0), (560.0, 490.0), (280.0, 450.0)]


def nearest(quad: NDArray[np.float32], corners: NDArray[np.float32]) -> float:
    """The farthest that a corner lies from the nearest one of the other quadrilateral."""
    return float(max(np.hypot(*(quad - corner).T).min() for corner in corners))


@pytest.mark.parametrize("version", [2, 6, 10])
def test_the_outline_of_a_code_is_good_to_a_module(version: int) -> None:
    code = drawn("outline", version)
    picture, corners = laid(code, CORNERS)
    module = 285 / (17 + 4 * version)
    assert min(nearest(quad, corners) for quad in outlines(picture)) < module


def test_a_corner_that_is_torn_off_comes_back() -> None:
    code = drawn("outline", 6)
    torn = np.array([[0, 0], [90, 0], [0, 90]]) + len(code) - np.array([[0, 0], [90, 0], [0, 90]]) * 2
    cv2.fillPoly(code, [torn.astype(np.int32)], 230)
    picture, corners = laid(code, CORNERS)
    assert min(nearest(quad, corners) for quad in outlines(picture)) < 2 * 285 / 41


def test_nothing_has_no_outline() -> None:
    generator = np.random.default_rng(1)
    print_lines = np.full((400, 600), 240, np.uint8)
    for y in range(30, 400, 40):
        cv2.putText(print_lines, "lines of print, one below the other", (10, y), 0, 0.8, 40, 1)
    faint = generator.normal(128, 4, (300, 300)).astype(np.uint8)
    for picture in (print_lines, faint, np.zeros((200, 300), np.uint8), np.full((1, 400), 9, np.uint8)):
        assert list(outlines(picture)) == []


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("version", [1, 4, 9])
def test_version_and_orientation_are_told_from_roughly_known_corners(version: int, turn: int) -> None:
    picture, corners = laid(drawn("frames", version, "l"), CORNERS)
    module = 285 / (17 + 4 * version)
    off = corners + module * np.array([[0.8, -0.5], [-0.6, 0.7], [0.5, 0.9], [0.3, -0.9]], np.float32)
    worth, frame = grid.square_frames(picture, np.roll(off, turn, axis=0).astype(np.float32))[0]
    assert frame.version == version
    assert worth > 1.5
    first = cv2.perspectiveTransform(np.array([[[0.0, 0.0]]]), frame.homography)[0, 0]
    assert np.hypot(*(first - corners[0])) < 2 * module


def test_a_code_whose_finder_patterns_are_scratched_is_read() -> None:
    picture, corners = laid(scratched(drawn("scratched all over", 4)), CORNERS)
    others = ",".join(name for name in domain.PROFILES["light"] if name != "worn")
    assert domain.read(picture, profile=others).codes == ()
    (found,) = domain.read(picture, profile="light").codes
    assert (found.content, found.level, found.decoder) == ("scratched all over", "worn", "grid")
    assert np.abs(np.array(found.corners) - corners).max() < 6


def test_a_large_picture_is_looked_at_reduced() -> None:
    code = scratched(drawn("scratched all over", 4))
    picture, corners = laid(code, CORNERS)
    large = cv2.resize(picture, None, fx=3, fy=3, interpolation=cv2.INTER_LINEAR)
    (found,) = domain.read(large, profile="worn").codes
    assert np.abs(np.array(found.corners) - (corners * 3 + 1)).max() < 18


def without_a_finder(number: int) -> Grey:
    """A code of which one finder pattern, of three, is under glare that runs into the paper around it."""
    code = drawn("two of three", 4)
    size = len(code)
    centre = ((28, 28), (size - 28, 28), (28, size - 28))[number]
    cv2.circle(code, centre, 44, 230, -1)
    return code


@pytest.mark.parametrize("number", range(3))
def test_two_finder_patterns_tell_where_a_code_may_lie(number: int) -> None:
    picture, corners = laid(without_a_finder(number), CORNERS)
    seen = finders.find_finders(picture)
    assert not finders.triples(seen, 1)
    found = finders.pairs(seen, 8)
    module = 285 / 33
    best = min(found, key=lambda pair: nearest(pair.outline, corners))
    # As if there were no perspective; what is found there is fitted afterwards.
    assert nearest(best.outline, corners) < 5 * module
    assert best.sizes[0] < 33 < best.sizes[1]


@pytest.mark.parametrize("number", range(3))
def test_a_code_of_two_finder_patterns_is_read_without_its_outline(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, corners = laid(without_a_finder(number), CORNERS)
    monkeypatch.setattr(cascade, "outlines", lambda _: [])
    others = ",".join(name for name in domain.PROFILES["light"] if name != "worn")
    assert domain.read(picture, profile=others).codes == ()
    (found,) = domain.read(picture, profile="light").codes
    assert (found.content, found.level) == ("two of three", "worn")
    # The corner that nothing is left of is good to a module and a half.
    assert np.abs(np.array(found.corners) - corners).max() < 1.5 * 285 / 33


def test_patterns_of_different_size_are_no_pair() -> None:
    small, large = drawn("small", 1), drawn("large", 1)
    picture = np.full((900, 1200), 230, np.uint8)
    picture[50 : 50 + len(small) // 2, 50 : 50 + len(small) // 2] = small[::2, ::2]
    picture[500 : 500 + len(large), 700 : 700 + len(large)] = large
    for pair in finders.pairs(finders.find_finders(picture), 99):
        assert (pair.outline[:, 0] < 600).all() or (pair.outline[:, 0] > 400).all()


def test_a_pattern_of_rings_is_no_sheet_of_thousands_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0

    def counted(finder: finders.Finder, direction: NDArray[np.float32]) -> float:
        nonlocal looked_at
        looked_at += 1
        return askew(finder, direction)

    askew = finders._askew
    monkeypatch.setattr(finders, "_askew", counted)
    square = np.array([[-10, -10], [10, -10], [10, 10], [-10, 10]], np.float32)
    # The first two are larger, as those of a code on patterned cloth.
    rings = [
        finders.Finder(np.array(at, np.float32), square * 3 + at, 12.0) for at in ((40, 900), (400, 900))
    ]
    for n in range(900):
        at = np.array((n % 30 * 90 + 30, n // 30 * 40 - 2000), np.float32)
        rings.append(finders.Finder(at, square + at, 4.0))
    found = finders.pairs(rings, 10_000)
    assert looked_at <= 2 * finders._PAIRS_LOOKED_AT
    assert any(np.abs(pair.outline.mean(axis=0) - (220, 720)).max() < 5 for pair in found)
