"""The structure of a QR code symbol: modules <-> codewords, and Reed-Solomon correction with erasures.

After ISO/IEC 18004:2015 (QR Code model 2, versions 1 to 40). A symbol is a square of N x N modules,
N = 17 + 4 * version, held as bool [N, N] with True for dark, row by row from the top left corner; the three
finder patterns are in the top left, top right and bottom left corners.

zxing-cpp corrects errors too, but it takes every module for as good as any other. Who sampled the modules
knows which of them lie under glare or a scratch; an erased codeword costs half as much redundancy as a wrong
one, and of a codeword with one spoilt module seven bits are good (`recovered`). Contents are never parsed
here: the corrected symbol is drawn again, for a decoder to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qr_decoder.domain import bits
from visionmesh.qr_code import Place

Modules = NDArray[np.bool_]

# Redundancy that is never spent on erasures: random modules pass by chance once in 256 ** 4 blocks.
SPARE: Final = 4

# Correction levels by their two bits in the format information (table 12).
_LEVELS: Final = {0b01: 0, 0b00: 1, 0b11: 2, 0b10: 3}

# Codewords of correction in each block, by level (L, M, Q, H) and version 1 to 40 (table 9).
_CORRECTION: Final = (
    (7, 10, 15, 20, 26, 18, 20, 24, 30, 18, 20, 24, 26, 30, 22, 24, 28, 30, 28, 28,
     28, 28, 30, 30, 26, 28, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30),
    (10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24, 28, 28, 26, 26, 26,
     26, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28),
    (13, 22, 18, 26, 18, 24, 18, 22, 20, 24, 28, 26, 24, 20, 30, 24, 28, 28, 26, 30,
     28, 30, 30, 30, 30, 28, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30),
    (17, 28, 22, 16, 22, 28, 26, 26, 24, 28, 24, 28, 22, 24, 24, 30, 28, 28, 26, 28,
     30, 24, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30),
)  # fmt: skip

# Number of blocks, likewise.
_BLOCKS: Final = (
    (1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 6, 6, 6, 6, 7, 8,
     8, 9, 9, 10, 12, 12, 12, 13, 14, 15, 16, 17, 18, 19, 19, 20, 21, 22, 24, 25),
    (1, 1, 1, 2, 2, 4, 4, 4, 5, 5, 5, 8, 9, 9, 10, 10, 11, 13, 14, 16,
     17, 17, 18, 20, 21, 23, 25, 26, 28, 29, 31, 33, 35, 37, 38, 40, 43, 45, 47, 49),
    (1, 1, 2, 2, 4, 4, 6, 6, 8, 8, 8, 10, 12, 16, 12, 17, 16, 18, 21, 20,
     23, 23, 25, 27, 29, 34, 34, 35, 38, 40, 43, 45, 48, 51, 53, 56, 59, 62, 65, 68),
    (1, 1, 2, 4, 4, 4, 5, 6, 8, 8, 11, 11, 16, 16, 18, 16, 19, 21, 25, 25,
     25, 34, 30, 32, 35, 37, 40, 42, 45, 48, 51, 54, 57, 60, 63, 66, 70, 74, 77, 81),
)  # fmt: skip

_SEQUENCE_MODE: Final = 0b0011

# Formats that are tried of a damaged symbol: each wrong one costs a correction that fails.
_FORMATS_TRIED: Final = 2


@dataclass(frozen=True, slots=True)
class Format:
    """level: 0 to 3 for L, M, Q, H. mask: 0 to 7. distance: bits that differ from what was sampled."""

    level: int
    mask: int
    distance: int


@dataclass(frozen=True, slots=True)
class Repaired:
    """modules: the symbol without errors. used: the share of the redundancy that it took, 0 to 1."""

    modules: Modules
    used: float
    sequence: Place | None


def size_of(version: int) -> int:
    """Modules along one side."""
    return 17 + 4 * version


def version_of(size: int) -> int | None:
    """The version with that many modules a side, None when there is none."""
    version, rest = divmod(size - 17, 4)
    return version if rest == 0 and 1 <= version <= 40 else None


@cache
def alignment_centres(version: int) -> tuple[int, ...]:
    """Rows (and columns) of the centres of alignment patterns, annex E."""
    if version == 1:
        return ()
    count = version // 7 + 2
    last = size_of(version) - 7
    step = 26 if version == 32 else -(-(last - 6) // (2 * count - 2)) * 2
    return (6, *(last - step * n for n in range(count - 2, -1, -1)))


@cache
def alignment_patterns(version: int) -> tuple[tuple[int, int], ...]:
    """Row and column of the centre of each alignment pattern; none lies on a finder pattern."""
    at = alignment_centres(version)
    corners = {(at[0], at[0]), (at[0], at[-1]), (at[-1], at[0])} if at else set()
    return tuple((row, column) for row in at for column in at if (row, column) not in corners)


@lru_cache(maxsize=40)
def function_patterns(version: int) -> tuple[Modules, Modules]:
    """The modules of finder, timing and alignment patterns as they have to be, and where they are known.

    Both bool [N, N]. Format and version information are not among them.
    """
    size = size_of(version)
    dark, known = np.zeros((size, size), bool), np.zeros((size, size), bool)
    dark[6, ::2] = dark[::2, 6] = True
    known[6, :] = known[:, 6] = True
    finder = np.ones((7, 7), bool)
    finder[1:6, 1:6] = False
    finder[2:5, 2:5] = True
    for row, column in ((0, 0), (0, size - 7), (size - 7, 0)):
        top, left = max(row - 1, 0), max(column - 1, 0)
        dark[top : row + 8, left : column + 8] = False
        known[top : row + 8, left : column + 8] = True
        dark[row : row + 7, column : column + 7] = finder
    for row, column in alignment_patterns(version):
        dark[row - 2 : row + 3, column - 2 : column + 3] = True
        dark[row - 1 : row + 2, column - 1 : column + 2] = False
        dark[row, column] = True
        known[row - 2 : row + 3, column - 2 : column + 3] = True
    return dark, known


@lru_cache(maxsize=40)
def _data_modules(version: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the modules that hold codewords, in the order of their bits (section 7.7.3)."""
    size = size_of(version)
    taken = function_patterns(version)[1].copy()
    taken[:9, :9] = taken[:9, size - 8 :] = taken[size - 8 :, :9] = True
    if version >= 7:
        taken[:6, size - 11 : size - 8] = taken[size - 11 : size - 8, :6] = True
    rows, columns = [], []
    upwards = True
    for right in (*range(size - 1, 6, -2), 5, 3, 1):
        for row in range(size - 1, -1, -1) if upwards else range(size):
            for column in (right, right - 1):
                if not taken[row, column]:
                    rows.append(row)
                    columns.append(column)
        upwards = not upwards
    return np.array(rows), np.array(columns)


@lru_cache(maxsize=16)
def _mask(size: int, pattern: int) -> Modules:
    """Where the data modules are inverted (table 10)."""
    row, column = np.indices((size, size))
    value = (
        (row + column) % 2,
        row % 2,
        column % 3,
        (row + column) % 3,
        (row // 2 + column // 3) % 2,
        row * column % 2 + row * column % 3,
        (row * column % 2 + row * column % 3) % 2,
        ((row + column) % 2 + row * column % 3) % 2,
    )[pattern]
    return np.asarray(value == 0)


def _format_word(data: int) -> int:
    """The 15 bits that stand for 5 bits of format: BCH(15, 5), masked (annex C)."""
    rest = data << 10
    for bit in range(14, 9, -1):
        if rest >> bit & 1:
            rest ^= 0b10100110111 << (bit - 10)
    return (data << 10 | rest) ^ 0b101010000010010


def _version_word(version: int) -> int:
    """The 18 bits that stand for a version from 7 on: BCH(18, 6) (annex D)."""
    rest = version << 12
    for bit in range(17, 11, -1):
        if rest >> bit & 1:
            rest ^= 0b1111100100101 << (bit - 12)
    return version << 12 | rest


# Of versions 7 to 40, bool [34, 18], the lowest bit first: the order of the modules beside the top right
# finder pattern, row by row, and beside the bottom left one, column by column.
VERSION_WORDS: Final = np.array(
    [[_version_word(v) >> bit & 1 for bit in range(18)] for v in range(7, 41)], bool
)

_FORMAT_WORDS: Final = np.array(
    [[_format_word(data) >> bit & 1 for bit in range(15)] for data in range(32)], bool
)
# Row and column of bits 0 to 14 of the copy around the top left finder pattern.
_FORMAT_FIRST: Final = (
    *((n, 8) for n in range(6)),
    (7, 8),
    (8, 8),
    (8, 7),
    *((8, 14 - n) for n in range(9, 15)),
)


def read_format(modules: Modules) -> tuple[Format, ...]:
    """The formats that the two copies may stand for, nearest first: at most 3 wrong bits of 15."""
    found: dict[int, int] = {}
    for copy in _format_copies(modules):
        distances = (copy != _FORMAT_WORDS).sum(axis=1)
        best = int(distances.argmin())
        if distances[best] <= 3:
            found[best] = min(found.get(best, 99), int(distances[best]))
    return tuple(
        Format(_LEVELS[data >> 3], data & 7, distance)
        for data, distance in sorted(found.items(), key=lambda item: item[1])
    )


def repaired(modules: Modules, reliability: NDArray[np.float32] | None = None) -> Repaired | None:
    """The symbol as it was before damage, None when there is more of it than the redundancy allows.

    modules: bool [N, N]. reliability: float32 [N, N], larger where a module is surer to be what it seems;
    without it nothing is erased.

    Erasures are taken from the least reliable codewords, more and more of them (generalised minimum
    distance decoding, Forney 1966), and `SPARE` codewords of a block's redundancy always remain as proof.
    """
    version = version_of(len(modules))
    if version is None:
        return None
    for found in read_format(modules):
        result = _repaired_as(modules, reliability, version, found)
        if result is not None:
            return result
    return None


def recovered(modules: Modules, sureness: NDArray[np.float32]) -> tuple[Repaired, bool] | None:
    """The symbol as it was before scratches and stains that correction by codewords has no remedy for.

    modules: bool [N, N], as they are seen. sureness: float32 [N, N], 0 or more: how much likelier (as the
    logarithm) each module is to be what it seems than not. Also returns whether the symbol is mirrored. See
    `bits`.
    """
    version = version_of(len(modules))
    if version is None:
        return None
    ways = [(modules, sureness, False), (modules.T, sureness.T, True)]
    formats = [(against, found, way) for way in ways for against, found in _formats(*way[:2])]
    formats.sort(key=lambda each: each[0])
    for _, found, (seen, sure, mirrored) in formats[:_FORMATS_TRIED]:
        result = _recovered_as(seen, sure, version, found)
        if result is not None:
            return result, mirrored
    return None


def _formats(modules: Modules, sureness: NDArray[np.float32]) -> Iterator[tuple[float, Format]]:
    """All formats, each with how much of what is sure in both copies it contradicts."""
    wrong = _format_copies(modules) != _FORMAT_WORDS[:, None]
    against = (wrong * _format_copies(sureness)).sum(axis=(1, 2))
    for data in range(len(_FORMAT_WORDS)):
        distance = int(wrong[data].sum(axis=1).min())
        yield float(against[data]), Format(_LEVELS[data >> 3], data & 7, distance)


def _format_copies(values: NDArray[Any]) -> NDArray[Any]:
    """What belongs to the two copies of the format information, [2, 15]."""
    size = len(values)
    first = [values[at] for at in _FORMAT_FIRST]
    second = [values[8, size - 1 - n] if n < 8 else values[size - 15 + n, 8] for n in range(15)]
    return np.array([first, second])


def sequence_of(modules: Modules) -> Place | None:
    """The structured append header of a symbol that is known to be one; cheap where there is none."""
    version = version_of(len(modules))
    if version is None:
        return None
    for found in read_format(modules):
        # The first four bits lie in the bottom right corner, whatever the version.
        corner = (modules ^ _mask(len(modules), found.mask))[:-3:-1, :-3:-1].ravel()
        if int("".join("1" if bit else "0" for bit in corner), 2) == _SEQUENCE_MODE:
            fixed = repaired(modules)
            return None if fixed is None else fixed.sequence
    return None


# Of a block's places in the symbol and its codewords of redundancy: the block without errors, and how many
# of the latter that took. None when it is beyond repair.
_Corrector = Callable[[Sequence[int], int], "tuple[list[int], int] | None"]


def _repaired_as(
    modules: Modules, reliability: NDArray[np.float32] | None, version: int, found: Format
) -> Repaired | None:
    codewords = np.packbits(_data_bits(modules, version, found)).tolist()
    trust = None if reliability is None else _data(reliability, version).min(axis=1)

    def by_codewords(places: Sequence[int], correction: int) -> tuple[list[int], int] | None:
        order = [] if trust is None else np.argsort(trust[list(places)], kind="stable").tolist()
        return _corrected([codewords[place] for place in places], correction, order)

    return _corrected_symbol(version, found, by_codewords)


def _recovered_as(
    modules: Modules, sureness: NDArray[np.float32], version: int, found: Format
) -> Repaired | None:
    every = _data_bits(modules, version, found)
    sure = _data(sureness, version)

    def by_bits(places: Sequence[int], correction: int) -> tuple[list[int], int] | None:
        block = every[list(places)]
        wrong = bits.corrected(block.ravel(), sure[list(places)].ravel(), correction)
        if wrong is None:
            return None
        wrong_codewords = int(wrong.reshape(-1, 8).any(axis=1).sum())
        corrected = np.packbits(block ^ wrong.reshape(-1, 8)).tolist()
        return corrected, min(2 * wrong_codewords, correction)

    return _corrected_symbol(version, found, by_bits)


def _data(values: NDArray[Any], version: int) -> NDArray[Any]:
    """What belongs to the bits of the codewords, [codewords, 8], of what belongs to modules."""
    rows, columns = _data_modules(version)
    whole = len(rows) // 8
    return np.asarray(values[rows, columns][: whole * 8].reshape(whole, 8))


def _data_bits(modules: Modules, version: int, found: Format) -> Modules:
    """The bits of the codewords, bool [codewords, 8], without their mask."""
    return _data(modules ^ _mask(len(modules), found.mask), version)


def _corrected_symbol(version: int, found: Format, corrected: _Corrector) -> Repaired | None:
    rows, columns = _data_modules(version)
    whole = len(rows) // 8
    correction = _CORRECTION[found.level][version - 1]
    codewords = np.zeros(whole, np.uint8)
    worst = 0.0
    for places in _blocks(version, found.level, whole):
        fixed = corrected(places, correction)
        if fixed is None:
            return None
        block, cost = fixed
        worst = max(worst, cost / correction)
        codewords[list(places)] = block
    symbol = _framed(version, found)
    symbol[rows[: whole * 8], columns[: whole * 8]] = np.unpackbits(codewords) > 0
    inverted = np.zeros_like(symbol)
    inverted[rows, columns] = _mask(len(symbol), found.mask)[rows, columns]
    first = next(_blocks(version, found.level, whole))[:3]
    return Repaired(symbol ^ inverted, worst, _sequence(codewords[list(first)].tolist()))


def _framed(version: int, found: Format) -> Modules:
    """Everything of a symbol but its data: function patterns, format and version information."""
    modules = function_patterns(version)[0].copy()
    size = len(modules)
    level = next(bits for bits, level in _LEVELS.items() if level == found.level)
    word = _FORMAT_WORDS[level << 3 | found.mask]
    for bit, at in enumerate(_FORMAT_FIRST):
        modules[at] = word[bit]
        modules[(8, size - 1 - bit) if bit < 8 else (size - 15 + bit, 8)] = word[bit]
    modules[size - 8, 8] = True
    if version >= 7:
        for bit, value in enumerate(VERSION_WORDS[version - 7]):
            row, column = bit // 3, size - 11 + bit % 3
            modules[row, column] = modules[column, row] = value
    return modules


def _blocks(version: int, level: int, whole: int) -> Iterator[tuple[int, ...]]:
    """For each block, the places of its codewords in the symbol: data, then correction (section 7.6)."""
    count, correction = _BLOCKS[level][version - 1], _CORRECTION[level][version - 1]
    short = whole // count - correction
    longer = whole % count
    first_long = count - longer
    for block in range(count):
        places = [block + count * n for n in range(short)]
        if block >= first_long:
            places.append(count * short + block - first_long)
        data = count * short + longer
        yield (*places, *(data + block + count * n for n in range(correction)))


def _sequence(data: Sequence[int]) -> Place | None:
    """Structured append: mode 4 bits, position 4, total - 1 4, parity 8 (section 8)."""
    if len(data) < 3 or data[0] >> 4 != _SEQUENCE_MODE:
        return None
    return Place(data[0] & 15, (data[1] >> 4) + 1, (data[1] & 15) << 4 | data[2] >> 4)


# Reed-Solomon codes over GF(256) with x^8 + x^4 + x^3 + x^2 + 1, roots 2^0, 2^1, ... (annex A).
_EXP: Final = [1] * 510
for _n in range(1, 510):
    _EXP[_n] = _EXP[_n - 1] << 1 ^ (0x11D if _EXP[_n - 1] & 0x80 else 0)
_LOG: Final = [0] * 256
for _n in range(255):
    _LOG[_EXP[_n]] = _n


def _times(a: int, b: int) -> int:
    return _EXP[_LOG[a] + _LOG[b]] if a and b else 0


def _at(polynomial: Sequence[int], x: int) -> int:
    """The value of a polynomial, coefficients from the constant upwards."""
    value = 0
    for coefficient in reversed(polynomial):
        value = _times(value, x) ^ coefficient
    return value


def _product(a: Sequence[int], b: Sequence[int]) -> list[int]:
    result = [0] * (len(a) + len(b) - 1)
    for n, left in enumerate(a):
        if left:
            for m, right in enumerate(b):
                result[n + m] ^= _times(left, right)
    return result


def _corrected(block: list[int], correction: int, doubtful: Sequence[int]) -> tuple[list[int], int] | None:
    """The block without errors and the redundancy that took, None when it is beyond repair.

    doubtful: places in the block, the least reliable first.
    """
    syndromes = [_at(block[::-1], _EXP[n]) for n in range(correction)]
    if not any(syndromes):
        return block, 0
    spare = min(SPARE, correction // 2)
    # Without erasures the whole of the redundancy is used, as every reader does.
    attempts = (0, *range(2, min(correction - spare, len(doubtful)) + 1, 2)) if doubtful else (0,)
    for erased in attempts:
        limit = correction if erased == 0 else correction - spare
        fixed = _solved(block, syndromes, doubtful[:erased], limit)
        if fixed is not None:
            return fixed
    return None


def _solved(
    block: list[int], syndromes: list[int], erased: Sequence[int], limit: int
) -> tuple[list[int], int] | None:
    """One attempt: Berlekamp-Massey started from the erasures, then Chien's search and Forney's formula."""
    length, count = len(block), len(syndromes)
    locator = [1]
    for place in erased:
        locator = _product(locator, [1, _EXP[length - 1 - place]])
    previous, discrepancy_before, gap, order = list(locator), 1, 1, len(erased)
    for n in range(len(erased), count):
        discrepancy = 0
        for k, coefficient in enumerate(locator):
            if k <= n:
                discrepancy ^= _times(coefficient, syndromes[n - k])
        if discrepancy == 0:
            gap += 1
            continue
        factor = _EXP[(_LOG[discrepancy] - _LOG[discrepancy_before]) % 255]
        shifted = [0] * gap + [_times(factor, coefficient) for coefficient in previous]
        updated = [
            (locator[k] if k < len(locator) else 0) ^ (shifted[k] if k < len(shifted) else 0)
            for k in range(max(len(locator), len(shifted)))
        ]
        if 2 * order <= n + len(erased):
            previous, discrepancy_before, gap, order = locator, discrepancy, 1, n + 1 + len(erased) - order
        else:
            gap += 1
        locator = updated
    while locator[-1] == 0:
        locator.pop()
    errors = len(locator) - 1 - len(erased)
    if errors < 0 or len(erased) + 2 * errors > limit:
        return None
    places = [at for at in range(length) if _at(locator, _EXP[(255 - (length - 1 - at)) % 255]) == 0]
    if len(places) != len(locator) - 1:
        return None
    evaluator = _product(syndromes, locator)[:count]
    derivative = [coefficient if n % 2 == 0 else 0 for n, coefficient in enumerate(locator[1:])]
    fixed = list(block)
    for at in places:
        power = length - 1 - at
        inverse = _EXP[(255 - power) % 255]
        below = _at(derivative, inverse)
        if below == 0:
            return None
        magnitude = _times(_at(evaluator, inverse), _EXP[(255 - _LOG[below]) % 255])
        fixed[at] ^= _times(magnitude, _EXP[power])
    if any(_at(fixed[::-1], _EXP[n]) for n in range(count)):
        return None
    return fixed, len(erased) + 2 * errors
