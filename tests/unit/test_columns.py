"""The bytes of a column, against psycopg's own reading of the same binary format."""

from __future__ import annotations

import math
from typing import Any

import psycopg
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import Transformer
from psycopg.pq import Format

from visionmesh.columns import float32, integers, reals, texts


def read(column: bytes, element: str) -> Any:
    oid = psycopg.adapters.types[element].array_oid
    return Transformer().get_loader(oid, Format.BINARY).load(column)


@given(st.lists(st.none() | st.text(st.characters(blacklist_categories=["Cs"]))))
def test_texts_are_read_back(values: list[str | None]) -> None:
    assert read(texts(values), "text") == values


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_integers_are_read_back(values: list[int]) -> None:
    assert read(integers(values), "int4") == values


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_reals_are_read_back(values: list[float]) -> None:
    assert read(reals(values), "float4") == values


def test_doubles_are_rounded_and_never_refused() -> None:
    found = read(reals([0.1, 1e-50, 1e300, -1e300, math.nan]), "float4")
    assert found[:4] == float32([0.1, 1e-50, 1e300, -1e300]).tolist()
    assert found[1:4] == [0.0, math.inf, -math.inf]
    assert math.isnan(found[4])
