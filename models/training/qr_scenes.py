"""Grey pictures of QR codes with their true corners, drawn for the training of the locator.

Codes by segno, in perspective or bent, in many styles, on backgrounds of several kinds (shapes that cover
one another, noise of all scales, print, grids, the two sample photographs of scikit-learn), beside things
that look like codes and are none; then lit, covered, blurred, grained and compressed. A picture depends on
its seed and number alone. The benchmark's scenes (`tests/benchmarks/qr_scenes.py`) are made by other code
on purpose: a locator is not to be trained on what it is measured with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
import segno
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Points = NDArray[np.float32]
Random = np.random.Generator

# Different codes that pictures are drawn with: segno takes longer for one than a picture may.
_CODES = 400
_LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .,:;-_/?=&%"))

# Pixels a side below which a code is neither to be found nor to be missed.
LEAST = 16.0
# Blur, as a share of a module, above which no decoder reads a code.
_UNREADABLE = 1.5
# Standard deviation of the grey values of a code below which its modules are gone.
_LEAST_CONTRAST = 7.0
# Pixels a side from which the modules of a code need not be seen one by one.
_PATTERNS_SEEN = 70.0
# The share of a code's area that has to lie in the picture; and the one below which it is none.
_VISIBLE = 0.85
_HALF = 0.5


@dataclass
class Scene:
    """A picture and what is in it.

    picture: uint8 [height, width]. quads: corners of the codes, float32 [4, 2] pixels (x, y; the centre of
    the first pixel is 0), clockwise as seen, from the corner whose finder pattern has two others beside it.
    finders: of each code the centres of its finder patterns, float32 [3, 2]. ignored: places (corners, as
    above) where nothing is right or wrong.
    """

    picture: Grey
    quads: list[Points] = field(default_factory=list)
    finders: list[Points] = field(default_factory=list)
    ignored: list[Points] = field(default_factory=list)
    taken: list[Points] = field(default_factory=list)


def scene(seed: int, number: int, height: int = 256, width: int = 256) -> Scene:
    """The picture of this number; the same one every time."""
    random = np.random.default_rng((seed, number))
    made = Scene(_background(random, height, width))
    focus = _blur(random)
    for _ in range(random.choice([0, 1, 2, 3], p=[0.45, 0.3, 0.15, 0.1])):
        _lay_decoy(random, made)
    kind = random.random()
    if kind < 0.2:
        pass
    elif kind < 0.32:
        _lay_sheet(random, made, focus)
    else:
        for _ in range(random.choice([1, 2, 3, 5], p=[0.6, 0.2, 0.12, 0.08])):
            _lay_code(random, made, _side(random, min(height, width)), focus, steep=_steepness(random))
    if random.random() < 0.1:
        _lay_code(random, made, min(height, width) * float(random.uniform(1.1, 2.4)), focus)
    for _ in range(random.choice([0, 1, 2], p=[0.7, 0.2, 0.1])):
        _lay_decoy(random, made)
    _cover(random, made)
    made.picture = _taken(random, _lit(random, made.picture), focus)
    _forgive(made)
    return made


# Codes.


@functools.cache
def _matrices(seed: int = 20240601) -> list[NDArray[np.bool_]]:
    """Modules of QR codes, True where dark: small versions often, the largest seldom."""
    random = np.random.default_rng(seed)
    matrices = []
    for number in range(_CODES):
        version = int(min(1 + random.exponential(3.5), 12)) if number % 4 else int(random.integers(10, 41))
        level = str(random.choice(["l", "m", "q", "h"]))
        # A short text in a large version is padded with a pattern that real codes don't show.
        for length in (version * version * 2 + version * 20, version * 12, 6):
            text = "".join(random.choice(_LETTERS, length))
            try:
                code = segno.make(
                    text, version=version, error=level, micro=False, boost_error=False, mask=number % 8
                )
                break
            except segno.DataOverflowError:
                continue
        matrices.append(np.array([list(row) for row in code.matrix], bool))
    return matrices


def _side(random: Random, least_side: int) -> float:
    """Pixels a side, as often between 20 and 40 as between 160 and 320."""
    return float(np.exp(random.uniform(math.log(18), math.log(1.05 * least_side))))


def _steepness(random: Random) -> float:
    """Standard deviation of a tilt in radians."""
    return 0.4 if random.random() < 0.75 else 0.9


@dataclass
class _Flat:
    """A code or a decoy as it would be printed.

    picture: uint8 [side, side]. outline: corners of what is laid, places: the points whose places are wanted,
    float32 [N, 2] pixels of the picture.
    """

    picture: Grey
    places: Points
    module: float


def _printed(random: Random, side: float) -> _Flat:
    """A code of about `side` pixels and its paper; its places are its corners, then its finder patterns."""
    matrices = _matrices()
    matrix = matrices[int(random.integers(len(matrices)))]
    # Small codes of many modules are noise; they are drawn seldom. Large ones are found by their patterns and
    # their outline, and read in a picture that is not reduced.
    least = 1.3 if side < 70 else 0.6
    for _ in range(3):
        if side / len(matrix) > least or random.random() < 0.1:
            break
        matrix = matrices[int(random.integers(len(matrices)))]
    count = len(matrix)
    margin = int(random.choice([0, 1, 2, 3, 4, 6], p=[0.08, 0.12, 0.2, 0.15, 0.35, 0.1]))
    scale = int(np.clip(math.ceil(side / count), 2, 14))
    modules = np.pad(matrix, margin).astype(np.uint8)
    mask = np.repeat(np.repeat(modules, scale, axis=0), scale, axis=1) * np.uint8(255)
    mask = _styled(random, mask, scale, len(modules))
    ink, paper = _tones(random)
    grey = _mixed(mask, ink, paper)
    start, end = margin * scale - 0.5, (margin + count) * scale - 0.5
    inner = grey[margin * scale : (margin + count) * scale, margin * scale : (margin + count) * scale]
    _wear(random, inner, scale)
    near, far = start + 3.5 * scale, end - 3.5 * scale
    places = [[start, start], [end, start], [end, end], [start, end], [near, near], [far, near], [near, far]]
    points = np.array(places, np.float32)
    if random.random() < 0.35:
        grey, points = _poster(random, grey, points, ink, paper)
    grey, points = _bent(random, grey, points)
    return _Flat(grey, points, scale)


def _poster(random: Random, grey: Grey, points: Points, ink: float, paper: float) -> tuple[Grey, Points]:
    """The code on a larger sheet of the same paper, with print, lines or another picture beside it."""
    side = len(grey)
    left, top, right, bottom = (random.uniform(0, 1.0, 4) ** 1.5 * side).astype(int).tolist()
    sheet = np.full((top + side + bottom, left + side + right), int(paper), np.uint8)
    kind = random.random()
    if kind < 0.5:
        pages = _pages()
        page = pages[int(random.integers(len(pages)))]
        share = max(sheet.shape) / random.uniform(150, 600)
        page = cv2.resize(page, None, fx=max(share, 0.3), fy=max(share, 0.3))[
            : sheet.shape[0], : sheet.shape[1]
        ]
        sheet[: page.shape[0], : page.shape[1]] = _mixed(page, ink, paper)
    elif kind < 0.7:
        cv2.rectangle(sheet, (1, 1), (sheet.shape[1] - 2, sheet.shape[0] - 2), int(ink), max(1, side // 60))
    elif kind < 0.8:
        sheet = np.full_like(sheet, int(random.integers(0, 256)))
    sheet[top : top + side, left : left + side] = grey
    return sheet, points + np.array([left, top], np.float32)


def _styled(random: Random, mask: Grey, scale: int, count: int) -> Grey:
    """Modules as squares, dots, rounded, swollen or thinned."""
    kind = random.random()
    if scale < 4 or kind < 0.75:
        return mask
    if kind < 0.83:
        dot = np.zeros((scale, scale), np.uint8)
        cv2.circle(dot, (scale // 2, scale // 2), max(1, int(scale * random.uniform(0.38, 0.52))), 255, -1)
        dots = cv2.bitwise_and(mask, np.tile(dot, (count, count)))
        return dots
    if kind < 0.9:
        return np.where(cv2.GaussianBlur(mask, (0, 0), scale * 0.35) > 127, 255, 0).astype(np.uint8)
    kernel = np.ones((max(2, scale // 4),) * 2, np.uint8)
    return cv2.dilate(mask, kernel) if kind < 0.95 else cv2.erode(mask, kernel)


def _tones(random: Random) -> tuple[float, float]:
    """Ink and paper: mostly dark on light, with little contrast at times, the other way round at others."""
    paper = random.uniform(100, 255) if random.random() < 0.45 else random.uniform(200, 255)
    ink = random.uniform(0, max(paper - 60, 20)) if random.random() < 0.4 else random.uniform(0, 50)
    return (paper, ink) if random.random() < 0.08 else (ink, paper)


def _mixed(mask: Grey, ink: float, paper: float) -> Grey:
    return cv2.LUT(mask, (paper + (ink - paper) * np.arange(256) / 255).astype(np.uint8))


def _wear(random: Random, code: Grey, scale: int) -> None:
    """A logo in the middle, scratches, stains, specks; changes the picture in place."""
    side = len(code)
    if random.random() < 0.1:
        half = int(side * random.uniform(0.07, 0.17))
        middle, tone = side // 2, int(random.integers(0, 256))
        if random.random() < 0.5:
            cv2.rectangle(code, (middle - half, middle - half), (middle + half, middle + half), tone, -1)
        else:
            cv2.circle(code, (middle, middle), half, tone, -1)
        cv2.circle(code, (middle, middle), half // 2, int(random.integers(0, 256)), -1)
    if random.random() < 0.12:
        for _ in range(int(random.integers(1, 8))):
            ends = random.integers(0, side, (2, 2)).tolist()
            cv2.line(code, ends[0], ends[1], int(random.integers(0, 256)), int(random.integers(1, scale + 1)))
    if random.random() < 0.12:
        for _ in range(int(random.integers(1, 6))):
            at = random.integers(0, side, 2).tolist()
            cv2.circle(code, at, int(side * random.uniform(0.02, 0.12)), int(random.integers(0, 256)), -1)
    if random.random() < 0.06:
        spoilt = random.random((side // scale + 1, side // scale + 1)) < random.uniform(0.02, 0.2)
        large = np.repeat(np.repeat(spoilt, scale, axis=0), scale, axis=1)[:side, :side]
        code[large] = int(random.integers(0, 256))


def _bent(random: Random, flat: Grey, points: Points) -> tuple[Grey, Points]:
    """At times bent around a cylinder: x becomes r sin(x / r), and y follows the bend as seen from above."""
    side, across = flat.shape
    if across > 700 or random.random() < 0.88:
        return flat, points
    radius = across * random.uniform(0.42, 1.2)
    rise = random.uniform(-0.6, 0.6)
    middle = (across - 1) / 2
    width = int(2 * radius * math.sin(min(across / 2 / radius, 1.5)))
    columns = np.clip((np.arange(width, dtype=np.float32) - (width - 1) / 2) / radius, -0.999, 0.999)
    angles = np.arcsin(columns)
    lift = (rise * radius * (np.cos(angles) - 1)).astype(np.float32)
    rows = np.arange(side, dtype=np.float32)
    x = np.broadcast_to((angles * radius + middle).astype(np.float32), (side, width))
    y = rows[:, None] - lift
    edge = int(flat[0, 0])
    bent = cv2.remap(
        flat, np.ascontiguousarray(x), y, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT, borderValue=edge
    )
    around = (points[:, 0] - middle) / radius
    moved = np.stack(
        [radius * np.sin(around) + (width - 1) / 2, points[:, 1] + rise * radius * (np.cos(around) - 1)],
        axis=1,
    )
    return bent, moved.astype(np.float32)


# Laying things into the picture.


def _view(random: Random, flat: _Flat, ratio: float, steep: float) -> NDArray[np.float64]:
    """A homography that turns and tilts the flat picture around its middle as a camera would see it."""
    height, width = flat.picture.shape
    turn = random.uniform(0, 2 * math.pi) if random.random() < 0.6 else random.normal(0, 0.12)
    tilts = random.normal(0, steep, 2)
    tilts = np.clip(tilts, -1.3, 1.3)
    away = random.uniform(1.3, 6.0) * max(height, width) * ratio
    cos, sin = math.cos(turn), math.sin(turn)
    a, b = tilts
    around_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    around_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    rotation = around_y @ around_x @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    centred = np.array(
        [[ratio, 0, -ratio * (width - 1) / 2], [0, ratio, -ratio * (height - 1) / 2], [0, 0, 1]]
    )
    plane = np.array([[*rotation[0, :2], 0], [*rotation[1, :2], 0], [*rotation[2, :2] / away, 1]])
    mirror = np.diag([-1.0 if random.random() < 0.03 else 1.0, 1.0, 1.0])
    return plane @ mirror @ centred


def _corners_of(picture: Grey) -> Points:
    height, width = picture.shape
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32) - np.float32(0.5)


def _place(
    random: Random, made: Scene, flat: _Flat, view: NDArray[np.float64], at: tuple[float, float] | None = None
) -> NDArray[np.float64] | None:
    """Lays the flat picture where there is room; the homography into the scene, None when there is none."""
    height, width = made.picture.shape
    outline = cv2.perspectiveTransform(_corners_of(flat.picture)[None], view)[0]
    low, high = outline.min(axis=0), outline.max(axis=0)
    if float((high - low).max()) > 3 * max(height, width):
        return None
    for _ in range(6):
        centre = at or (random.uniform(0, width), random.uniform(0, height))
        if at is None and random.random() < 0.85:
            # Wholly in the picture where that is possible.
            reach = (high - low) / 2
            centre = (
                random.uniform(min(reach[0], width / 2), max(width - reach[0], width / 2)),
                random.uniform(min(reach[1], height / 2), max(height - reach[1], height / 2)),
            )
        shift = np.array(centre) - (low + high) / 2
        moved = (outline + shift).astype(np.float32)
        if not any(_overlap(moved, other) for other in made.taken):
            break
    else:
        return None
    made.taken.append(moved)
    onto = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1.0]]) @ view
    _paste(made.picture, flat.picture, onto, moved)
    return onto


def _overlap(one: Points, other: Points) -> bool:
    low, high = np.maximum(one.min(axis=0), other.min(axis=0)), np.minimum(one.max(axis=0), other.max(axis=0))
    if (high <= low).any():
        return False
    return cv2.intersectConvexConvex(cv2.convexHull(one), cv2.convexHull(other))[0] > 0


def _paste(picture: Grey, flat: Grey, onto: NDArray[np.float64], outline: Points) -> None:
    height, width = picture.shape
    left, top = np.clip(np.floor(outline.min(axis=0)).astype(int) - 1, 0, (width, height)).tolist()
    right, bottom = np.clip(np.ceil(outline.max(axis=0)).astype(int) + 2, 0, (width, height)).tolist()
    if right <= left or bottom <= top:
        return
    flat, onto = _averaged(flat, onto, outline)
    here = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]]) @ onto
    size = (right - left, bottom - top)
    layer = cv2.warpPerspective(flat, here, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    mask = np.zeros((size[1], size[0]), np.uint8)
    corners = np.rint((outline - (left, top)) * 16).astype(np.int32)
    cv2.fillConvexPoly(mask, corners, 255, cv2.LINE_AA, 4)
    part = picture[top:bottom, left:right]
    part[:] = cv2.blendLinear(layer, part, mask.astype(np.float32) / 255, 1 - mask.astype(np.float32) / 255)


def _averaged(flat: Grey, onto: NDArray[np.float64], outline: Points) -> tuple[Grey, NDArray[np.float64]]:
    """The flat picture in about the pixels it is to have: a sensor averages, a warp picks single pixels."""
    share = math.sqrt(cv2.contourArea(outline) / flat.size)
    if share > 0.75:
        return flat, onto
    height, width = flat.shape
    size = max(2, round(width * share)), max(2, round(height * share))
    x, y = width / size[0], height / size[1]
    back = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1.0]])
    return cv2.resize(flat, size, interpolation=cv2.INTER_AREA), onto @ back


def _lay_code(
    random: Random,
    made: Scene,
    side: float,
    focus: float,
    at: tuple[float, float] | None = None,
    steep: float = 0.4,
) -> None:
    flat = _printed(random, side)
    code_side = float(np.linalg.norm(flat.places[1] - flat.places[0]))
    onto = _place(random, made, flat, _view(random, flat, side / max(code_side, 1.0), steep), at)
    if onto is not None:
        _note(made, flat, onto, focus)


def _note(made: Scene, flat: _Flat, onto: NDArray[np.float64], focus: float) -> None:
    """Writes down where the code is, or that nobody is to mind it."""
    places = cv2.perspectiveTransform(flat.places[None], onto)[0]
    quad = places[:4]
    if cv2.contourArea(quad, oriented=True) < 0:
        # Mirrored: clockwise as seen is the other way round.
        quad = quad[[0, 3, 2, 1]]
    height, width = made.picture.shape
    area = cv2.contourArea(quad)
    rim = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32) - 0.5
    seen = cv2.intersectConvexConvex(rim, cv2.convexHull(quad))[0]
    sides = np.linalg.norm(quad - np.roll(quad, 1, axis=0), axis=1)
    module = (
        math.sqrt(max(area, 1e-3))
        * flat.module
        / float(math.sqrt(max(cv2.contourArea(flat.places[:4]), 1.0)))
    )
    hard = (
        math.sqrt(area) < LEAST
        or sides.min() < 0.6 * LEAST
        or focus > _UNREADABLE * module + 0.4
        or module < (0.75 if area < _PATTERNS_SEEN**2 else 0.5)
    )
    if seen < 0.02 * area:
        return
    if hard:
        made.ignored.append(quad.astype(np.float32))
        return
    if seen < _VISIBLE * area:
        # Only its middle may be taken for one: parts of a code are no codes.
        if seen > _HALF * area:
            middle = quad.mean(axis=0)
            made.ignored.append((middle + (quad - middle) / 2).astype(np.float32))
        return
    made.quads.append(quad.astype(np.float32))
    made.finders.append(places[4:].astype(np.float32))


def _forgive(made: Scene) -> None:
    """Codes that light has left no contrast of are no longer to be found."""
    kept = []
    for n, quad in enumerate(made.quads):
        mask = np.zeros(made.picture.shape, np.uint8)
        cv2.fillConvexPoly(mask, np.rint(quad).astype(np.int32), 255)
        _, deviation = cv2.meanStdDev(made.picture, mask=mask)
        if deviation.item() < _LEAST_CONTRAST:
            made.ignored.append(quad)
        else:
            kept.append(n)
    made.quads, made.finders = [made.quads[n] for n in kept], [made.finders[n] for n in kept]


def _lay_sheet(random: Random, made: Scene, focus: float) -> None:
    """Many codes in rows, as on a sheet of labels."""
    height, width = made.picture.shape
    columns, rows = random.integers(2, 6, 2).tolist()
    step = min(width / columns, height / rows)
    side = step * random.uniform(0.45, 0.72)
    if side < LEAST:
        return
    steep = random.choice([0.02, 0.25])
    for row in range(rows):
        for column in range(columns):
            if random.random() < 0.85:
                at = ((column + 0.5) * width / columns, (row + 0.5) * height / rows)
                _lay_code(random, made, side, focus, at, steep)


def _cover(random: Random, made: Scene) -> None:
    """At times something opaque over a rim of a code: a finger, a strap, a sheet."""
    for quad in made.quads:
        if random.random() > 0.12:
            continue
        middle = quad.mean(axis=0)
        size = math.sqrt(cv2.contourArea(quad))
        angle = random.uniform(0, 2 * math.pi)
        centre = middle + np.array([math.cos(angle), math.sin(angle)]) * size * random.uniform(0.35, 0.65)
        tone = int(random.integers(0, 256))
        if random.random() < 0.6:
            axes = (size * random.uniform(0.08, 0.28, 2)).astype(int) + 1
            place = np.rint(centre).astype(int).tolist()
            cv2.ellipse(made.picture, place, axes.tolist(), float(random.uniform(0, 180)), 0, 360, tone, -1)
        else:
            along = np.array([-math.sin(angle), math.cos(angle)]) * size
            ends = np.rint([centre - along, centre + along]).astype(int).tolist()
            cv2.line(made.picture, ends[0], ends[1], tone, max(1, int(size * random.uniform(0.03, 0.2))))


# Things that are no codes.


def _lay_decoy(random: Random, made: Scene) -> None:
    kinds: tuple[Callable[[Random], Grey], ...] = (
        _bars, _data_matrix, _aztec, _chessboard, _maze, _rings, _finder, _words, _keys,
    )  # fmt: skip
    flat = _mixed(kinds[int(random.integers(len(kinds)))](random), *_tones(random))
    side = _side(random, min(made.picture.shape))
    whole = _Flat(flat, _corners_of(flat), 1.0)
    _place(random, made, whole, _view(random, whole, side / max(flat.shape), 0.35))


def _bars(random: Random) -> Grey:
    """A linear code, or several rows of one as in PDF417."""
    rows = 1 if random.random() < 0.6 else int(random.integers(4, 20))
    widths = random.random((rows, int(random.integers(25, 60)))) < 0.5
    lines = np.repeat(np.repeat(widths, 3, axis=1), max(2, int(120 / rows * random.uniform(0.3, 1))), axis=0)
    return np.pad(lines, 6).astype(np.uint8) * np.uint8(255)


def _data_matrix(random: Random) -> Grey:
    count = int(random.integers(10, 27))
    modules = random.random((count, count)) < 0.5
    modules[:, 0] = modules[-1] = True
    modules[0] = np.arange(count) % 2 == 0
    modules[:, -1] = np.arange(count) % 2 == 1
    return _enlarged(modules, 5, 2)


def _aztec(random: Random) -> Grey:
    count = int(random.integers(7, 14)) * 2 + 1
    modules = random.random((count, count)) < 0.5
    y, x = np.mgrid[:count, :count] - count // 2
    ring = np.maximum(abs(x), abs(y))
    return _enlarged(np.where(ring < 6, ring % 2 == 0, modules), 5, 1)


def _chessboard(random: Random) -> Grey:
    rows, columns = random.integers(3, 12, 2)
    return _enlarged((np.arange(rows)[:, None] + np.arange(columns)) % 2 == 0, int(random.integers(6, 20)), 1)


def _maze(random: Random) -> Grey:
    """Modules as in a code, without finder patterns; random or with structure."""
    count = int(random.integers(8, 50))
    modules = random.random((count, count)) < random.uniform(0.3, 0.7)
    if random.random() < 0.4:
        modules[1:-1, 1:-1] = cv2.medianBlur(modules.astype(np.uint8), 3)[1:-1, 1:-1] > 0
    return _enlarged(modules, 5, int(random.integers(0, 4)))


def _rings(random: Random) -> Grey:
    picture = np.zeros((150, 150), np.uint8)
    for number, radius in enumerate(np.linspace(70, 5, int(random.integers(2, 8)))):
        cv2.circle(picture, (75, 75), int(radius), 255 if number % 2 == 0 else 0, -1)
    return picture


def _finder(random: Random) -> Grey:
    """One or two finder patterns alone, or squares within squares of other widths."""
    ratios = (7, 5, 3) if random.random() < 0.5 else sorted(random.uniform(1, 7, 3).tolist(), reverse=True)
    one = np.zeros((90, 90), np.uint8)
    for number, ratio in enumerate(ratios):
        half = int(ratio * 5)
        cv2.rectangle(one, (45 - half, 45 - half), (45 + half, 45 + half), 0 if number % 2 else 255, -1)
    return one if random.random() < 0.6 else np.hstack([one, one])


def _words(random: Random) -> Grey:
    pages = _pages()
    page = pages[int(random.integers(len(pages)))]
    height, width = random.integers(40, 200, 2)
    top, left = random.integers(0, page.shape[0] - height), random.integers(0, page.shape[1] - width)
    return np.ascontiguousarray(page[top : top + height, left : left + width])


def _keys(random: Random) -> Grey:
    """Squares in rows with gaps: keys, windows, tiles, icons."""
    rows, columns = random.integers(2, 8, 2)
    cell = np.zeros((24, 24), np.uint8)
    cv2.rectangle(cell, (3, 3), (20, 20), 255, -1 if random.random() < 0.5 else 2)
    if random.random() < 0.5:
        cv2.circle(cell, (12, 12), 4, 128, -1)
    return np.tile(cell, (rows, columns))


def _enlarged(modules: NDArray[np.bool_], scale: int, margin: int) -> Grey:
    padded = np.pad(modules, margin).astype(np.uint8) * np.uint8(255)
    return np.repeat(np.repeat(padded, scale, axis=0), scale, axis=1)


# Backgrounds.


def _background(random: Random, height: int, width: int) -> Grey:
    kind = random.random()
    if kind < 0.2:
        return _leaves(random, height, width)
    if kind < 0.45:
        return _photograph(random, height, width)
    if kind < 0.58:
        return _page(random, height, width)
    if kind < 0.66:
        return _texture(random, height, width)
    picture = _clouds(random, height, width)
    if kind < 0.78:
        _draw_lines(random, picture)
    return picture


def _clouds(random: Random, height: int, width: int) -> Grey:
    """A tone with noise of several scales: paper, wood, walls, gradients."""
    picture = np.full((height, width), random.uniform(10, 245), np.float32)
    for scale in (128, 32, 8, 2):
        strength = random.exponential(10 if scale > 8 else 5)
        small = random.standard_normal((height // scale + 2, width // scale + 2), dtype=np.float32)
        if random.random() < 0.25:
            # Longer than broad, as grain of wood is.
            small = cv2.resize(small[:, : max(2, small.shape[1] // 6)], small.shape[::-1])
        picture += strength * cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _leaves(random: Random, height: int, width: int) -> Grey:
    """Shapes that cover one another, more small than large ones: statistics like those of photographs."""
    picture = _clouds(random, height, width)
    count = int(random.integers(20, 120))
    sizes = np.minimum(8 / np.sqrt(random.random(count) + 1e-3), 0.4 * width)
    places = random.uniform((0, 0), (width, height), (count, 2))
    tones, kinds = random.integers(0, 256, count), random.random(count)
    for n in range(count):
        place, size, tone = np.rint(places[n]).astype(int).tolist(), float(sizes[n]), int(tones[n])
        if kinds[n] < 0.4:
            box = (tuple(place), (size * 2, size * random.uniform(0.4, 2)), float(kinds[n] * 900))
            cv2.fillConvexPoly(picture, cv2.boxPoints(box).astype(np.int32), tone)
        elif kinds[n] < 0.7:
            axes = (int(size) + 1, int(size * random.uniform(0.3, 1)) + 1)
            cv2.ellipse(picture, place, axes, float(kinds[n] * 900), 0, 360, tone, -1)
        else:
            points = (random.uniform(-size, size, (4, 2)) + place).astype(np.int32)
            cv2.fillConvexPoly(picture, cv2.convexHull(points), tone)
    return picture


def _texture(random: Random, height: int, width: int) -> Grey:
    """One small motif over and over: fabrics, plates with holes, tiles, blinds."""
    rows, columns = random.integers(2, 12, 2)
    motif = np.where(random.random((rows, columns)) < random.uniform(0.2, 0.8), 255, 0).astype(np.uint8)
    if random.random() < 0.5:
        motif = np.block([[motif, motif[:, ::-1]], [motif[::-1], motif[::-1, ::-1]]])
    scale = float(np.exp(random.uniform(0, math.log(8))))
    side = int(1.6 * max(height, width) / scale) + 2
    sheet = np.tile(motif, (side // motif.shape[0] + 1, side // motif.shape[1] + 1))[:side, :side]
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), float(random.uniform(0, 360)), scale)
    turn[:, 2] += np.array([width, height]) / 2 - side / 2
    onto = np.vstack([turn, [*random.normal(0, 0.0005, 2), 1]])
    way = cv2.INTER_LINEAR if random.random() < 0.6 else cv2.INTER_NEAREST
    picture = cv2.warpPerspective(sheet, onto, (width, height), flags=way, borderMode=cv2.BORDER_WRAP)
    return _mixed(picture, *_tones(random))


@functools.cache
def _photographs() -> tuple[Grey, ...]:
    # Here, and not above: tests of what is told of a scene run where scikit-learn is not.
    from sklearn.datasets import load_sample_images

    return tuple(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in load_sample_images().images)


def _photograph(random: Random, height: int, width: int) -> Grey:
    photographs = _photographs()
    source = photographs[int(random.integers(len(photographs)))]
    scale = float(np.exp(random.uniform(math.log(0.6), math.log(4)))) * max(height, width) / 320
    centre = random.uniform((0, 0), source.shape[::-1])
    turn = cv2.getRotationMatrix2D(tuple(centre.tolist()), float(random.uniform(0, 360)), scale)
    turn[:, 2] += np.array([width, height]) / 2 - centre
    picture = cv2.warpAffine(
        source, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    if random.random() < 0.5:
        low, high = sorted(random.uniform(0, 255, 2))
        picture = _mixed(picture, high, low) if random.random() < 0.7 else _mixed(picture, low, high)
    return picture


@functools.cache
def _pages(seed: int = 7) -> tuple[Grey, ...]:
    """Sheets of print, uint8 [600, 600], white where there is ink."""
    random = np.random.default_rng(seed)
    fonts = (
        cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX,
        cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_PLAIN,
    )  # fmt: skip
    pages = []
    for _ in range(24):
        page = np.zeros((600, 600), np.uint8)
        font = int(random.choice(fonts))
        size = float(np.exp(random.uniform(math.log(0.35), math.log(2.5))))
        line, y = int(26 * size) + 3, 0
        while y < 600:
            y += int(line * random.choice([1.0, 1.3, 2.5], p=[0.7, 0.2, 0.1]))
            text = "".join(random.choice(_LETTERS, int(random.integers(3, 90))))
            thick = max(1, int(size * random.uniform(0.7, 2.5)))
            cv2.putText(page, text, (int(random.integers(0, 60)), y), font, size, 255, thick, cv2.LINE_AA)
        pages.append(page)
    return tuple(pages)


def _page(random: Random, height: int, width: int) -> Grey:
    pages = _pages()
    source = _mixed(pages[int(random.integers(len(pages)))], *_tones(random))
    scale = float(np.exp(random.uniform(math.log(0.5), math.log(1.6)))) * max(height, width) / 320
    angle = float(random.uniform(0, 360)) if random.random() < 0.4 else float(random.normal(0, 3))
    turn = cv2.getRotationMatrix2D((300.0, 300.0), angle, scale)
    turn[:, 2] += np.array([width, height]) / 2 - 300
    return cv2.warpAffine(source, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _draw_lines(random: Random, picture: Grey) -> None:
    """Stripes or a grid: tables, blinds, tiles, fences."""
    height, width = picture.shape
    step, tone = int(random.integers(4, 60)), int(random.integers(0, 256))
    thick = int(random.integers(1, max(2, step // 2)))
    reach = height + width
    for turn in (0.0, math.pi / 2)[: int(random.integers(1, 3))]:
        angle = turn + random.normal(0, 0.2)
        along, across = (
            np.array([math.cos(angle), math.sin(angle)]),
            np.array([-math.sin(angle), math.cos(angle)]),
        )
        for offset in range(-reach // 2, reach // 2, step):
            middle = np.array([width, height]) / 2 + across * offset
            ends = np.rint([middle - along * reach, middle + along * reach]).astype(int).tolist()
            cv2.line(picture, ends[0], ends[1], tone, thick)


# Light, lens and sensor.


def _lit(random: Random, picture: Grey) -> Grey:
    """Light that falls off, shadows, glare, a bright spot, stripes of a monitor; then exposure."""
    height, width = picture.shape
    lit = picture.astype(np.float32)
    if random.random() < 0.3:
        corners = random.uniform(0.25, 1.15, (2, 2)).astype(np.float32)
        lit *= cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    if random.random() < 0.2:
        shadow = np.ones((height, width), np.float32)
        points = random.uniform(-0.3, 1.3, (4, 2)) * (width, height)
        cv2.fillConvexPoly(shadow, cv2.convexHull(points.astype(np.int32)), float(random.uniform(0.25, 0.75)))
        lit *= cv2.blur(shadow, (int(random.integers(1, 30)),) * 2)
    if random.random() < 0.15:
        light = np.zeros((height // 8, width // 8), np.float32)
        at = (random.uniform(0, 1, 2) * light.shape[::-1]).astype(int).tolist()
        axes = (random.uniform(0.03, 0.25, 2) * light.shape[1]).astype(int) + 1
        strength = float(random.uniform(60, 260))
        cv2.ellipse(light, at, axes.tolist(), float(random.uniform(0, 180)), 0, 360, strength, -1)
        light = cv2.GaussianBlur(light, (0, 0), float(random.uniform(0.5, 4)))
        lit += cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
    if random.random() < 0.06:
        angle, period = random.uniform(0, math.pi), random.uniform(2, 12)
        x = np.arange(width, dtype=np.float32) * math.cos(angle)
        y = np.arange(height, dtype=np.float32)[:, None] * math.sin(angle)
        lit *= 1 + random.uniform(0.03, 0.25) * np.sin(2 * np.pi * (x + y) / period)
    if random.random() < 0.4:
        lit = (lit - 128) * random.uniform(0.35, 1.5) + 128 + random.uniform(-60, 70)
    return np.clip(lit, 0, 255).astype(np.uint8)


def _blur(random: Random) -> float:
    """Standard deviation in pixels of what the lens does; none in every third picture."""
    return 0.0 if random.random() < 0.35 else float(min(random.exponential(1.0) + 0.3, 5))


@functools.cache
def _noise(seed: int = 11) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((1500, 1500), dtype=np.float32)


def _grain(random: Random, height: int, width: int) -> NDArray[np.float32]:
    """Noise of a sensor, float32 [height, width]: part of one field, which is faster than to draw it."""
    noise = _noise()
    if height > 1000 or width > 1000:
        return random.standard_normal((height, width), dtype=np.float32)
    top, left = random.integers(0, (noise.shape[0] - height, noise.shape[1] - width)).tolist()
    return noise[top : top + height, left : left + width]


def _taken(random: Random, picture: Grey, focus: float) -> Grey:
    if focus > 0.3:
        if random.random() < 0.7:
            picture = cv2.GaussianBlur(picture, (0, 0), focus)
        else:
            # A line of this length spreads light as far as the blur would.
            length = max(2, int(focus * math.sqrt(12)))
            kernel = np.zeros((2 * length + 1,) * 2, np.float32)
            angle = random.uniform(0, math.pi)
            reach = np.array([math.cos(angle), math.sin(angle)]) * length / 2
            ends = np.rint([length - reach, length + reach]).astype(int).tolist()
            cv2.line(kernel, ends[0], ends[1], 1.0)
            picture = cv2.filter2D(picture, -1, kernel / kernel.sum())
    elif random.random() < 0.15:
        picture = cv2.addWeighted(picture, 1.8, cv2.GaussianBlur(picture, (0, 0), 1.2), -0.8, 0)
    if random.random() < 0.6:
        strength = np.float32(random.exponential(6))
        picture = np.clip(picture + strength * _grain(random, *picture.shape), 0, 255).astype(np.uint8)
    if random.random() < 0.4:
        quality = int(random.integers(25, 95))
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        picture = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))
    return picture
