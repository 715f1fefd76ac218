"""Correction bit by bit, of symbols of which single modules are spoilt."""

from __future__ import annotations

import numpy as np
import pytest
import segno

from qr_decoder.domain import bits, symbol


def modules_of(level: str, version: int = 5) -> symbol.Modules:
    content = "spoilt here and there"
    code = segno.make(content, version=version, error=level, boost_error=False, micro=False)
    return np.array([list(row) for row in code.matrix], bool)


def spoilt(
    modules: symbol.Modules, share: float, seed: int = 1
) -> tuple[symbol.Modules, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """Modules of which a share is anything, and known for it; the finder patterns among them."""
    generator = np.random.default_rng(seed)
    unknown = generator.random(modules.shape) < share
    seen = np.where(unknown, generator.random(modules.shape) < 0.5, modules)
    return seen, np.where(unknown, 0.1, 5.0).astype(np.float32)


# Two thirds and more of what the redundancy of each level could solve for, in modules.
@pytest.mark.parametrize(("level", "share"), [("l", 0.12), ("m", 0.25), ("q", 0.35), ("h", 0.45)])
def test_modules_that_are_unknown_here_and_there_are_solved_for(level: str, share: float) -> None:
    modules = modules_of(level)
    seen, sureness = spoilt(modules, share)
    assert symbol.repaired(seen, sureness) is None
    found = symbol.recovered(seen, sureness)
    assert found is not None
    repaired, mirrored = found
    assert (repaired.modules == modules).all()
    assert not mirrored
    assert repaired.used > 0.5


def test_a_mirrored_symbol_is_solved_too() -> None:
    modules = modules_of("h")
    seen, sureness = spoilt(modules, 0.4)
    found = symbol.recovered(seen.T, sureness.T)
    assert found is not None
    assert found[1]
    assert (found[0].modules == modules).all()


def test_two_modules_that_only_seem_sure_are_found() -> None:
    modules = modules_of("h")
    seen, sureness = spoilt(modules, 0.3)
    for at in ((15, 20), (28, 30)):
        seen[at] = not modules[at]
        sureness[at] = 5.0
    found = symbol.recovered(seen, sureness)
    assert found is not None
    assert (found[0].modules == modules).all()


def test_more_than_the_redundancy_is_not_guessed_at() -> None:
    seen, sureness = spoilt(modules_of("h"), 0.8)
    assert symbol.recovered(seen, sureness) is None


def test_noise_never_passes() -> None:
    generator = np.random.default_rng(7)
    for _ in range(100):
        size = symbol.size_of(int(generator.integers(1, 8)))
        noise = generator.random((size, size)) < 0.5
        sureness = generator.exponential(1.0, (size, size)).astype(np.float32)
        assert symbol.recovered(noise, sureness) is None


def test_a_word_is_chance_or_right_by_how_sure_the_bits_are_that_it_contradicts() -> None:
    """Of 80 equations 60 are spent on unknown bits: the others alone are no proof."""
    unknown = np.random.default_rng(3).permutation(8 * 26)[:60]
    # Nothing but zeros is a word of the code.
    wrong = np.zeros(8 * 26, bool)
    wrong[unknown[:20]] = True
    sureness = np.full(8 * 26, 3, np.float32)
    sureness[unknown[:20]], sureness[unknown[20:]] = 0.05, 0.5
    found = bits.corrected(wrong, sureness, 10)
    assert found is not None
    assert (found == wrong).all()
    sureness[unknown[:20]], sureness[unknown[20:]] = 0.5, 0.05
    assert bits.corrected(wrong, sureness, 10) is None


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_few_bits_that_only_seem_sure_are_looked_for(count: int) -> None:
    generator = np.random.default_rng(5)
    unknown = generator.permutation(8 * 40)
    wrong = np.zeros(8 * 40, bool)
    wrong[unknown[:60]] = generator.random(60) < 0.5
    sureness = np.where(np.isin(np.arange(8 * 40), unknown[:80]), 0.1, 3).astype(np.float32)
    # They are among the least sure of what isn't solved for.
    wrong[unknown[100 : 100 + count]] = True
    sureness[unknown[100:140]] = 2.5
    found = bits.corrected(wrong, sureness, 20)
    assert found is not None
    assert (found == wrong).all()


def test_a_block_without_errors_has_none() -> None:
    nothing = np.zeros(8 * 26, bool)
    found = bits.corrected(nothing, np.ones(8 * 26, np.float32), 16)
    assert found is not None
    assert not found.any()
