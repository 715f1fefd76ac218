from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_api.multipart import FormReader, PartBegin, PartData, PartEnd
from visionmesh.errors import Rejected

BOUNDARY = "boundary123"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"

Field = tuple[str, str | None, bytes]


def body(*fields: Field) -> bytes:
    parts = b""
    for name, filename, value in fields:
        file = f'; filename="{filename}"' if filename is not None else ""
        parts += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        parts += value + b"\r\n"
    return parts + f"--{BOUNDARY}--\r\n".encode()


def read(data: bytes, size: int, *, max_parts: int = 10) -> list[Field]:
    """The fields of a body that is fed in pieces of `size` bytes."""
    reader = FormReader(CONTENT_TYPE, max_parts)
    fields: list[Field] = []
    begun: PartBegin | None = None
    value = b""
    for start in range(0, len(data), size):
        for event in reader.feed(data[start : start + size]):
            if isinstance(event, PartBegin):
                begun, value = event, b""
            elif isinstance(event, PartData):
                value += event.data
            else:
                assert isinstance(event, PartEnd)
                assert begun is not None
                fields.append((begun.name, begun.filename, value))
    reader.finish()
    return fields


# What looks like a boundary, in whole and in part, is the hard part of multipart.
TRICKY = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"-", b"--", BOUNDARY.encode()[:5], b"\r\n--boundary12", b"x", b"\0"]
    )
).map(b"".join)


@given(st.lists(TRICKY, min_size=1, max_size=3), st.integers(1, 40))
def test_whatever_the_pieces_the_fields_are_the_same(values: list[bytes], size: int) -> None:
    fields: list[Field] = [("file", f"{number}.jpg", value) for number, value in enumerate(values)]
    assert read(body(*fields), size) == fields


def test_a_field_without_a_filename_is_none() -> None:
    assert read(body(("tasks", None, b"qr")), 1000) == [("tasks", None, b"qr")]


def test_a_path_in_a_filename_is_only_a_name() -> None:
    assert read(body(("file", "../../etc/passwd", b"x")), 7) == [("file", "../../etc/passwd", b"x")]


def test_a_long_filename_is_cut() -> None:
    ((_, filename, _),) = read(body(("file", "n" * 1000, b"x")), 1000)
    assert filename == "n" * 255


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "image/jpeg",
        "multipart/form-data",
        "application/x-www-form-urlencoded",
        "multipart/mixed; boundary=x",
    ],
)
def test_what_is_no_form(content_type: str) -> None:
    with pytest.raises(Rejected) as caught:
        FormReader(content_type, 10)
    assert caught.value.code == "not_multipart"


@pytest.mark.parametrize("cut", [1, 20, 60, 90, -1, -4, -20])
def test_a_form_that_ends_too_early(cut: int) -> None:
    data = body(("file", "a.jpg", b"picture" * 10)).removesuffix(b"\r\n")[:cut]
    with pytest.raises(Rejected) as caught:
        read(data, 1000)
    assert caught.value.code == "truncated_body"


@pytest.mark.parametrize(
    "data", [b"no form at all", b"--boundary999\r\n", f"--{BOUNDARY}\r\nbad header\r\n\r\n".encode()]
)
def test_what_is_not_what_its_header_says(data: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        read(data, 1000)
    assert caught.value.code == "malformed_multipart"


@pytest.mark.parametrize("header", ["Content-Type: text/plain", 'Content-Disposition: form-data; name=""'])
def test_a_field_without_a_name(header: str) -> None:
    data = f"--{BOUNDARY}\r\n{header}\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode()
    with pytest.raises(Rejected) as caught:
        read(data, 1000)
    assert caught.value.code == "malformed_multipart"


def test_too_many_fields() -> None:
    with pytest.raises(Rejected) as caught:
        read(body(*[("tasks", None, b"qr")] * 11), 1000)
    assert caught.value.code == "too_many_parts"
