"""Made pictures of QR codes: the conditions and scenarios of the seed's comparison, with their truth.

Everything is drawn from a seed, so that a table can be rebuilt: codes by segno (random versions, contents and
correction levels), laid in perspective over paper, print and texture, then lit, covered, blurred and
compressed. No picture of anybody's is in them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import segno
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Random = np.random.Generator

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/.?=&"
_MARGIN = 4


@dataclass
class Scene:
    """picture: uint8 [height, width, 3] RGB. codes: content, and corners float32 [4, 2] clockwise."""

    picture: Picture
    codes: list[tuple[str, NDArray[np.float32]]] = field(default_factory=list)


def ground(random: Random, height: int, width: int) -> Picture:
    """Paper with lines of print, or a surface with grain, under even light."""
    tone = random.uniform(150, 245)
    tint = random.uniform(0.85, 1.0, 3)
    small = random.normal(0, random.uniform(1, 9), (max(height // 16, 2), max(width // 16, 2))).astype(
        np.float32
    )
    grain = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    picture = np.clip((tone + grain)[..., None] * tint, 0, 255).astype(np.uint8)
    if random.random() < 0.7:
        _print_lines(random, picture)
    for _ in range(int(random.integers(0, 5))):
        start = random.integers(0, (width, height)).tolist()
        size = random.integers(20, max(width // 3, 40), 2).tolist()
        colour = random.integers(30, 230, 3).tolist()
        cv2.rectangle(picture, start, [start[0] + size[0], start[1] + size[1]], colour, -1)
    return picture


def _print_lines(random: Random, picture: Picture) -> None:
    line = int(random.integers(14, 36))
    for y in range(line, picture.shape[0], int(line * 1.6)):
        text = "".join(random.choice(list(_LETTERS), int(random.integers(5, 60))))
        start = (int(random.integers(10, 80)), y)
        font, size, ink = cv2.FONT_HERSHEY_SIMPLEX, line / 32, (50, 50, 50)
        cv2.putText(picture, text, start, font, size, ink, 1, cv2.LINE_AA)


def content(random: Random) -> str:
    length = int(random.choice([8, 24, 40, 80, 140], p=[0.1, 0.3, 0.3, 0.2, 0.1]))
    return "https://" + "".join(random.choice(list(_LETTERS), length))


def drawn(random: Random, text: str, scale: int = 8) -> tuple[Picture, int]:
    """A code with its quiet zone, grey, and its number of modules a side."""
    level = str(random.choice(["l", "m", "q", "h"], p=[0.2, 0.4, 0.2, 0.2]))
    matrix = segno.make(text, error=level, boost_error=False, micro=False).matrix
    modules = np.pad(np.array([list(row) for row in matrix], np.uint8), _MARGIN)
    ink, paper = int(random.integers(0, 50)), int(random.integers(215, 256))
    grey = np.where(modules > 0, ink, paper).astype(np.uint8)
    return np.kron(grey, np.ones((scale, scale), np.uint8)), len(matrix)


def lay(
    random: Random,
    scene: Scene,
    side: float,
    centre: tuple[float, float],
    *,
    tilt: float = 0.06,
    wear: Callable[[Random, Picture], Picture] | None = None,
) -> None:
    """Puts a code of about `side` pixels on the picture, turned at will and tilted by up to `tilt`."""
    text = content(random)
    flat, modules = drawn(random, text)
    if wear is not None:
        quiet = _MARGIN * 8
        flat[quiet:-quiet, quiet:-quiet] = wear(random, flat[quiet:-quiet, quiet:-quiet])
    whole = side * (modules + 2 * _MARGIN) / modules
    angle = random.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * whole / 2
    corners = (square @ turn.T + random.uniform(-tilt, tilt, (4, 2)) * whole + centre).astype(np.float32)
    length = float(len(flat))
    onto = cv2.getPerspectiveTransform(
        np.array([[0, 0], [length, 0], [length, length], [0, length]], np.float32) - 0.5, corners
    )
    height, width = scene.picture.shape[:2]
    # A code that is drawn small is averaged first, as a camera does.
    shrink = min(1.0, whole / length)
    if shrink < 0.5:
        flat = cv2.GaussianBlur(flat, (0, 0), 0.35 / shrink)
    layer = cv2.warpPerspective(flat, onto, (width, height), flags=cv2.INTER_LINEAR)
    mask = cv2.warpPerspective(np.full_like(flat, 255), onto, (width, height), flags=cv2.INTER_LINEAR)
    share = mask[..., None].astype(np.float32) / 255
    scene.picture = (scene.picture * (1 - share) + layer[..., None] * share).astype(np.uint8)
    quiet, end = _MARGIN * 8.0, length - _MARGIN * 8.0
    inner = np.array([[[quiet, quiet], [end, quiet], [end, end], [quiet, end]]], np.float32) - 0.5
    scene.codes.append((text, cv2.perspectiveTransform(inner, onto)[0]))


def blurred(random: Random, picture: Picture, least: float, most: float) -> Picture:
    """Out of focus, or moved while it was taken."""
    if random.random() < 0.6:
        return cv2.GaussianBlur(picture, (0, 0), random.uniform(least, most))
    length = max(3, int(random.uniform(least, most) * 3))
    kernel = np.zeros((length, length), np.float32)
    angle = random.uniform(0, np.pi)
    reach = np.array([np.cos(angle), np.sin(angle)]) * (length - 1) / 2
    middle = np.array([length - 1, length - 1]) / 2
    start, end = np.rint(middle - reach).astype(int).tolist(), np.rint(middle + reach).astype(int).tolist()
    cv2.line(kernel, start, end, 1.0)
    return cv2.filter2D(picture, -1, kernel / kernel.sum())


def unevenly_lit(random: Random, picture: Picture, darkest: float = 0.12) -> Picture:
    """Light that falls off to one side, the edge of a shadow, sometimes a lamp."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = random.uniform(0, 2 * np.pi)
    along = np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5)
    light = np.clip(random.uniform(0.45, 0.7) + along * random.uniform(0.7, 1.3), darkest, 1.1)
    if random.random() < 0.6:
        edge = along - random.uniform(-0.25, 0.25)
        light = light * np.where(edge > 0, 1.0, random.uniform(0.3, 0.6))
    lit = picture * light[..., None]
    if random.random() < 0.4:
        spot = np.exp(
            -(((x - random.uniform(0, width)) ** 2 + (y - random.uniform(0, height)) ** 2) / (width / 9) ** 2)
        )
        lit = lit + 160 * spot[..., None]
    return np.clip(lit, 0, 255).astype(np.uint8)


def covered(random: Random, code: Picture, least: float, most: float) -> Picture:
    """Something opaque on top of a share of the code's area: a finger, a sticker, a fold."""
    size = len(code)
    hidden = code.copy()
    radius = np.sqrt(random.uniform(least, most) / np.pi) * size
    # Around the rim: an object seldom lies in the very middle of a code.
    angle = random.uniform(0, 2 * np.pi)
    centre = size / 2 + np.array([np.cos(angle), np.sin(angle)]) * random.uniform(0.1, 0.5) * size
    stretch = random.uniform(0.6, 1.6)
    axes = (max(1, int(radius * stretch)), max(1, int(radius / stretch)))
    cv2.ellipse(
        hidden, np.rint(centre).astype(int).tolist(), axes, float(random.uniform(0, 180)), 0, 360,
        int(random.integers(0, 256)), -1,
    )  # fmt: skip
    return hidden


def worn(random: Random, code: Picture, share: float) -> Picture:
    """Scratches, stains and specks where ink is missing or too much, over about a share of the area."""
    size = len(code)
    done = code.copy()
    target = share * size * size
    spoilt = 0.0
    while spoilt < target:
        kind = random.random()
        tone = int(random.choice([255, 255, 128, 0]))
        at = random.integers(0, size, 2).tolist()
        if kind < 0.5:
            to = (np.array(at) + random.normal(0, size / 4, 2)).astype(int).tolist()
            width = int(random.integers(2, max(3, size // 40)))
            cv2.line(done, at, to, tone, width)
            spoilt += width * float(np.hypot(*(np.array(to) - at)))
        elif kind < 0.8:
            radius = int(random.integers(2, max(3, size // 14)))
            cv2.circle(done, at, radius, tone, -1)
            spoilt += 3.14 * radius * radius
        else:
            block = int(random.integers(4, max(5, size // 8)))
            y, x = at
            specks = random.random(done[y : y + block, x : x + block].shape) < 0.5
            done[y : y + block, x : x + block][specks] = tone
            spoilt += block * block / 2
    return done


def taken(random: Random, picture: Picture, noise: float = 4.0) -> Picture:
    """Noise of a sensor, and JPEG."""
    noisy = picture + random.normal(0, noise, picture.shape[:2])[..., None]
    quality = int(random.integers(70, 95))
    clipped = np.clip(noisy, 0, 255).astype(np.uint8)
    data = cv2.imencode(".jpg", clipped, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def _middle(random: Random, height: int, width: int, side: float) -> tuple[float, float]:
    reach = side * 0.95
    return (
        float(random.uniform(min(reach, width / 2), max(width - reach, width / 2))),
        float(random.uniform(min(reach, height / 2), max(height - reach, height / 2))),
    )


def _one(random: Random, height: int, width: int, least: float, most: float, **how: Any) -> Scene:
    scene = Scene(ground(random, height, width))
    side = float(random.uniform(least, most))
    lay(random, scene, side, _middle(random, height, width, side), **how)
    return scene


def _sharp(random: Random) -> Scene:
    scene = _one(random, 900, 1200, 260, 420)
    scene.picture = taken(random, scene.picture)
    return scene


def _light_blur(random: Random) -> Scene:
    scene = _one(random, 900, 1200, 220, 340)
    scene.picture = taken(random, blurred(random, scene.picture, 1.2, 2.4))
    return scene


def _small(random: Random) -> Scene:
    scene = _one(random, 1200, 1600, 90, 195)
    scene.picture = taken(random, scene.picture, 3.0)
    return scene


def _uneven_light(random: Random) -> Scene:
    scene = _one(random, 900, 1200, 220, 400)
    scene.picture = taken(random, unevenly_lit(random, scene.picture))
    return scene


def _occluded(random: Random) -> Scene:
    scene = _one(random, 900, 1200, 240, 400, wear=lambda random, code: covered(random, code, 0.02, 0.09))
    scene.picture = taken(random, scene.picture)
    return scene


def _several(random: Random) -> Scene:
    scene = Scene(ground(random, 1200, 1600))
    for row in range(2):
        for column in range(4):
            if random.random() < 0.6 or not scene.codes:
                side = float(random.uniform(130, 210))
                lay(random, scene, side, (200 + 400 * column, 300 + 600 * row))
    scene.picture = taken(random, scene.picture)
    return scene


def _damaged(random: Random) -> Scene:
    share = float(random.uniform(0.1, 0.4))
    scene = _one(random, 900, 1200, 240, 400, wear=lambda random, code: worn(random, code, share))
    scene.picture = taken(random, scene.picture)
    return scene


def _invoice(random: Random) -> Scene:
    scene = _one(random, 1200, 1600, 380, 420, tilt=0.02)
    scene.picture = taken(random, scene.picture, 2.0)
    return scene


def _mobile(random: Random) -> Scene:
    scene = _one(random, 1536, 2048, 230, 270)
    lit = unevenly_lit(random, scene.picture, 0.2)
    scene.picture = taken(random, blurred(random, lit, 1.0, 2.2))
    return scene


def _small_in_4k(random: Random) -> Scene:
    scene = _one(random, 2160, 3840, 175, 185)
    scene.picture = taken(random, scene.picture, 3.0)
    return scene


def _corrupt(random: Random) -> Scene:
    scene = _one(random, 900, 1200, 240, 400, wear=lambda random, code: worn(random, code, 0.5))
    scene.picture = taken(random, scene.picture)
    return scene


# Condition -> how a scene of it is made, and the percentage of the seed's best model.
CONDITIONS: dict[str, tuple[Callable[[Random], Scene], float]] = {
    "sharp": (_sharp, 99),
    "light blur": (_light_blur, 92),
    "small < 200 px": (_small, 92),
    "uneven light": (_uneven_light, 90),
    "partly occluded": (_occluded, 82),
    "several": (_several, 90),
    "damaged": (_damaged, 25),
}

# Scenario -> how a scene of it is made, and its share of the traffic.
SCENARIOS: dict[str, tuple[Callable[[Random], Scene], float]] = {
    "invoice": (_invoice, 0.85),
    "blurred mobile photo": (_mobile, 0.10),
    "small code in 4K": (_small_in_4k, 0.03),
    "corrupt": (_corrupt, 0.02),
}


SEED = 20241006


def scenes(name: str, count: int, seed: int = SEED) -> Iterator[Scene]:
    """`count` scenes of a condition or scenario; the same ones every time."""
    for number in range(count):
        yield scene(name, number, seed)


def scene(name: str, number: int, seed: int = SEED) -> Scene:
    """One of them."""
    make, _ = {**CONDITIONS, **SCENARIOS}[name]
    return make(np.random.default_rng([seed, number, zlib.crc32(name.encode())]))
