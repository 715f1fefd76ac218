"""Columns of values as Postgres arrays in binary format, for statements that `unnest` them.

psycopg adapts a list value by value, and sends floats as float8, which Postgres then casts for every row:
with hundreds of rows both cost more than the insert itself. The format is that of `array_recv`
(src/backend/utils/adt/arrayfuncs.c): dimensions, a flag for nulls, the element type, length and lower
bound, then each value after its length.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo


class TextColumn(bytes):
    """`text[]`, encoded."""


class RealColumn(bytes):
    """`real[]`, encoded."""


class IntegerColumn(bytes):
    """`integer[]`, encoded."""


_TEXT: Final = psycopg.adapters.types["text"]
_REAL: Final = psycopg.adapters.types["float4"]
_INTEGER: Final = psycopg.adapters.types["int4"]

_NULL: Final = struct.pack("!i", -1)
_LENGTH: Final = struct.Struct("!i")


def texts(values: Sequence[str | None]) -> TextColumn:
    """`text[]`. Postgres refuses a text with a NUL, as it does everywhere."""
    pieces = [_header(_TEXT, len(values), has_null=None in values)]
    for value in values:
        if value is None:
            pieces.append(_NULL)
        else:
            encoded = value.encode()
            pieces.append(_LENGTH.pack(len(encoded)))
            pieces.append(encoded)
    return TextColumn(b"".join(pieces))


def float32(values: Iterable[float]) -> array[float]:
    """`values` as a `real` holds them: what is too small becomes 0, what is too large infinite.

    Postgres itself would refuse both, and a classifier that is sure of itself gives others 1e-50.
    """
    return array("f", values)


def reals(values: Iterable[float]) -> RealColumn:
    """`real[]`, rounded by `float32`."""
    rounded = float32(values)
    return RealColumn(_header(_REAL, len(rounded)) + _fixed_width("f", rounded))


def integers(values: Sequence[int]) -> IntegerColumn:
    """`integer[]`."""
    return IntegerColumn(_header(_INTEGER, len(values)) + _fixed_width("i", values))


def _fixed_width(code: str, values: Sequence[float]) -> bytes:
    lengths_and_values: list[float] = [4] * (2 * len(values))
    lengths_and_values[1::2] = values
    return struct.pack("!" + f"i{code}" * len(values), *lengths_and_values)


def _header(element: TypeInfo, length: int, *, has_null: bool = False) -> bytes:
    if length == 0:
        return struct.pack("!iiI", 0, 0, element.oid)
    return struct.pack("!iiIii", 1, has_null, element.oid, length, 1)


class _Encoded(Dumper):
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return obj


class _TextDumper(_Encoded):
    oid = _TEXT.array_oid


class _RealDumper(_Encoded):
    oid = _REAL.array_oid


class _IntegerDumper(_Encoded):
    oid = _INTEGER.array_oid


def register(connection: psycopg.Connection[Any]) -> None:
    """Makes the columns parameters of this connection's statements."""
    connection.adapters.register_dumper(TextColumn, _TextDumper)
    connection.adapters.register_dumper(RealColumn, _RealDumper)
    connection.adapters.register_dumper(IntegerColumn, _IntegerDumper)
