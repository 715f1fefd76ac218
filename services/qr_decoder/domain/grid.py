"""Reads a code whose finder patterns are known by laying a grid over it: the own sampler.

Readers lay a grid by four points and judge each module by one threshold. Here the grid is bent until it
fits (labels on bottles and crumpled receipts are no planes), every module is judged against its
neighbourhood, and what was hardly told apart is handed to the error correction as erased:

1. the number of modules from the timing patterns, and the perspective from the corners of three finder
   patterns (`frames`);
2. the code rectified to `_SCALE` pixels a module; alignment and finder patterns are looked for where they
   should be, and the grid bent through them; then low-order polynomials move it until its points lie as far
   from the edges between modules as they can (`_Fit`);
3. modules by several thresholds (`_samplings`), each repaired by `symbol.repaired`.

Worn codes are found by their outline instead (`square_frames`), and every module is judged by what was done
to it (`_Fit.judged`) and corrected bit by bit (`read_worn`).

All pure functions of a grey picture uint8 [height, width]. Module coordinates run to the right and down
from the outer corner of the top left finder pattern; the first module's centre is (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from qr_decoder.domain import symbol
from qr_decoder.domain.finders import Finder, Grey, Points, Triple

# Pixels a module in the rectified picture, and the light frame around it in modules.
_SCALE: Final = 6
_MARGIN: Final = 4

# A pattern that correlates worse than this with what was found is taken for hidden.
_LIKE: Final = 0.45

# Share of the modules of timing and finder patterns that have to be right before error correction is tried.
_PLAUSIBLE: Final = 0.72

# Versions that are tried of one triple, and how well their timing patterns have to correlate.
_FRAMES: Final = 2
_TIMED: Final = 0.35
_TIMING_OFFSETS: Final = (-0.5, 0.0, 0.5)

# Pixels to which a code of four known corners is reduced, and how many of its frames are tried.
_QUAD_SIDE: Final = 640
_QUAD_FRAMES: Final = 3

# How far the fourth corner is looked for around where perspective puts it, as a share of the code's side, in
# steps of a share or of modules; and how many of the best places are read.
_FAR_REACH: Final = 0.16
_FAR_STEPS: Final = 5
_FAR_TRIES: Final = 3

# Modules by which a grid is judged; more make it slower and no better.
_JUDGED: Final = 1200

# How much of a module's contrast its four neighbours took by blur.
_DEBLUR: Final = (0.0, 0.35, 0.8)

# Of a code within four corners: pixels a module to begin with, pixels a module as it is rectified, how far in
# modules the corners may be off, and orientations and versions kept.
_SQUARE_LEAST: Final = 2.0
_SQUARE_MOST: Final = 40.0
_SQUARE_SCALE: Final = 4
_SQUARE_REACH: Final = 2.0
_SQUARE_FRAMES: Final = 4

# Grids that are read bit by bit, each for some 15 ms.
_WORN_GRIDS: Final = 2

# Where a module is looked at, in modules from its middle.
_INSIDE: Final = (-0.32, -0.16, 0.0, 0.16, 0.32)

# Levels of grey between light and dark, and the share of it within which a tone is that of its neighbours.
_LEAST_CONTRAST: Final = 8.0
_USUAL: Final = 0.25

# How doubtful a module is, as log-odds: by how far its tone is off, by how uneven it is, by how many of its
# eight neighbours are of its colour, by whether all are, and for a start. By logistic regression on scenes of
# `damaged` in the benchmark, of other seeds than it uses.
_DOUBT: Final = (0.8, 1.2, 0.63, 0.54, 0.6)

# The light square of a finder pattern in module coordinates, clockwise from its top left.
_LIGHT: Final = np.array([[1, 1], [6, 1], [6, 6], [1, 6]], np.float32)


@dataclass(frozen=True, slots=True)
class Frame:
    """A first guess at where a code lies. homography: float64 [3, 3], modules -> pixels."""

    version: int
    homography: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A code that was read from its modules.

    corners: float32 [4, 2], pixels, clockwise from the code's own top left. mirrored: the code is seen as in
    a mirror.
    """

    repaired: symbol.Repaired
    version: int
    corners: Points
    mirrored: bool


def read_triple(grey: Grey, triple: Triple) -> Sampled | None:
    """The code of three finder patterns, None when it can't be read."""
    small, shrunk, triple = _at_reading_size(grey, triple)
    for frame in frames(small, triple):
        found = read_frame(small, frame)
        if found is not None:
            corners = (found.corners + 0.5) / shrunk - 0.5
            return Sampled(found.repaired, found.version, corners.astype(np.float32), found.mirrored)
    return None


def read_quad(grey: Grey, corners: Points) -> Sampled | None:
    """The code between four corners that are known to a module or two, None when it can't be read.

    corners: float32 [4, 2], in order around the code, from any of them.
    """
    side = float(np.sqrt(max(cv2.contourArea(corners.astype(np.float32)), 1.0)))
    factor = min(1.0, _QUAD_SIDE / side)
    small = (
        grey if factor == 1.0 else cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    )
    moved = (corners + 0.5) * factor - 0.5
    scored = []
    for turn in range(4):
        turned = np.roll(moved, turn, axis=0).astype(np.float32)
        for version in range(1, 41):
            size = symbol.size_of(version)
            if side * factor < 1.5 * size:
                break
            ideal = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float32)
            frame = Frame(version, np.asarray(cv2.getPerspectiveTransform(ideal, turned), np.float64))
            scored.append((_timing_score(small, frame), turn, version, frame))
    scored.sort(key=lambda each: -each[0])
    for score, _, _, frame in scored[:_QUAD_FRAMES]:
        found = read_frame(small, frame) if score > _TIMED else None
        if found is not None:
            back = ((found.corners + 0.5) / factor - 0.5).astype(np.float32)
            return Sampled(found.repaired, found.version, back, found.mirrored)
    return None


def read_worn(grey: Grey, frame: Frame) -> Sampled | None:
    """Refines the grid and reads it bit by bit, None when it can't be read.

    Worth its time where a code is known to be: it also takes what error correction has no remedy for when it
    looks at codewords.
    """
    fit = _Fit(grey, frame)
    for grid in islice(fit.grids(), _WORN_GRIDS):
        found = symbol.recovered(*fit.judged(grid))
        if found is not None:
            repaired, mirrored = found
            corners = fit.corners(grid)
            return Sampled(repaired, frame.version, corners[[0, 3, 2, 1]] if mirrored else corners, mirrored)
    return None


def square_frames(
    grey: Grey, corners: Points, sizes: tuple[float, float] = (21.0, 177.0)
) -> list[tuple[float, Frame]]:
    """The likeliest versions and orientations of a code between four corners, best first, with their worth.

    corners: float32 [4, 2], clockwise on the picture, good to two modules. sizes: at least and at most so
    many modules a side. Worth: of the three finder
    patterns, and of the timing patterns between them, how well each correlates with what should be there; 2
    for a perfect code, about 1.1 at most for anything else.
    """
    side = float(np.sqrt(max(cv2.contourArea(corners), 1.0)))
    found: list[tuple[float, Frame]] = []
    for version in range(1, 41):
        modules = symbol.size_of(version)
        if not sizes[0] <= modules <= sizes[1]:
            continue
        if _SQUARE_LEAST * modules <= side <= _SQUARE_MOST * modules:
            found += _squares(grey, corners, version)
    found.sort(key=lambda each: -each[0])
    return found[:_SQUARE_FRAMES]


def _squares(grey: Grey, corners: Points, version: int) -> Iterator[tuple[float, Frame]]:
    """The four orientations of one version, without those that lack two finder patterns."""
    size = symbol.size_of(version)
    ideal = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float32)
    to_picture = cv2.getPerspectiveTransform(ideal, corners)
    template, around = _template(7, _SQUARE_SCALE), int(_SQUARE_REACH * _SQUARE_SCALE)
    side = len(template) + 2 * around
    places, likeness = [], []
    for middle in ((3.5, 3.5), (size - 3.5, 3.5), (size - 3.5, size - 3.5), (3.5, size - 3.5)):
        begin = [each - 3.5 - _SQUARE_REACH + 0.5 / _SQUARE_SCALE for each in middle]
        window = np.array([[1 / _SQUARE_SCALE, 0, begin[0]], [0, 1 / _SQUARE_SCALE, begin[1]], [0, 0, 1]])
        flat = cv2.warpPerspective(
            grey, to_picture @ window, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        scores = cv2.matchTemplate(flat.astype(np.float32), template, cv2.TM_CCOEFF_NORMED)
        _, best, _, (column, row) = cv2.minMaxLoc(scores - _distance(around) * 0.15)
        off = np.array((column - around, row - around)) / _SQUARE_SCALE if best >= _LIKE else np.zeros(2)
        places.append(np.array(middle) + off)
        likeness.append(max(best, 0.0))
    seen = cv2.perspectiveTransform(np.array(places, np.float32)[None], to_picture)[0]
    centres = np.array([[3.5, 3.5], [size - 3.5, 3.5], [size, size], [3.5, size - 3.5]], np.float32)
    for turn in range(4):
        order = np.roll(np.arange(4), -turn)
        three = np.array(likeness)[order[[0, 1, 3]]]
        if np.count_nonzero(three >= _LIKE) < 2:
            continue
        onto = seen[order]
        onto[2] = corners[order[2]]
        frame = Frame(version, np.asarray(cv2.getPerspectiveTransform(centres, onto), np.float64))
        yield float(three.mean()) + _timing_score(grey, frame), frame


def _at_reading_size(grey: Grey, triple: Triple) -> tuple[Grey, float, Triple]:
    """Large modules are averaged before they are sampled, which takes noise and print raster away."""
    module = min(each.module for each in (triple.top_left, triple.top_right, triple.bottom_left))
    if module < 2 * _SCALE:
        return grey, 1.0, triple
    factor = 1.3 * _SCALE / module
    small = cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)

    def moved(finder: Finder) -> Finder:
        return Finder(
            (finder.centre + 0.5) * factor - 0.5,
            (finder.corners + 0.5) * factor - 0.5,
            finder.module * factor,
        )

    return (
        small,
        factor,
        Triple(moved(triple.top_left), moved(triple.top_right), moved(triple.bottom_left), triple.cost),
    )


def frames(grey: Grey, triple: Triple) -> list[Frame]:
    """The likeliest versions and perspectives of a triple, best first."""
    a, b, c = triple.top_left, triple.top_right, triple.bottom_left
    x, y = b.centre - a.centre, c.centre - a.centre
    squares = [_ordered(each.corners, x, y) for each in (a, b, c)]
    by_size = [
        7 + float(np.hypot(*(each.centre - a.centre))) / ((each.module + a.module) / 2) for each in (b, c)
    ]
    guesses = {_nearest_version(size) for size in by_size}
    # Half a module beyond the inner corners of the light squares run the timing patterns.
    for begin, end in (
        (_beyond(squares[0], 2, 0), _beyond(squares[1], 3, 1)),
        (_beyond(squares[0], 2, 0), _beyond(squares[2], 1, 3)),
    ):
        counted = 13 + _transitions(grey, begin, end)
        if 0.7 * min(by_size) < counted < 1.5 * max(by_size):
            guesses.add(_nearest_version(counted))
    tried = {version + step for version in guesses for step in (-1, 0, 1)}
    tried |= {
        version
        for each in squares[1:]
        if (version := _version_beside(grey, each, each is squares[2])) is not None
    }
    scored = []
    for version in tried:
        if 1 <= version <= 40:
            frame = Frame(version, _homography(squares, symbol.size_of(version)))
            scored.append((_timing_score(grey, frame), version, frame))
    scored.sort(key=lambda each: -each[0])
    return [frame for score, _, frame in scored[:_FRAMES] if score > _TIMED]


def _version_beside(grey: Grey, square: Points, below: bool) -> int | None:
    """The version that is written beside the top right finder pattern, or above the bottom left one.

    Versions from 7 on tell it in 18 bits, of which three may be wrong (annex D).
    """
    affine, _ = cv2.estimateAffine2D(_LIGHT, square)
    if affine is None:
        return None
    bit = np.arange(18)
    x, y = bit % 3 - 3.5, bit // 3 + 0.5
    places = np.stack([y, x] if below else [x, y], 1)
    at = (places @ affine[:, :2].T + affine[:, 2]).astype(np.float32)
    values = cv2.remap(
        grey, at[None, :, 0], at[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )[0]
    bits = values < (float(values.max()) + float(values.min())) / 2
    wrong = (bits != symbol.VERSION_WORDS).sum(axis=1)
    best = int(wrong.argmin())
    return best + 7 if wrong[best] <= 3 else None


def timing(grey: Grey, triple: Triple) -> float:
    """How well timing patterns lie between three finder patterns: 0 for not at all, 1 for clear."""
    small, _, moved = _at_reading_size(grey, triple)
    return max((_timing_score(small, frame) for frame in frames(small, moved)), default=0.0)


def _nearest_version(size: float) -> int:
    return min(40, max(1, round((size - 17) / 4)))


def _ordered(corners: Points, x: Points, y: Points) -> Points:
    """The corners of a finder pattern, top left, top right, bottom right, bottom left, as the code lies."""
    away = corners - corners.mean(axis=0)
    axes = np.stack([x / np.hypot(*x), y / np.hypot(*y)], axis=1)
    try:
        u, v = np.linalg.solve(axes.astype(np.float64), away.T.astype(np.float64))
    except np.linalg.LinAlgError:
        return corners
    order = [int(np.argmin(u + v)), int(np.argmax(u - v)), int(np.argmax(u + v)), int(np.argmin(u - v))]
    if len(set(order)) < 4:
        half = np.sqrt(max(cv2.contourArea(corners), 1.0)) / 2
        square = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) @ axes.T
        return np.asarray(corners.mean(axis=0) + square, np.float32)
    return corners[order]


def _beyond(square: Points, corner: int, opposite: int) -> Points:
    """Half a module further out than a corner of a light square."""
    return np.asarray(square[corner] + (square[corner] - square[opposite]) * 0.1, np.float32)


def _transitions(grey: Grey, begin: Points, end: Points) -> int:
    """Changes between light and dark along a line of the picture."""
    length = max(8, int(np.hypot(*(end - begin)) * 2))
    along = np.linspace(0, 1, length, dtype=np.float32)[None, :]
    values = cv2.remap(
        grey,
        begin[0] + (end[0] - begin[0]) * along,
        begin[1] + (end[1] - begin[1]) * along,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )[0].astype(np.float32)
    middle = (
        cv2.blur(values[None, :], (max(3, length // 4), 1), borderType=cv2.BORDER_REPLICATE)[0] * 0.5
        + (values.max() + values.min()) * 0.25
    )
    signs = values > middle
    return int((signs[1:] != signs[:-1]).sum())


def _homography(squares: list[Points], size: int) -> NDArray[np.float64]:
    last = size - 7
    modules = np.concatenate([_LIGHT, _LIGHT + np.array((last, 0)), _LIGHT + np.array((0, last))]).astype(
        np.float32
    )
    found, _ = cv2.findHomography(modules, np.concatenate(squares))
    if found is None:
        found = np.vstack(
            [cv2.getAffineTransform(modules[[0, 5, 11]], np.concatenate(squares)[[0, 5, 11]]), [0, 0, 1]]
        )
    return np.asarray(found, np.float64)


def _timing_score(grey: Grey, frame: Frame) -> float:
    """Correlation of the timing patterns with the picture, -1 to 1, the best within half a module."""
    size = symbol.size_of(frame.version)
    along = np.arange(7, size - 7) + 0.5
    sign = np.where(np.arange(len(along)) % 2 == 0, 1.0, -1.0)
    lines = [np.stack([along, np.full(len(along), 6.5 + off)], 1) for off in _TIMING_OFFSETS]
    points = np.concatenate(lines + [line[:, ::-1] for line in lines])
    at = cv2.perspectiveTransform(points[None].astype(np.float64), frame.homography)[0].astype(np.float32)
    values = cv2.remap(
        grey, at[None, :, 0], at[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    rows = values[0].astype(np.float32).reshape(2 * len(lines), -1)
    # Light falls unevenly along the pattern: each module is compared with those beside it.
    local = rows - cv2.blur(rows, (5, 1), borderType=cv2.BORDER_REFLECT)
    scores = ((local * sign).sum(axis=1) / (np.abs(local).sum(axis=1) + 1e-6)).reshape(2, -1).max(axis=1)
    return float(scores.max() * 0.6 + scores.min() * 0.4)


def read_frame(grey: Grey, frame: Frame) -> Sampled | None:
    """Refines the grid and reads it."""
    fit = _Fit(grey, frame)
    for grid in fit.grids():
        found = _read_grid(fit, grid, frame.version)
        if found is not None:
            return found
    return None


def _read_grid(fit: _Fit, grid: NDArray[np.float32], version: int) -> Sampled | None:
    for modules, trust in _samplings(fit.sample(grid), version):
        for mirrored in (False, True):
            found = symbol.repaired(modules.T if mirrored else modules, trust.T if mirrored else trust)
            if found is not None:
                corners = fit.corners(grid)
                return Sampled(found, version, corners[[0, 3, 2, 1]] if mirrored else corners, mirrored)
    return None


class _Fit:
    """A rectified code and grids over it.

    A grid is float32 [2, N, N]: where in the rectified picture each module's centre is, x then y, in modules.
    """

    def __init__(self, grey: Grey, frame: Frame) -> None:
        self._version = frame.version
        self._size = symbol.size_of(frame.version)
        side = (self._size + 2 * _MARGIN) * _SCALE
        # Rectified pixel -> module -> picture pixel; pixel centres are at whole numbers.
        place = np.array(
            [[1 / _SCALE, 0, 0.5 / _SCALE - _MARGIN], [0, 1 / _SCALE, 0.5 / _SCALE - _MARGIN], [0, 0, 1]]
        )
        self._to_picture = frame.homography @ place
        flat = cv2.warpPerspective(
            grey,
            self._to_picture,
            (side, side),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        self._sharp = flat.astype(np.float32)
        self._flat = cv2.GaussianBlur(flat, (0, 0), 0.25 * _SCALE).astype(np.float32)
        window = 9 * _SCALE | 1
        mean = cv2.blur(self._flat, (window, window))
        spread = np.sqrt(np.maximum(cv2.blur(self._flat * self._flat, (window, window)) - mean * mean, 16.0))
        self._even = np.clip((self._flat - mean) / spread, -2, 2)
        y, x = np.mgrid[: self._size, : self._size].astype(np.float32)
        self._ideal = np.stack([x + 0.5, y + 0.5])
        # What a grid is judged by: every few modules, and all that are known.
        self._dark, known = symbol.function_patterns(frame.version)
        stride = max(1, int(np.ceil(self._size / _JUDGED**0.5)))
        chosen = np.zeros_like(known)
        chosen[stride // 2 :: stride, stride // 2 :: stride] = True
        self._judged = np.nonzero(chosen)
        rows, columns = np.nonzero(known)
        every = max(1, len(rows) // _JUDGED)
        self._known = rows[::every], columns[::every]
        self._signs = np.where(self._dark[self._known], -1.0, 1.0).astype(np.float32)
        self._clear = np.abs(self._even)

    def grids(self) -> Iterator[NDArray[np.float32]]:
        """Grids that may fit, the likeliest first; none when this is no code."""
        finders = self._finder_centres()
        if finders is None:
            return
        for grid in self._perspectives(finders):
            anchored = grid
            for reach in (2.5, 1.2):
                places, offsets, weights = self._anchors(anchored, reach)
                anchored = anchored + _smooth(self._ideal, places, offsets, weights, self._size)
            if self._agreement(anchored) < _PLAUSIBLE:
                continue
            yield anchored
            yield self._bent(anchored)

    def _finder_centres(self) -> Points | None:
        """Where the three finder patterns are in the rectified picture, in modules, float32 [3, 2].

        None when fewer than two of them look like one.
        """
        last = self._size - 3.5
        found, alike = [], 0
        for expected in ((3.5, 3.5), (last, 3.5), (3.5, last)):
            at = np.array(expected, np.float32)
            for reach in (2.5, 0.8):
                seen = self._look(at, 7, reach)
                if seen is not None:
                    at = at + np.array(seen[0], np.float32)
            alike += seen is not None
            found.append(at)
        if alike < 2:
            return None
        return np.array(found, np.float32)

    def _perspectives(self, finders: Points) -> list[NDArray[np.float32]]:
        """Grids through the three finder patterns whose far corner is where it fits best.

        The corners of finder patterns tell the perspective of small codes only roughly.
        """
        last = self._size - 3.5
        ideal = np.array([[3.5, 3.5], [last, 3.5], [3.5, last], [last, last]], np.float32)
        affine = finders[1] + finders[2] - finders[0]
        flat = self._ideal.reshape(2, -1).T[None]

        def grid(far: NDArray[np.float32]) -> NDArray[np.float32]:
            target = np.concatenate([finders, far[None]]).astype(np.float32)
            moved = cv2.perspectiveTransform(flat, cv2.getPerspectiveTransform(ideal, target))
            return np.ascontiguousarray(moved[0].T.reshape(self._ideal.shape))

        expected = (affine + ideal[3]) / 2
        step = max(_FAR_REACH * self._size / _FAR_STEPS, 0.5)
        tried: dict[tuple[int, int], float] = {}
        for row in range(-_FAR_STEPS, _FAR_STEPS + 1):
            for column in range(-_FAR_STEPS, _FAR_STEPS + 1):
                far = expected + step * np.array((column, row), np.float32)
                tried[row, column] = self._worth(grid(far))
        peaks = [
            (value, at)
            for at, value in tried.items()
            if all(
                value >= tried.get((at[0] + down, at[1] + right), -9.0)
                for down in (-1, 0, 1)
                for right in (-1, 0, 1)
            )
        ]
        peaks.sort(reverse=True)
        found = []
        for value, (row, column) in peaks[:_FAR_TRIES]:
            far, best, shorter = expected + step * np.array((column, row), np.float32), value, step / 2
            while shorter > 0.1:
                around = [far + shorter * np.array(move, np.float32) for move in _MOVES]
                values = [self._worth(grid(each)) for each in around]
                if max(values) > best:
                    best, far = max(values), around[int(np.argmax(values))]
                else:
                    shorter /= 2
            found.append((best, grid(far)))
        found.sort(key=lambda each: -each[0])
        return [each for _, each in found]

    def _anchors(self, grid: NDArray[np.float32], reach: float) -> tuple[Points, Points, NDArray[np.float32]]:
        """Patterns that were found: ideal centre, by how much the grid is off there, how sure that is."""
        last = self._size - 3.5
        finders = ((3.5, 3.5), (last, 3.5), (3.5, last))
        wanted = [(at, 7) for at in finders]
        wanted += [((column + 0.5, row + 0.5), 5) for row, column in symbol.alignment_patterns(self._version)]
        places, offsets, weights = [], [], []
        for (x, y), modules in wanted:
            now = grid[:, int(y), int(x)]
            found = self._look(now, modules, min(reach, 1.5) if modules == 7 else reach)
            if found is None:
                continue
            offset, likeness = found
            places.append((x, y))
            offsets.append(offset)
            weights.append(likeness * (2.0 if modules == 7 else 1.0))
        return (
            np.array(places, np.float32).reshape(-1, 2),
            np.array(offsets, np.float32).reshape(-1, 2),
            np.array(weights, np.float32),
        )

    def _look(
        self, centre: NDArray[np.float32], modules: int, reach: float
    ) -> tuple[tuple[float, float], float] | None:
        """Where a pattern correlates best near a point, as an offset in modules."""
        template = _template(modules)
        half = modules * _SCALE // 2
        middle = np.round((centre + _MARGIN) * _SCALE).astype(int)
        around = int(reach * _SCALE)
        top, left = middle[1] - half - around, middle[0] - half - around
        bottom, right = top + len(template) + 2 * around, left + len(template) + 2 * around
        if top < 0 or left < 0 or bottom > len(self._even) or right > len(self._even):
            return None
        scores = cv2.matchTemplate(self._even[top:bottom, left:right], template, cv2.TM_CCOEFF_NORMED)
        # Far from where it is expected a pattern has to look better.
        scores = scores - _distance(around) * 0.15
        _, best, _, (column, row) = cv2.minMaxLoc(scores)
        if best < _LIKE:
            return None
        x = (left + column + (len(template) - 1) / 2 + 0.5) / _SCALE - _MARGIN
        y = (top + row + (len(template) - 1) / 2 + 0.5) / _SCALE - _MARGIN
        return (float(x - centre[0]), float(y - centre[1])), float(best)

    def _agreement(self, grid: NDArray[np.float32]) -> float:
        """The share of function modules that look as they have to."""
        return float((self._at(self._even, grid[:, self._known[0], self._known[1]]) * self._signs > 0).mean())

    def _worth(self, grid: NDArray[np.float32]) -> float:
        """How far a grid's points lie from edges, and how well on the patterns that are known."""
        clear = self._at(self._clear, grid[:, self._judged[0], self._judged[1]])
        right = self._at(self._even, grid[:, self._known[0], self._known[1]]) * self._signs
        return float(clear.mean() + 2.0 * right.mean())

    def _bent(self, grid: NDArray[np.float32]) -> NDArray[np.float32]:
        """The grid moved by polynomials until its points lie far from edges and on the right patterns."""
        best = self._worth(grid)
        for step in (0.5, 0.25, 0.12):
            for _ in range(2):
                before = best
                for term in _polynomials(self._size):
                    for axis in (0, 1):
                        for direction in (step, -step):
                            moved = grid.copy()
                            moved[axis] += direction * term
                            value = self._worth(moved)
                            if value > best + 1e-5:
                                best, grid = value, moved
                                break
                if best - before < 1e-3:
                    break
        return grid

    def sample(self, grid: NDArray[np.float32]) -> NDArray[np.float32]:
        """The brightness of each module, float32 [N, N]."""
        return self._at(self._flat, grid)

    def judged(self, grid: NDArray[np.float32]) -> tuple[symbol.Modules, NDArray[np.float32]]:
        """Modules (True is dark), and how sure each is: log-odds, 0 or more.

        A module as it was printed is of one tone, the tone of its neighbours of that colour; what lies on top
        has one of its own, or an edge within the module, or is a patch without a change that no mask leaves.
        """
        rows = []
        for down in _INSIDE:
            for right in _INSIDE:
                rows.append(self._at(self._sharp, grid + np.array((right, down), np.float32)[:, None, None]))
        points = np.stack(rows)
        middle = len(points) // 2
        values = np.partition(points, middle, axis=0)[middle]
        light, dark = _levels(points.mean(axis=0), values)
        contrast = np.maximum(light - dark, _LEAST_CONTRAST)
        relative = np.clip((points - dark) / contrast, -0.5, 1.5)
        modules = relative.mean(axis=0) < 0.5
        off = np.abs((values - dark) / contrast - np.where(modules, 0.0, 1.0))
        alike = cv2.blur(modules.astype(np.float32), (3, 3), borderType=cv2.BORDER_REPLICATE) * 9
        alike = np.where(modules, alike, 9 - alike) - 1
        doubt = (
            _DOUBT[0] * np.log(off + 0.02)
            + _DOUBT[1] * np.log(relative.std(axis=0) + 0.02)
            + _DOUBT[2] * alike
            + _DOUBT[3] * (alike > 7.5)
        )
        return modules, np.maximum(_DOUBT[4] - doubt, 0).astype(np.float32)

    @staticmethod
    def _at(picture: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.float32]:
        pixels = ((points + _MARGIN) * _SCALE - 0.5).reshape(2, -1, points.shape[-1])
        values = cv2.remap(picture, pixels[0], pixels[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(values).reshape(points.shape[1:])

    def corners(self, grid: NDArray[np.float32]) -> Points:
        """The outer corners of the code in the picture, clockwise from its top left."""
        moved = grid - self._ideal
        found = []
        for row, column, x, y in (
            (0, 0, 0, 0),
            (0, -1, self._size, 0),
            (-1, -1, self._size, self._size),
            (-1, 0, 0, self._size),
        ):
            found.append((x + moved[0, row, column], y + moved[1, row, column]))
        pixels = (np.array(found) + _MARGIN) * _SCALE - 0.5
        return np.asarray(cv2.perspectiveTransform(pixels[None], self._to_picture)[0], np.float32)


_MOVES: Final = tuple((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y)


@lru_cache(maxsize=3)
def _template(modules: int, scale: int = _SCALE) -> NDArray[np.float32]:
    """A finder (7) or alignment (5) pattern as it is rectified."""
    pattern = np.full((modules, modules), -1.0, np.float32)
    pattern[1:-1, 1:-1] = 1
    pattern[2:-2, 2:-2] = -1
    large = np.kron(pattern, np.ones((scale, scale), np.float32))
    return np.asarray(cv2.GaussianBlur(large, (0, 0), 0.3 * scale))


@lru_cache(maxsize=4)
def _distance(around: int) -> NDArray[np.float32]:
    y, x = np.mgrid[-around : around + 1, -around : around + 1].astype(np.float32)
    return np.asarray(np.hypot(x, y) / max(around, 1), np.float32)


@lru_cache(maxsize=8)
def _polynomials(size: int) -> tuple[NDArray[np.float32], ...]:
    """The ways in which the grid is bent, each float32 [N, N] with values from -1 to 1."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    one = np.ones_like(x)
    return (one, x, y, x * y, 1 - x * x, 1 - y * y, (1 - x * x) * y, (1 - y * y) * x, x**3 - x, y**3 - y)


def _smooth(
    ideal: NDArray[np.float32], places: Points, offsets: Points, weights: NDArray[np.float32], size: int
) -> NDArray[np.float32]:
    """The offsets of a few places as a field over all modules, float32 [2, N, N].

    A plane, or with a fourth place a plane and a twist, by least squares; what is left at each place is
    spread over its neighbourhood.
    """
    if len(places) < 2:
        return np.zeros_like(ideal)
    x, y = (places * 2 / size - 1).T
    terms = [np.ones_like(x)] if len(places) < 3 else [np.ones_like(x), x, y]
    if len(places) > 3:
        terms.append(x * y)
    matrix = np.stack(terms, 1) * weights[:, None]
    solved, *_ = np.linalg.lstsq(matrix, offsets * weights[:, None], rcond=None)
    grid_x, grid_y = ideal * 2 / size - 1
    whole = [np.ones_like(grid_x), grid_x, grid_y, grid_x * grid_y][: len(terms)]
    field = np.einsum("kij,kc->cij", np.stack(whole), solved)
    if len(places) > 4:
        left = offsets - np.stack(terms, 1) @ solved
        reach = max(8.0, size / 5)
        near = (
            np.exp(
                -(
                    (ideal[0][None] - places[:, 0, None, None]) ** 2
                    + (ideal[1][None] - places[:, 1, None, None]) ** 2
                )
                / (2 * reach * reach)
            )
            * weights[:, None, None]
        )
        field = field + np.einsum("pij,pc->cij", near, left) / (near.sum(axis=0) + 0.2)
    return np.asarray(field, np.float32)


def _levels(
    means: NDArray[np.float32], values: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The tones of light and of dark modules around each module, from means and medians of modules.

    Those that are far from the usual tone of their neighbourhood are left out the second time.
    """
    local = np.ones((7, 7), np.uint8)
    light = cv2.blur(cv2.dilate(means, local), (5, 5))
    dark = cv2.blur(cv2.erode(means, local), (5, 5))
    is_dark = means < (light + dark) / 2
    levels = []
    for among, fallback in ((~is_dark, light), (is_dark, dark)):
        weight = among.astype(np.float32)
        for _ in range(2):
            share = cv2.blur(weight, (13, 13), borderType=cv2.BORDER_CONSTANT)
            usual = cv2.blur(weight * values, (13, 13), borderType=cv2.BORDER_CONSTANT)
            tone = np.where(share > 0.03, usual / np.maximum(share, 1e-6), fallback).astype(np.float32)
            near = np.abs(values - tone) < _USUAL * np.maximum(light - dark, _LEAST_CONTRAST)
            weight = (among & near).astype(np.float32)
        levels.append(tone)
    return levels[0], levels[1]


def _samplings(
    values: NDArray[np.float32], version: int
) -> Iterator[tuple[symbol.Modules, NDArray[np.float32]]]:
    """Modules (True is dark) and how sure each is, by one threshold after the other.

    The mask of a symbol makes light and dark about equal everywhere, so that the mean of a neighbourhood is
    a threshold; the middle between its lightest and darkest module is one that a patch of one colour does
    not move. Blur is undone by what the four neighbours took.
    """
    seen: list[symbol.Modules] = []
    size = symbol.size_of(version)
    window = min(size, 11) | 1
    kernel = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4
    for deblur in _DEBLUR:
        around = cv2.filter2D(values, -1, kernel, borderType=cv2.BORDER_REPLICATE)
        sharp = values + deblur * (values - around)
        mean = cv2.GaussianBlur(sharp, (window, window), window / 4, borderType=cv2.BORDER_REFLECT)
        local = np.ones((7, 7), np.uint8)
        light = cv2.blur(cv2.dilate(sharp, local), (5, 5))
        dark = cv2.blur(cv2.erode(sharp, local), (5, 5))
        contrast = np.maximum(light - dark, 1.0)
        for threshold in ((light + dark) / 2, mean):
            modules = sharp < threshold
            if any((modules == other).all() for other in seen):
                continue
            seen.append(modules)
            yield modules, (np.abs(sharp - threshold) / contrast).astype(np.float32)
