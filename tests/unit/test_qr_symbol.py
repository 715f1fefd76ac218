"""The symbol's structure: tables, error correction with erasures, structured append."""

from __future__ import annotations

import numpy as np
import pytest
import segno

from qr_decoder.domain import symbol


def modules_of(code: segno.QRCode) -> symbol.Modules:
    return np.array([list(row) for row in code.matrix], bool)


def made(version: int, level: str) -> symbol.Modules:
    content = "A1A1" if version < 5 else "Hello, world. " * 2
    return modules_of(segno.make(content, version=version, error=level, boost_error=False, micro=False))


@pytest.mark.parametrize("level", "lmqh")
def test_a_symbol_without_damage_is_its_own_repair_in_every_version(level: str) -> None:
    for version in range(1, 41):
        modules = made(version, level)
        found = symbol.repaired(modules)
        assert found is not None, version
        assert (found.modules == modules).all(), version
        assert found.used == 0


def test_wrong_modules_are_corrected_and_counted() -> None:
    modules = made(4, "h")
    damaged = modules.copy()
    damaged[12:16, 12:16] ^= True
    found = symbol.repaired(damaged)
    assert found is not None
    assert (found.modules == modules).all()
    assert 0 < found.used < 1


def test_erasures_repair_what_errors_alone_do_not() -> None:
    modules = made(13, "h")
    size = len(modules)
    side = int(size * 0.42)
    start = size // 2 - side // 2 + 3
    damaged = modules.copy()
    damaged[start : start + side, start : start + side] = True
    trust = np.ones((size, size), np.float32)
    trust[start : start + side, start : start + side] = 0.01
    assert symbol.repaired(damaged) is None
    found = symbol.repaired(damaged, trust)
    assert found is not None
    assert (found.modules == modules).all()


def test_noise_never_passes() -> None:
    generator = np.random.default_rng(5)
    for _ in range(200):
        size = symbol.size_of(int(generator.integers(1, 6)))
        noise = generator.random((size, size)) < 0.5
        assert symbol.repaired(noise, generator.random((size, size)).astype(np.float32)) is None


def test_sizes_that_no_version_has_are_none() -> None:
    assert symbol.version_of(20) is None
    assert symbol.version_of(181) is None
    assert symbol.repaired(np.zeros((20, 20), bool)) is None


def test_the_place_in_a_structured_append_message_is_read() -> None:
    parts = segno.make_sequence("one message in three symbols " * 6, symbol_count=3)
    places = [symbol.sequence_of(modules_of(part)) for part in parts]
    assert [None if place is None else (place.position, place.total) for place in places] == [
        (0, 3),
        (1, 3),
        (2, 3),
    ]
    assert len({place.parity for place in places if place is not None}) == 1
    assert symbol.sequence_of(made(3, "m")) is None
