"""The cascade: named levels, cheapest first, until nothing more is likely to be found.

A level takes the picture and what is known of it, and yields readings attempt by attempt. `PROFILES` says
which levels are tried, in which order; `LEVELS` gives each its number, which is stored with every code.

**When it stops.** With nothing read, every level of the profile is tried. Once a code has been read, a level
is tried only for a sign of another code: `whole` when four codes were read, when one of them is small in the
reduced picture, or when there are, outside of all codes read, two finder patterns of one size or a place
where a decoder saw a code that it could not correct; `dark` when the picture is dark, where codes give no
sign; `grid` for three finder patterns out there that fit together and have timing patterns between them;
`clahe`, and in a dark picture `equalize`, for a place where a code was seen; the others are not. Nothing is
when the codes read fill most of the picture. A picture that shows more codes than it gives signs of is not
searched further: that is the price for not spending the whole budget on every picture with one code.

Within `grid` the likeliest places come first, and it ends when so many of them in a row were in vain.

The budget is looked at between attempts. An attempt is never broken off, so that a reading can come late by
one attempt; whoever needs a hard limit runs this in a child process.

**What counts as read.** Only what error correction proved (see `decoders`). Micro QR codes are so weakly
protected that in pictures that were altered, one has to be read twice, by different levels, to count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from qr_decoder.domain import decoders, grid
from qr_decoder.domain.codes import Grey, Quad, Reading, Result, confidence, joined
from qr_decoder.domain.finders import Finder, Triple, find_finders, merged, pairs, triples
from qr_decoder.domain.locator import Locator
from qr_decoder.domain.outlines import outlines
from qr_decoder.domain.transforms import STRATEGIES, Variant, logarithms, raw, reduced
from visionmesh.qr_code import QrCode

# Milliseconds; `?budget_ms=` of the service.
BUDGET: Final = 2000.0

# Triples that are kept, and how many are followed in vain one after the other; a picture of texture has
# hundreds. Of the codes of all our pictures, none was read from a triple after the third in vain.
_TRIPLES: Final = 60
_VAIN: Final = 12

# The share of the picture that codes take when nobody would have laid others beside them.
_FILLED: Final = 0.4

# How many of the best triples are looked at for a sign of a further code; how much one may cost to be a
# sign, and how well its timing patterns must correlate.
_SIGNS: Final = 3
_SIGN_COST: Final = 0.8
_SIGN_TIMING: Final = 0.6

# The whole picture in tiles, which overlap by more than a small code.
_TILE: Final = 1280
_TILE_OVERLAP: Final = 256

# Pixels of a code in the reduced picture below which others beside it may be too small to be read there.
_SMALL: Final = 60

# So many codes are hardly all: beside them others are likely that only the whole picture shows.
_MANY: Final = 4

# How much more than the outline of a triple is cut out around it, as a factor: perspective moves its corners.
_AROUND: Final = 1.5

# Of codes that are found by their outline or by pairs of finder patterns: how many frames are tried, and what
# one must be worth; how many places pairs may name.
_WORN_FRAMES: Final = 4
_PAIRS: Final = 8
_WORN_WORTH: Final = 1.15

# A picture half of which is below this is dark; of every so many pixels one is looked at, in both directions.
_DARK: Final = 48.0
_COARSE: Final = 8

# Two finder patterns that differ more in size are hardly of one code.
_PAIR: Final = 1.5

# `hybrid` asks the medium locator when the small one is no surer than this.
UNSURE: Final = 0.7

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One reading of a level, in the pixels of the whole picture."""

    reading: Reading
    preprocessing: str
    angle: int | None


@dataclass
class Scene:
    """The picture and what is known of it so far.

    picture: uint8 [height, width, 3] RGB, or [height, width] grey. locators: by size. read: quadrilaterals
    of the codes already read. unread: where a code was seen and not read.
    """

    picture: NDArray[np.uint8]
    locators: Mapping[str, Locator] = field(default_factory=dict)
    read: list[Quad] = field(default_factory=list)
    unread: list[Quad] = field(default_factory=list)

    @cached_property
    def grey(self) -> Grey:
        if self.picture.ndim == 2:
            return self.picture
        return np.asarray(cv2.cvtColor(self.picture, cv2.COLOR_RGB2GRAY))

    @cached_property
    def reduced(self) -> Variant:
        """The grey picture at most 1280 pixels a side."""
        return reduced(self.grey)

    @property
    def shrunk(self) -> bool:
        """Whether the reduced picture is another than the grey one."""
        return self.reduced.grey is not self.grey

    @property
    def filled(self) -> bool:
        """Whether the codes read leave little room for others."""
        area = sum(float(cv2.contourArea(quad)) for quad in self.read)
        return area > _FILLED * self.grey.size

    @cached_property
    def dark(self) -> bool:
        """Whether half of the picture is so dark that a decoder takes the steps in it for noise."""
        return float(np.mean(self.reduced.grey[::_COARSE, ::_COARSE] < _DARK)) >= 0.5

    @cached_property
    def finders(self) -> list[Finder]:
        """The larger finder patterns of the reduced picture: a quick look."""
        return find_finders(self.reduced.grey, (1, 2))

    @cached_property
    def all_finders(self) -> list[Finder]:
        """All finder patterns of the reduced picture."""
        return merged(find_finders(self.reduced.grey, (0,)), self.finders)

    def open_triples(self, finders: list[Finder]) -> list[Triple]:
        """Triples of the reduced picture that lie in no code already read."""
        return triples(self._free(finders), _TRIPLES)

    def open_unread(self) -> list[Quad]:
        """Places outside of the codes already read, each once."""
        found: list[Quad] = []
        for quad in self.unread:
            centre = quad.mean(axis=0)
            if not any(_inside(other, centre) for other in (*self.read, *found)):
                found.append(quad)
        return found

    @property
    def suspicious(self) -> bool:
        """Whether anything speaks for codes that were not read."""
        return self.has_small() or bool(self.open_unread()) or self.has_pair()

    def has_small(self) -> bool:
        """Whether a code that was read is so small in the reduced picture that others may be lost in it."""
        scale = max(self.reduced.grey.shape) / max(self.grey.shape)
        return any(cv2.contourArea(quad) ** 0.5 * scale < _SMALL for quad in self.read)

    def has_pair(self) -> bool:
        """Whether two finder patterns of about one size lie outside of all codes read."""
        modules = sorted(finder.module for finder in self._free(self.finders))
        return any(larger < _PAIR * smaller for smaller, larger in pairwise(modules))

    def has_triple(self) -> bool:
        """Whether three finder patterns outside of all codes read look like a code."""
        finders = self.all_finders if self.suspicious else self.finders
        return any(
            triple.cost < _SIGN_COST and grid.timing(self.reduced.grey, triple) > _SIGN_TIMING
            for triple in self.open_triples(finders)[:_SIGNS]
        )

    def _free(self, finders: list[Finder]) -> list[Finder]:
        """The finder patterns of the reduced picture that lie in no code already read."""
        if not finders or not self.read:
            return finders
        places = self.reduced.original(np.array([finder.centre for finder in finders], np.float32))
        free = np.ones(len(finders), bool)
        for quad in self.read:
            inside = ((places >= quad.min(axis=0)) & (places <= quad.max(axis=0))).all(axis=1)
            for n in np.flatnonzero(inside & free):
                free[n] = not _inside(quad, places[n])
        return [finder for finder, is_free in zip(finders, free, strict=True) if is_free]

    def covers(self, triple: Triple) -> bool:
        """Whether a code that was read lies where one of the finder patterns is."""
        finders = [triple.top_left, triple.top_right, triple.bottom_left]
        return len(self._free(finders)) < len(finders)


Level = Callable[[Scene], Iterator[Attempt | None]]


def _inside(quad: Quad, point: NDArray[np.float32]) -> bool:
    return cv2.pointPolygonTest(quad.reshape(-1, 1, 2), (float(point[0]), float(point[1])), False) >= 0


def _decoded(
    scene: Scene, base: Variant, variant: Variant, decoder: decoders.Decoder
) -> Iterator[Attempt | None]:
    """A variant of `base` through a decoder; always yields, so that the budget is looked at."""
    seen = decoder(variant.grey)

    def back(corners: Quad) -> Quad:
        return base.original(variant.original(corners))

    name = "+".join(part for part in (base.name, variant.name) if part != "raw") or "raw"
    scene.unread += [back(quad) for quad in seen.unread]
    for reading in seen.readings:
        yield Attempt(reading.at(back(reading.corners)), name, variant.angle)
    yield None


def _reduced(scene: Scene) -> Iterator[Attempt | None]:
    """zxing-cpp on the reduced picture; nothing when the picture needs no reduction."""
    if scene.shrunk:
        yield from _decoded(scene, scene.reduced, next(raw(scene.reduced.grey)), decoders.zxing)


def _whole(scene: Scene) -> Iterator[Attempt | None]:
    """zxing-cpp on the grey picture as it is."""
    variant = next(raw(scene.grey))
    yield from _decoded(scene, variant, variant, decoders.zxing)


def _strategy(strategy: str, decoder: str, scene: Scene) -> Iterator[Attempt | None]:
    """A strategy of `transforms` on the reduced picture, through one decoder."""
    for variant in STRATEGIES[strategy](scene.reduced.grey):
        yield from _decoded(scene, scene.reduced, variant, decoders.DECODERS[decoder])


def _dark(scene: Scene) -> Iterator[Attempt | None]:
    """zxing-cpp on the logarithms of the reduced picture; nothing when the picture is not dark."""
    if scene.dark:
        yield from _decoded(scene, scene.reduced, logarithms(scene.reduced.grey), decoders.zxing)


def _histogram(scene: Scene) -> Iterator[Attempt | None]:
    """zxing-cpp on the reduced picture with one threshold a row instead of one a neighbourhood."""
    yield from _decoded(
        scene, scene.reduced, next(raw(scene.reduced.grey)), partial(decoders.zxing, binarizer="global")
    )


def _grid(scene: Scene) -> Iterator[Attempt | None]:
    """The own sampler where the reduced picture has finder patterns, on the pixels of the whole one."""
    vain = 0
    for triple in scene.open_triples(scene.all_finders):
        if vain == _VAIN:
            return
        if not scene.covers(triple):
            attempt = _sampled(*_closer(scene, triple))
            vain = vain + 1 if attempt is None else 0
            yield attempt


def _closer(scene: Scene, triple: Triple) -> tuple[Variant, Triple]:
    """The part of the whole picture around a triple of the reduced one, and the triple in it."""
    if not scene.shrunk:
        return scene.reduced, triple
    outline = scene.reduced.original(triple.outline)
    middle = outline.mean(axis=0)
    around = middle + (outline - middle) * _AROUND
    left, top = np.maximum(around.min(axis=0), 0).astype(int).tolist()
    right, bottom = np.ceil(around.max(axis=0)).astype(int).tolist()
    part = np.ascontiguousarray(scene.grey[top:bottom, left:right])
    variant = Variant("part", part, np.array([[1, 0, left], [0, 1, top], [0, 0, 1.0]]))
    scale = float(scene.reduced.back[0, 0])

    def moved(finder: Finder) -> Finder:
        def there(points: Quad) -> Quad:
            return np.asarray(scene.reduced.original(points) - (left, top), np.float32)

        return Finder(there(finder.centre[None])[0], there(finder.corners), finder.module * scale)

    return variant, Triple(
        moved(triple.top_left), moved(triple.top_right), moved(triple.bottom_left), triple.cost
    )


def _grid_whole(scene: Scene) -> Iterator[Attempt | None]:
    """The own sampler on the picture at full size, tile by tile, for codes that are small in it."""
    if not scene.shrunk:
        return
    height, width = scene.grey.shape
    for top in range(0, max(height - _TILE_OVERLAP, 1), _TILE - _TILE_OVERLAP):
        for left in range(0, max(width - _TILE_OVERLAP, 1), _TILE - _TILE_OVERLAP):
            tile = np.ascontiguousarray(scene.grey[top : top + _TILE, left : left + _TILE])
            shift = np.array([[1, 0, left], [0, 1, top], [0, 0, 1.0]])
            variant = Variant("tile", tile, shift)
            for triple in triples(find_finders(tile, (0,)), 12):
                centre = variant.original(triple.top_left.centre[None])[0]
                if not any(_inside(quad, centre) for quad in scene.read):
                    yield _sampled(variant, triple)
            yield None


def _sampled(variant: Variant, triple: Triple) -> Attempt | None:
    return _attempt(variant, decoders.sampler(variant.grey, triple))


def _attempt(variant: Variant, reading: Reading | None) -> Attempt | None:
    """Of a reading in the pixels of a variant, if there is one."""
    if reading is None:
        return None
    return Attempt(reading.at(variant.original(reading.corners)), variant.name, None)


def _located(scene: Scene) -> Iterator[Attempt | None]:
    """Places where a decoder saw a code without reading it: rectified, by zxing-cpp and the own sampler."""
    for quad in scene.open_unread():
        yield _crop(scene, quad)


def _crop(scene: Scene, quad: Quad) -> Attempt | None:
    reading = decoders.located(scene.grey, quad)
    return None if reading is None else Attempt(reading, "rectified", None)


def _worn(scene: Scene) -> Iterator[Attempt | None]:
    """The own sampler bit by bit, where two finder patterns or an outline say that a code may lie."""
    likely = []
    for pair in pairs(scene.all_finders, _PAIRS):
        likely += grid.square_frames(scene.reduced.grey, pair.outline, pair.sizes)[:1]
        yield None
    for outline in outlines(scene.reduced.grey):
        likely += grid.square_frames(scene.reduced.grey, outline)[:1]
        yield None
    likely.sort(key=lambda each: -each[0])
    for worth, frame in likely[:_WORN_FRAMES]:
        if worth < _WORN_WORTH:
            break
        yield _attempt(scene.reduced, decoders.worn(scene.reduced.grey, frame))


def _locator(size: str, scene: Scene) -> Iterator[Attempt | None]:
    """What a learned locator points at, rectified; nothing when there is no such model."""
    locator = scene.locators.get(size)
    if locator is None:
        return
    for found in locator.locate(scene.picture):
        if not any(_inside(quad, found.corners.mean(axis=0)) for quad in scene.read):
            yield _crop(scene, found.corners)


def _hybrid(scene: Scene) -> Iterator[Attempt | None]:
    """The small locator, and the medium one where the small one is unsure or finds nothing."""
    small, medium = scene.locators.get("s"), scene.locators.get("m")
    places = [] if small is None else small.locate(scene.picture)
    for found in places:
        yield _crop(scene, found.corners)
    sure = bool(scene.read) and all(found.confidence > UNSURE for found in places)
    if medium is not None and not sure:
        for found in medium.locate(scene.picture):
            if not any(_inside(quad, found.corners.mean(axis=0)) for quad in scene.read):
                yield _crop(scene, found.corners)


# Numbers are stored with codes: new levels go to the end.
LEVELS: Final[dict[str, Level]] = {
    "reduced": _reduced,
    "whole": _whole,
    "grid": _grid,
    "located": _located,
    "histogram": _histogram,
    "grid-whole": _grid_whole,
    "locator-n": partial(_locator, "n"),
    "locator-s": partial(_locator, "s"),
    "locator-m": partial(_locator, "m"),
    "locator-l": partial(_locator, "l"),
    "hybrid": _hybrid,
    **{strategy: partial(_strategy, strategy, "zxing") for strategy in STRATEGIES},
    **{f"{strategy}+zbar": partial(_strategy, strategy, "zbar") for strategy in STRATEGIES},
    **{f"{strategy}+opencv": partial(_strategy, strategy, "opencv") for strategy in STRATEGIES},
    "worn": _worn,
    "dark": _dark,
}
NUMBERS: Final[dict[str, int]] = {name: number for number, name in enumerate(LEVELS, 1)}

# The levels that are tried after a code was read, each while there is such a sign of another.
_SIGNS_FOR: Final[dict[str, Callable[[Scene], bool]]] = {
    "whole": lambda scene: scene.shrunk and (len(scene.read) >= _MANY or scene.suspicious),
    "dark": lambda scene: scene.dark,
    "grid": Scene.has_triple,
    "equalize": lambda scene: scene.dark and bool(scene.open_unread()),
    "clahe": lambda scene: bool(scene.open_unread()),
}

# Levels in whose pictures zxing-cpp's Micro QR codes are taken at their word.
_UNALTERED: Final = frozenset(("reduced", "whole", "raw"))

# Chosen by measurement: without any of these, codes are lost that `mesh bench qr` knows (without `histogram`
# Micro QR codes, which it reads the second time). `grid-whole` never read one, so that it is tried by name.
_LIGHT: Final = (
    "reduced",
    "whole",
    "dark",
    "grid",
    "located",
    "equalize",
    "clahe",
    "histogram",
    "downscale",
    "worn",
)

PROFILES: Final[dict[str, tuple[str, ...]]] = {
    "ultralight": ("raw+zbar", "equalize+zbar", "downscale+zbar"),
    "light": _LIGHT,
    "onnx": ("locator-n",),
    "cascade": (*_LIGHT, "locator-n"),
    "hybrid": ("hybrid",),
}


class UnknownLevelError(ValueError):
    """There is no such level or profile. Says which there are."""


def levels_of(profile: str) -> tuple[str, ...]:
    """The levels of a profile, or of names with commas between them.

    Raises `UnknownLevelError`.
    """
    if profile in PROFILES:
        return PROFILES[profile]
    names = tuple(name.strip() for name in profile.split(","))
    unknown = [name for name in names if name not in LEVELS]
    if unknown:
        raise UnknownLevelError(
            f"There is no profile or level {unknown[0]!r}; profiles are {', '.join(PROFILES)}, "
            f"levels are {', '.join(LEVELS)}."
        )
    return names


def read(
    picture: NDArray[np.uint8],
    *,
    profile: str = "cascade",
    budget_ms: float = BUDGET,
    locators: Mapping[str, Locator] | None = None,
    clock: Clock = time.perf_counter,
) -> Result:
    """Every code of a picture, uint8 [height, width, 3] RGB upright or [height, width] grey.

    profile: one of `PROFILES`, or level names with commas between them. budget_ms: after so long no further
    attempt begins, and the result says `truncated`. clock: seconds.

    Raises `UnknownLevelError`.
    """
    began = clock()
    scene = Scene(picture, locators or {})
    gathered = _Gathered(scene)
    tried: list[str] = []
    truncated = False
    for name in levels_of(profile):
        if gathered.codes and (scene.filled or not _SIGNS_FOR.get(name, _never)(scene)):
            continue
        tried.append(name)
        for attempt in LEVELS[name](scene):
            spent = (clock() - began) * 1000
            if attempt is not None:
                gathered.add(attempt, name, spent)
            if spent > budget_ms:
                truncated = True
                break
        if truncated:
            break
    height, width = picture.shape[:2]
    return Result(
        codes=joined(tuple(gathered.codes)),
        truncated=truncated,
        processing_time_ms=round((clock() - began) * 1000, 3),
        width=width,
        height=height,
        levels=tuple(tried),
    )


def _never(_: Scene) -> bool:
    return False


class _Gathered:
    """The codes read so far, each once."""

    def __init__(self, scene: Scene) -> None:
        self.codes: list[QrCode] = []
        self._scene = scene
        self._doubtful: dict[tuple[str, bytes], str] = {}

    def add(self, attempt: Attempt, level: str, spent: float) -> None:
        reading = attempt.reading
        if not self._proven(attempt, level) or self._known(reading):
            return
        self._scene.read.append(reading.corners)
        self.codes.append(
            QrCode(
                content=reading.content,
                data=reading.data,
                corners=tuple((round(float(x), 2), round(float(y), 2)) for x, y in reading.corners),
                decoder=reading.decoder,
                level_used=NUMBERS[level],
                level=level,
                preprocessing_applied=attempt.preprocessing != "raw",
                preprocessing=attempt.preprocessing,
                rotation_angle=attempt.angle,
                confidence=confidence(reading.unused),
                processing_time_ms=round(spent, 3),
                symbology=reading.symbology,
                sequence=reading.sequence,
            )
        )

    def _proven(self, attempt: Attempt, level: str) -> bool:
        reading = attempt.reading
        # A code that says nothing is what noise looks like when it passes.
        if not reading.data and not reading.content:
            return False
        if reading.symbology == "qr" or level in _UNALTERED:
            return True
        key = (reading.content, reading.data)
        first = self._doubtful.setdefault(key, level)
        return first != level

    def _known(self, reading: Reading) -> bool:
        """The same content in the same place; a code within another one is a code of its own."""
        centre = reading.corners.mean(axis=0)
        return any(
            (code.content, code.data) == (reading.content, reading.data)
            and (
                _inside(np.array(code.corners, np.float32), centre)
                or _inside(reading.corners, np.array(code.corners, np.float32).mean(axis=0))
            )
            for code in self.codes
        )
