"""Finder patterns, and which three of them make a code: where codes are, without a learned model.

zxing-cpp looks for the 1:1:3:1:1 of a finder pattern along rows of one binarised picture. Here they are
found as shapes: a dark square with a light ring around it, and something dark around that. It needs no
quiet zone, bears a broken rim, holds under any rotation and much perspective, and gives the four corners of
each pattern, so that three patterns fix the perspective of a code without its alignment patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Points = NDArray[np.float32]

# Pixels along the light square of 5 modules, and along the dark one of 3: below, no module is told from its
# neighbour.
_LEAST_SIDE: Final = 6.0
_LEAST_INNER: Final = 3

# Pixels of a binary picture, and what lies outside of it.
_DARK: Final = 255
_OUTSIDE: Final = 128

# The mean of so many pixels a side is the threshold, less what noise makes.
_WINDOW: Final = 47
_CONTRAST: Final = 4
_LEAST_PICTURE: Final = 24

# Rays from the middle of a pattern, points along each, and the shares of them that have to cross it rightly:
# of 8 rays at first, then of all. Damage and glare take some.
_RAYS: Final = 48
_STEPS: Final = 48
_AT_ONCE: Final = 512
_COARSE_RAYS: Final = 0.6
_FINE_RAYS: Final = 0.65

# Modules between the centres of two finder patterns, from version 1 to 40, with room for perspective.
_LEAST_DISTANCE: Final = 8.0
_MOST_DISTANCE: Final = 260.0

# What perspective may do to a triple: sizes, angle and legs that differ.
_MOST_SCALES: Final = 2.2
_MOST_COSINE: Final = 0.75
_MOST_LEGS: Final = 3.0

# What perspective and damage may do to a pair: the sizes; how far the way between them may be turned from the
# sides of the patterns (the sine), and how far it has to be when they are opposite; and by how much the two
# may differ in how many modules lie between them.
_PAIR_SCALES: Final = 1.5
_PAIR_ASKEW: Final = 0.3
_PAIR_DIAGONAL: Final = 0.45
_PAIR_SIZES: Final = 1.6

# So many modules between two patterns cost as much as twice the size of the other.
_PAIR_FAR: Final = 200.0

# Modules between the centres of two finder patterns of the smallest and the largest code.
_SMALLEST: Final = 14.0
_LARGEST: Final = 170.0

# Partners that are looked at for each finder pattern, and triples kept of it.
_NEIGHBOURS: Final = 14
_PER_CORNER: Final = 6

# Pairs that are looked at in one picture: a pattern of rings has many thousands, and each takes 0.1 ms.
_PAIRS_LOOKED_AT: Final = 500


@dataclass(frozen=True, slots=True)
class Finder:
    """One finder pattern.

    corners: float32 [4, 2], of its light square (5 x 5 modules), in order around it. module: pixels.
    """

    centre: Points
    corners: Points
    module: float


@dataclass(frozen=True, slots=True)
class Triple:
    """Three finder patterns that may belong to one code. cost: 0 for three equal ones at a right angle."""

    top_left: Finder
    top_right: Finder
    bottom_left: Finder
    cost: float

    @property
    def outline(self) -> Points:
        """Roughly the corners of the code, float32 [4, 2], clockwise from the top left; affine."""
        origin, right, down = (each.centre for each in (self.top_left, self.top_right, self.bottom_left))
        x, y = right - origin, down - origin
        reach = 3.5 * self.top_left.module
        x = x * (reach / max(float(np.hypot(*x)), 1e-6))
        y = y * (reach / max(float(np.hypot(*y)), 1e-6))
        far = right + down - origin
        return np.stack([origin - x - y, right + x - y, far + x + y, down - x + y]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Pair:
    """Where a code may lie of which two finder patterns are seen.

    outline: float32 [4, 2], its corners, clockwise on the picture, roughly. sizes: modules a side, at least
    and at most. cost: 0 for two equal patterns that lie as the corners of one code do.
    """

    outline: Points
    sizes: tuple[float, float]
    cost: float


def find_finders(grey: Grey, levels: Sequence[int] = (1, 2, 0)) -> list[Finder]:
    """The finder patterns of a picture, each once.

    levels: how often the picture is halved before it is looked at; every level finds patterns of about 10 to
    60 of its pixels. Halving also closes the gaps of a worn print.
    """
    found: list[Finder] = []
    pictures = [grey]
    for level in levels:
        while len(pictures) <= level:
            height, width = pictures[-1].shape
            if min(height, width) < 2 * _LEAST_PICTURE:
                break
            # Whole factors average exactly the pixels they stand for, at a tenth of the time of others.
            even = pictures[-1][: height // 2 * 2, : width // 2 * 2]
            pictures.append(cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA))
        if level < len(pictures) and min(pictures[level].shape) >= _LEAST_PICTURE:
            dark = cv2.adaptiveThreshold(
                pictures[level], _DARK, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY_INV, _WINDOW, _CONTRAST
            )
            scale = 1 << level
            found = merged(found, [_scaled(finder, scale) for finder in _in_binary(dark)])
    return found


def _scaled(finder: Finder, scale: int) -> Finder:
    return Finder(
        (finder.centre + 0.5) * scale - 0.5, (finder.corners + 0.5) * scale - 0.5, finder.module * scale
    )


def merged(found: list[Finder], more: list[Finder]) -> list[Finder]:
    """What was found, and of the rest what lies elsewhere: more than two modules away."""
    if not found or not more:
        return found or more
    centres = np.array([finder.centre for finder in found])
    modules = np.array([finder.module for finder in found])
    return found + [
        finder
        for finder in more
        if not (abs(centres - finder.centre).max(axis=1) < 2 * np.minimum(modules, finder.module)).any()
    ]


def _in_binary(dark: NDArray[np.uint8]) -> list[Finder]:
    """Dark squares with a light ring around them, and something dark around that."""
    # Of OpenCV's algorithms the one that is fastest here, by a third.
    _, _, stats, centres = cv2.connectedComponentsWithStatsWithAlgorithm(dark, 8, cv2.CV_32S, cv2.CCL_GRANA)
    numbers = _compact(stats, max(dark.shape))
    if not len(numbers):
        return []
    # A few at a time: grain and text have tens of thousands of such squares, each with hundreds of points.
    likely = [
        part[_like_a_finder(*_crossings(dark, centres[part], _reach(stats[part]), 8)) >= _COARSE_RAYS]
        for part in np.array_split(numbers, len(numbers) // _AT_ONCE + 1)
    ]
    numbers = np.concatenate(likely)[:_AT_ONCE]
    if not len(numbers):
        return []
    inner, outer = _crossings(dark, centres[numbers], _reach(stats[numbers]), _RAYS)
    share = _like_a_finder(inner, outer)
    found = []
    for n, number in enumerate(numbers):
        if share[n] >= _FINE_RAYS:
            finder = _finder(centres[number], inner[n], outer[n])
            if finder is not None:
                found.append(finder)
    return found


def _reach(stats: NDArray[np.int32]) -> NDArray[np.float64]:
    """Half of the longer side of each component, in pixels."""
    return np.asarray(stats[:, 2:4].max(axis=1) / 2 + 0.5)


def _compact(stats: NDArray[np.int32], longest: int) -> NDArray[np.intp]:
    """The components that may be the inner square of a finder pattern, by their bounding box and area."""
    width, height, area = stats[:, 2], stats[:, 3], stats[:, 4]
    short, long = np.minimum(width, height), np.maximum(width, height)
    fit = (short >= _LEAST_INNER) & (long <= 3.5 * short) & (long < 0.35 * longest)
    fit &= area >= 0.42 * width * height
    fit[0] = False
    return np.flatnonzero(fit)


def _crossings(
    dark: NDArray[np.uint8], centres: NDArray[np.float64], reach: NDArray[np.float64], rays: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How far it is along each ray to the first light pixel and to the next dark one behind it.

    Both float32 [M, rays] in pixels; NaN where there is none within 3 times `reach`.
    """
    angles = np.arange(rays, dtype=np.float32) * (2 * np.pi / rays)
    steps = np.linspace(0, 3.0, _STEPS, dtype=np.float32)
    x, y = (
        (middle[:, None] + np.outer(reach.astype(np.float32), np.outer(way, steps))).reshape(-1, _STEPS)
        for middle, way in zip(centres.astype(np.float32).T, (np.cos(angles), np.sin(angles)), strict=True)
    )
    # A fraction of the time that indexing an array takes.
    along = cv2.remap(
        dark, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=_OUTSIDE
    ).reshape(len(centres), rays, _STEPS)
    light = along == 0
    first = light.argmax(axis=2)
    again = (along == _DARK) & (np.arange(_STEPS) > first[:, :, None])
    second = again.argmax(axis=2)
    unit = (reach * (3.0 / (_STEPS - 1)))[:, None]
    inner = np.where(light.any(axis=2), first - 0.5, np.nan) * unit
    outer = np.where(again.any(axis=2), second - 0.5, np.nan) * unit
    return inner.astype(np.float32), outer.astype(np.float32)


def _like_a_finder(inner: NDArray[np.float32], outer: NDArray[np.float32]) -> NDArray[np.float64]:
    """The share of the rays that cross as they do in a finder pattern: 3 half modules, then 2 more light."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = outer / inner
        return np.asarray(((ratio > 1.25) & (ratio < 2.7)).mean(axis=1))


def _finder(
    centre: NDArray[np.float64], inner: NDArray[np.float32], outer: NDArray[np.float32]
) -> Finder | None:
    # Where the ring around is broken, its place follows from the square inside.
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = outer / inner
    # numpy's own medians load its masked arrays, which take 9 MB of the process for good.
    known = np.sort(ratio[np.isfinite(ratio)])
    usual = float(known[(len(known) - 1) // 2 : len(known) // 2 + 1].mean())
    radius = np.where((ratio > 0.75 * usual) & (ratio < 1.3 * usual), outer, usual * inner)
    if not np.isfinite(radius).all():
        return None
    angles = np.arange(len(radius)) * (2 * np.pi / len(radius))
    rim = (centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]).astype(np.float32)
    hull = cv2.convexHull(rim)
    area = float(cv2.contourArea(rim))
    corners = _four_corners(hull)
    if corners is None or cv2.contourArea(hull) > 1.25 * area + 4:
        return None
    side = float(np.sqrt(max(cv2.contourArea(corners), 1.0)))
    if side < _LEAST_SIDE or side * side > 1.4 * area:
        return None
    corners = _straightened(corners, rim)
    return Finder(corners.mean(axis=0), corners, side / 5)


def _four_corners(hull: NDArray[np.int32]) -> Points | None:
    """The hull as a quadrilateral; None for a disc or a triangle."""
    length = cv2.arcLength(hull, True)
    for share in (0.04, 0.06, 0.08, 0.1, 0.12):
        polygon = cv2.approxPolyDP(hull, share * length, True)
        if len(polygon) == 4:
            return np.asarray(polygon.reshape(4, 2), np.float32)
        if len(polygon) < 4:
            break
    return np.asarray(cv2.boxPoints(cv2.minAreaRect(hull)), np.float32)


def _straightened(corners: Points, rim: Points) -> Points:
    """The corners where straight lines through the points of each side meet; as they were if they don't."""
    lines = []
    for n in range(4):
        start, end = corners[n], corners[(n + 1) % 4]
        side = end - start
        length = max(float(np.hypot(*side)), 1e-6)
        along = ((rim - start) @ side) / length**2
        off = ((rim - start) @ np.array((-side[1], side[0]))) / length
        near = rim[(along > 0.12) & (along < 0.88) & (np.abs(off) < 0.2 * length)]
        if len(near) < 3:
            return corners
        lines.append(cv2.fitLine(near, cv2.DIST_L2, 0, 0.01, 0.01).ravel())
    found = []
    for n in range(4):
        ux, uy, px, py = lines[n - 1]
        vx, vy, qx, qy = lines[n]
        turn = ux * vy - uy * vx
        if abs(turn) < 0.2:
            return corners
        reach = ((qx - px) * vy - (qy - py) * vx) / turn
        found.append((px + reach * ux, py + reach * uy))
    straight = np.array(found, np.float32)
    side = float(np.sqrt(max(cv2.contourArea(corners), 1.0)))
    return straight if float(np.abs(straight - corners).max()) < 0.35 * side else corners


def triples(finders: Sequence[Finder], most: int) -> list[Triple]:
    """The `most` likeliest triples, best first; a finder pattern may be in several."""
    count = len(finders)
    if count < 3:
        return []
    centres = np.array([each.centre for each in finders])
    modules = np.array([each.module for each in finders])
    found: list[tuple[float, int, int, int]] = []
    for corner in range(count):
        away = centres - centres[corner]
        distance = np.hypot(away[:, 0], away[:, 1])
        larger, smaller = np.maximum(modules, modules[corner]), np.minimum(modules, modules[corner])
        fit = (distance > _LEAST_DISTANCE * smaller) & (distance < _MOST_DISTANCE * larger)
        near = np.flatnonzero(fit & (larger < _MOST_SCALES * smaller))
        # In a sheet of codes the partners are among the nearest.
        near = near[np.argsort(distance[near])][:_NEIGHBOURS]
        found += _around(finders, corner, near, away, distance, modules)
    found.sort()
    return [_triple(finders, cost, *numbers) for cost, *numbers in found[:most]]


def _around(
    finders: Sequence[Finder],
    corner: int,
    near: NDArray[np.intp],
    away: Points,
    distance: NDArray[np.float32],
    modules: NDArray[np.float64],
) -> list[tuple[float, int, int, int]]:
    """Costs and numbers of the triples with one finder pattern as their corner, the best few."""
    first, second = np.triu_indices(len(near), 1)
    first, second = near[first], near[second]
    cosine = np.abs((away[first] * away[second]).sum(axis=1)) / (distance[first] * distance[second])
    legs = np.maximum(distance[first], distance[second]) / np.minimum(distance[first], distance[second])
    sizes = np.stack([np.full(len(first), modules[corner]), modules[first], modules[second]])
    # The sides of a finder pattern look the same way as those of the code do.
    askew = np.zeros(len(modules))
    askew[near] = [_askew(finders[corner], away[n]) + _askew(finders[n], away[n]) for n in near]
    cost = cosine + legs + sizes.max(axis=0) / sizes.min(axis=0) - 2 + askew[first] + askew[second]
    fit = np.flatnonzero((cosine < _MOST_COSINE) & (legs < _MOST_LEGS))
    fit = fit[np.argsort(cost[fit])][:_PER_CORNER]
    return [(float(cost[n]), corner, int(first[n]), int(second[n])) for n in fit]


def _triple(finders: Sequence[Finder], cost: float, corner: int, first: int, second: int) -> Triple:
    """The two others in the order in which a code that is not mirrored has them."""
    x, y = (finders[n].centre - finders[corner].centre for n in (first, second))
    if float(x[0] * y[1] - x[1] * y[0]) < 0:
        first, second = second, first
    return Triple(finders[corner], finders[first], finders[second], cost)


def _askew(finder: Finder, direction: Points) -> float:
    """How far a direction is from the sides of a finder pattern: sine of the angle, 0 to 0.7."""
    sides = np.roll(finder.corners, -1, axis=0) - finder.corners
    lengths = np.maximum(np.hypot(sides[:, 0], sides[:, 1]), 1e-6) * max(float(np.hypot(*direction)), 1e-6)
    cross = abs(sides[:, 0] * direction[1] - sides[:, 1] * direction[0]) / lengths
    return float(cross.min())


def pairs(finders: Sequence[Finder], most: int) -> list[Pair]:
    """The `most` likeliest places of codes with two of the finder patterns, best first.

    Two patterns are neighbours, and the code may be on either side of them, or opposite ones. A damaged
    pattern shows its own sides badly, so that they are also taken for those of a square.
    """
    found: list[Pair] = []
    axes = [_axes(finder) for finder in finders]
    for n, m in _partners(finders):
        one, other = finders[n], finders[m]
        away = other.centre - one.centre
        askew = _askew(one, away), _askew(other, away)
        if max(askew) < _PAIR_ASKEW:
            found += _neighbours(one.centre, away, axes[n], axes[m], max(askew))
        elif min(askew) > _PAIR_DIAGONAL:
            found += _opposite(one, other, away)
    found.sort(key=lambda each: each.cost)
    return found[:most]


def _partners(finders: Sequence[Finder]) -> list[tuple[int, int]]:
    """Numbers of two finder patterns of about one size, the later first, that don't lie in one another.

    The nearest partner of each is taken first, and of those the largest; then the second nearest.
    """
    if len(finders) < 2:
        return []
    centres = np.array([each.centre for each in finders])
    modules = np.array([each.module for each in finders])
    found: list[tuple[int, float, int, int]] = []
    for n in range(1, len(finders)):
        away = centres[:n] - centres[n]
        distance = np.hypot(away[:, 0], away[:, 1])
        larger, smaller = np.maximum(modules[:n], modules[n]), np.minimum(modules[:n], modules[n])
        fit = (larger < _PAIR_SCALES * smaller) & (distance > _LEAST_DISTANCE * smaller)
        near = np.flatnonzero(fit)
        near = near[np.argsort(distance[near])][:_NEIGHBOURS]
        found += [(rank, -float(smaller[m]), n, int(m)) for rank, m in enumerate(near)]
    return sorted((n, m) for _, _, n, m in sorted(found)[:_PAIRS_LOOKED_AT])


def _axes(finder: Finder) -> Points:
    """The two sides of a module as a finder pattern shows them, float32 [2, 2], a vector a row."""
    a, b, c, d = finder.corners
    return np.stack([(b - a + c - d) / 10, (d - a + c - b) / 10])


def _neighbours(one: Points, away: Points, axes: Points, others: Points, cost: float) -> list[Pair]:
    distance = float(np.hypot(*away))
    counts, across = [], []
    for each in (axes, others):
        lengths = np.hypot(each[:, 0], each[:, 1])
        along = int(np.abs(each @ away / np.maximum(lengths, 1e-6)).argmax())
        counts.append(distance / max(float(lengths[along]), 1e-6))
        across.append(each[1 - along])
    if max(counts) > _PAIR_SIZES * min(counts) or not _SMALLEST * 0.8 < min(counts) <= max(counts) < _LARGEST:
        return []
    count = float(np.mean(counts))
    cost += max(counts) / min(counts) - 1 + count / _PAIR_FAR
    first, second = across
    second = second * (1 if float(first @ second) > 0 else -1)
    square = np.array([-away[1], away[0]]) / count
    found = []
    for down, also_down in ((first, second), (square, square)):
        for side in (count, -count):
            centres = np.stack([one, one + away, one + away + also_down * side, one + down * side])
            outline = _outer(centres.astype(np.float32), count)
            found.append(Pair(outline, (min(counts) + 5, max(counts) + 9), cost))
    return found


def _opposite(one: Finder, other: Finder, away: Points) -> list[Pair]:
    """The code around two opposite finder patterns, as if it were a square."""
    count = float(np.hypot(*away)) / 2**0.5 / ((one.module + other.module) / 2)
    if not _SMALLEST * 0.8 < count < _LARGEST:
        return []
    middle, across = one.centre + away / 2, np.array([-away[1], away[0]]) / 2
    centres = np.stack([one.centre, middle + across, other.centre, middle - across])
    outline = _outer(centres.astype(np.float32), count)
    ratio = max(one.module, other.module) / min(one.module, other.module)
    return [Pair(outline, (0.85 * count + 7, 1.15 * count + 7), ratio - 1 + count / _PAIR_FAR)]


def _outer(centres: Points, count: float) -> Points:
    """The corners of a code from the middles of patterns in all of its four corners; clockwise."""
    square = np.array([[0, 0], [count, 0], [count, count], [0, count]], np.float32)
    outer = square + np.array([[-3.5, -3.5], [3.5, -3.5], [3.5, 3.5], [-3.5, 3.5]], np.float32)
    corners = cv2.perspectiveTransform(outer[None], cv2.getPerspectiveTransform(square, centres))[0]
    return np.asarray(corners if cv2.contourArea(corners, True) >= 0 else corners[::-1], np.float32)
