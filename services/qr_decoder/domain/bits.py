"""Reed-Solomon correction bit by bit: for symbols that scratches and stains spoilt a module here and there.

A codeword with one spoilt module of eight is lost to a correction by codewords, though seven bits of it are
good. The code is linear over bits as well: 8 equations for each codeword of redundancy, and each unknown bit
costs one of them. So the least sure bits are solved for (ordered statistics decoding, Fossorier and Lin
1995), and what is left over of the equations proves the rest, of which up to two bits may be wrong still.
With 60 % of a symbol of level H unknown that is enough; codewords could be lost in about half as many places.

**What is trusted.** A wrong word of the code passes for what was seen only by chance, and a block is taken
only when that chance is at most 1 in 2 ** 32, as where `symbol.SPARE` codewords are kept. Each equation left
over halves it; each doubling of the sets of wrong bits that were tried doubles it; and a wrong word would
contradict half of the bits that were solved for, so that one which contradicts few of them, and not the sure
ones, is the less likely to be chance, by Hoeffding's inequality.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import comb, log, log2
from typing import Final

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]

# Halvings of the chance that a block is not what it is taken for.
_PROOF: Final = 32.0

# Equations that are left over when wrong bits are looked for among those that were not solved for, the most
# first: at most 64, so that an unknown's part in all of them is one number.
_LEFT: Final = (64, 48, 40, 32, 24, 16)

# Wrong bits that are looked for at most, and the unsurest bits among which three and four are: more cost time
# and tries, and find no more.
_MOST_WRONG: Final = 4
_WINDOW: Final = 96

# No more of the proof than this is expected of what a word contradicts.
_SOFT: Final = 16.0

# The share of all sureness that a correction may contradict. Symbols that were read with 40 % of their area
# spoilt contradicted 6 %.
_CONTRADICTED: Final = 0.12


def corrected(bits: Bits, sureness: NDArray[np.float32], correction: int) -> Bits | None:
    """The bits that are wrong, bool [8 * n]; None when they can't be told.

    bits: bool [8 * n], the codewords of a block, the highest bit of each first; the last `correction`
    codewords are its redundancy. sureness: float32 [8 * n], 0 or more, larger where a bit is surer.
    """
    checks = _checks(len(bits) // 8, correction)
    syndrome = checks[:, bits].sum(axis=1) % 2 > 0
    if not syndrome.any():
        return np.zeros_like(bits)
    order = np.argsort(sureness, kind="stable")
    sorted_sureness = sureness[order].astype(np.float64)
    most = _CONTRADICTED * sorted_sureness.sum()
    equations = _Equations(checks[:, order], syndrome)
    for left in _LEFT:
        if not equations.solve_down_to(left):
            continue
        for wrong, doublings in _few(*equations.left(), left - _PROOF + _SOFT):
            found = equations.solution(wrong)
            proof = left - doublings + _soft_proof(sorted_sureness, found, equations.solved)
            if proof >= _PROOF and sorted_sureness[found].sum() <= most:
                result = np.zeros_like(bits)
                result[order] = found
                return result
    return None


def _soft_proof(sureness: NDArray[np.float64], wrong: Bits, solved: list[int]) -> float:
    """How unlikely it is that a random word contradicts so little of what was solved for, as halvings.

    Hoeffding (1963): a sum of independent s or 0, each as likely, is below its mean by d at most once in
    exp(2 d ** 2 / sum of s ** 2).
    """
    each = sureness[solved]
    below = each.sum() / 2 - each[wrong[solved]].sum()
    squares = float((each * each).sum())
    if below <= 0 or squares == 0:
        return 0.0
    return float(2 * below * below / squares / log(2))


@lru_cache(maxsize=32)
def _checks(count: int, correction: int) -> Bits:
    """What a single wrong bit does to the syndromes: bool [8 * correction, 8 * count]."""
    powers = np.zeros(255, np.uint8)
    value = 1
    for n in range(255):
        powers[n] = value
        value = value << 1 ^ (0x11D if value & 0x80 else 0)
    # Bit b of codeword j is 2 ** (7 - b) there, and is taken times 2 ** (i * (count - 1 - j)) in syndrome i.
    position = count - 1 - np.arange(8 * count) // 8
    exponent = np.arange(correction)[:, None] * position + (7 - np.arange(8 * count) % 8)
    return np.unpackbits(powers[exponent % 255][:, None, :], axis=1).reshape(8 * correction, -1) > 0


class _Equations:
    """Linear equations over bits, solved for one unknown after the other, from the first column on."""

    def __init__(self, matrix: Bits, right: Bits) -> None:
        self._columns = matrix.shape[1]
        # Eight columns a byte: adding two equations is then one operation on a few words.
        packed = np.packbits(np.concatenate([matrix, right[:, None]], axis=1), axis=1)
        self._rows = np.ascontiguousarray(np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))))
        self._words = self._rows.view(np.uint64)
        self._next = 0
        self.solved: list[int] = []

    def solve_down_to(self, left: int) -> bool:
        """Solves until so many equations are left over; False when there are not as many to begin with."""
        if len(self._rows) - len(self.solved) < left:
            return False
        while len(self._rows) - len(self.solved) > left:
            if self._next == self._columns:
                return False
            self._solve_for(self._next)
            self._next += 1
        return True

    def _solve_for(self, column: int) -> None:
        has = self._rows[:, column >> 3] >> (7 - (column & 7)) & 1 > 0
        rank = len(self.solved)
        usable = np.flatnonzero(has[rank:])
        if not len(usable):
            return
        row = rank + int(usable[0])
        self._words[[rank, row]] = self._words[[row, rank]]
        has[[rank, row]] = has[[row, rank]]
        has[rank] = False
        self._words[has] ^= self._words[rank]
        self.solved.append(column)

    def _bits(self, rows: slice) -> Bits:
        return np.unpackbits(self._rows[rows], axis=1)[:, : self._columns + 1] > 0

    def left(self) -> tuple[Bits, Bits]:
        """The equations left over, bool [M, columns], and their right sides, bool [M]."""
        rows = self._bits(slice(len(self.solved), None))
        return rows[:, :-1], rows[:, -1]

    def solution(self, wrong: list[int]) -> Bits:
        """All wrong bits, from those among the ones that were not solved for."""
        rows = self._bits(slice(len(self.solved)))
        found = np.zeros(self._columns, bool)
        found[wrong] = True
        found[self.solved] = rows[:, -1] ^ (rows[:, wrong].sum(axis=1) % 2 > 0)
        return found


def _few(left: Bits, right: Bits, most_doublings: float) -> Iterator[tuple[list[int], float]]:
    """Sets of few wrong bits that explain the right sides, as columns, with how many sets were tried by then.

    The number of sets is given as its logarithm to base 2, at most `most_doublings`.
    """
    if not right.any():
        yield [], 0.0
    worth = np.uint64(1) << np.arange(len(left), dtype=np.uint64)
    columns = (left.T * worth).sum(axis=1, dtype=np.uint64)
    wanted = (right * worth).sum(dtype=np.uint64)
    # Those that were solved for have no part left. The others are in order of their sureness.
    among = np.flatnonzero(columns)
    single = _Sums(columns[among], among[:, None])
    tried = 1.0
    pairs: _Sums | None = None
    for count in range(1, _MOST_WRONG + 1):
        tried += comb(len(among) if count < 3 else min(len(among), _WINDOW), count)
        if log2(tried) > most_doublings:
            return
        if count == 3:
            pairs = _pairs(columns, among[:_WINDOW])
        if count == 1:
            found = single.that_make(wanted)
        elif count == 2:
            found = single.with_one_of(single, wanted)
        else:
            assert pairs is not None
            found = pairs.with_one_of(single if count == 3 else pairs, wanted)
        for wrong in found:
            if len(set(wrong)) == count:
                yield wrong, log2(tried)


class _Sums:
    """Sums of columns, to be looked up. values: uint64 [M]. members: intp [M, K], the columns of each."""

    def __init__(self, values: NDArray[np.uint64], members: NDArray[np.intp]) -> None:
        order = np.argsort(values)
        self._values = values[order]
        self._members = members[order]

    def that_make(self, wanted: np.uint64) -> Iterator[list[int]]:
        begin, end = (int(np.searchsorted(self._values, wanted, side)) for side in ("left", "right"))
        yield from self._members[begin:end].tolist()

    def with_one_of(self, others: _Sums, wanted: np.uint64) -> Iterator[list[int]]:
        """Those that make what is wanted together with one of others."""
        if not len(others._values):
            return
        sought = self._values ^ wanted
        at = np.minimum(np.searchsorted(others._values, sought), len(others._values) - 1)
        for hit in np.flatnonzero(others._values[at] == sought):
            yield [*self._members[hit].tolist(), *others._members[at[hit]].tolist()]


def _pairs(columns: NDArray[np.uint64], among: NDArray[np.intp]) -> _Sums:
    first, second = np.triu_indices(len(among), 1)
    first, second = among[first], among[second]
    return _Sums(columns[first] ^ columns[second], np.stack([first, second], 1))
