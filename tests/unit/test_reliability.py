"""The reliability run's own arithmetic: what it strikes, and that it sees what is wrong."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from benchmarks.reliability import codes_of, picture, text_of
from benchmarks.reliability_checks import Checks, unlike
from chaos.strikes import spread


def test_every_target_gets_its_share_of_blows_all_along_the_uploads() -> None:
    blows = spread(["a", "b", "c"], 9, 900, random.Random(1))
    assert Counter(blow.target for blow in blows) == {"a": 3, "b": 3, "c": 3}
    assert [blow.at // 100 for blow in blows] == list(range(9))


def test_nothing_is_struck_where_nothing_is_asked_for() -> None:
    assert spread(["a"], 0, 100, random.Random(1)) == []


def test_what_is_missing_doubled_other_or_too_much_is_named() -> None:
    expected = {"a": 1, "b": 1, "c": 1, "d": 1}
    found = [("a", 1), ("b", 2), ("c", 1), ("c", 1), ("e", 1)]
    assert sorted(unlike(expected, found)) == [
        "b: 2, not 1",
        "c is there 2 times",
        "d is missing",
        "e: 1, not None",
    ]
    assert unlike(expected, [(key, 1) for key in expected]) == []


def test_one_failed_check_fails_the_run_and_says_what_of(capsys: pytest.CaptureFixture[str]) -> None:
    checks = Checks()
    checks.add("rows", [], 200)
    assert checks.passed
    checks.add("objects", ["reliability-00007 is missing"], 199)
    checks.add("letters", [], 0)
    assert not checks.passed
    assert capsys.readouterr().out.splitlines()[1] == (
        "checked: objects: FAILED (199), 1: reliability-00007 is missing"
    )


def test_pictures_differ_and_some_have_codes_or_a_text() -> None:
    assert len({picture(number) for number in range(30)}) == 30
    assert text_of(0) is not None
    assert text_of(1) is None
    assert len(codes_of(1)) == 1
    assert len(codes_of(6)) == 2
    assert codes_of(2) == ()
