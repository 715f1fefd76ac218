"""Reed-Solomon correction bit by bit: for symbols that scratches and stains spoilt a module here and there.

A codeword with one spoilt module of eight is lost to a correction by codewords, though seven bits of it are
good. The code is linear over bits as well: 8 equations for each codeword of redundancy, and each unknown bit
costs one of them. So the least sure bits are solved for (ordered statistics decoding, Fossorier and Lin
1995), and what is left over of the equations proves the rest, of which up to two bits may be wrong still.
With 60 % of a symbol of level H unknown that is enough; codewords could be lost in about half as many places.

**What is trusted.** At least 32 equations of every block are never spent: bits are solved for until 64, 48
or 32 equations are left, and one or two wrong bits are looked for among the others only while there are at
most 2 ** (left - 32) ways to choose them. So noise passes a block once in 2 ** 32 attempts, as it does where
`symbol.SPARE` codewords are kept. What passes may contradict at most 12 % of all sureness.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]

# Equations that are left to prove the bits that are not solved for, the most first. A set of wrong bits fits
# k equations by chance once in 2 ** k.
_LEFT: Final = (64, 48, 32)

# As many of them are proof, whatever was tried: as much as four codewords are for a correction by codewords.
_PROOF: Final = 32

# The share of all sureness that a correction may contradict. Symbols that were read with 40 % of their area
# spoilt contradicted 6 %; what fits by chance contradicts half of what was solved for.
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
    equations = _Equations(checks[:, order], syndrome)
    for left in _LEFT:
        if equations.solve_down_to(left):
            wrong = _few(*equations.left())
            if wrong is not None:
                found = np.zeros_like(bits)
                found[order] = equations.solution(wrong)
                return found if sureness[found].sum() <= _CONTRADICTED * sureness.sum() else None
    return None


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
        self._solved: list[int] = []

    def solve_down_to(self, left: int) -> bool:
        """Solves until so many equations are left over; False when there are not as many to begin with."""
        if len(self._rows) - len(self._solved) < left:
            return False
        while len(self._rows) - len(self._solved) > left:
            if self._next == self._columns:
                return False
            self._solve_for(self._next)
            self._next += 1
        return True

    def _solve_for(self, column: int) -> None:
        has = self._rows[:, column >> 3] >> (7 - (column & 7)) & 1 > 0
        rank = len(self._solved)
        usable = np.flatnonzero(has[rank:])
        if not len(usable):
            return
        row = rank + int(usable[0])
        self._words[[rank, row]] = self._words[[row, rank]]
        has[[rank, row]] = has[[row, rank]]
        has[rank] = False
        self._words[has] ^= self._words[rank]
        self._solved.append(column)

    def _bits(self, rows: slice) -> Bits:
        return np.unpackbits(self._rows[rows], axis=1)[:, : self._columns + 1] > 0

    def left(self) -> tuple[Bits, Bits]:
        """The equations left over, bool [M, columns], and their right sides, bool [M]."""
        rows = self._bits(slice(len(self._solved), None))
        return rows[:, :-1], rows[:, -1]

    def solution(self, wrong: list[int]) -> Bits:
        """All wrong bits, from those among the ones that were not solved for."""
        rows = self._bits(slice(len(self._solved)))
        found = np.zeros(self._columns, bool)
        found[wrong] = True
        found[self._solved] = rows[:, -1] ^ (rows[:, wrong].sum(axis=1) % 2 > 0)
        return found


def _few(left: Bits, right: Bits) -> list[int] | None:
    """At most two wrong bits that explain the right sides, as columns; None when there are none."""
    if not right.any():
        return []
    # At most 64 equations: an unknown's part in all of them is one number.
    worth = np.uint64(1) << np.arange(len(left), dtype=np.uint64)
    columns = (left.T * worth).sum(axis=1, dtype=np.uint64)
    wanted = (right * worth).sum(dtype=np.uint64)
    # Those that were solved for have no part left.
    tried = np.flatnonzero(columns)
    order = tried[np.argsort(columns[tried], kind="stable")]
    ordered = columns[order]
    spare = 2.0 ** (len(left) - _PROOF)
    for partners, candidates in ((np.zeros(1, np.uint64), len(tried)), (columns[tried], len(tried) ** 2 / 2)):
        if candidates > spare:
            return None
        sought = wanted ^ partners
        at = np.minimum(np.searchsorted(ordered, sought), len(ordered) - 1)
        hits = np.flatnonzero(ordered[at] == sought)
        if len(hits):
            first = int(order[at[hits[0]]])
            return [first] if len(partners) == 1 else [first, int(tried[hits[0]])]
    return None
