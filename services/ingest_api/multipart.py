"""A multipart/form-data body, read piece by piece.

`FormReader` turns each piece of the body into events and keeps nothing: a file of any size passes through
in the memory of one piece. Form parsers of web frameworks spool files to disk first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from visionmesh.errors import Rejected

if TYPE_CHECKING:
    # The library has the type for checkers only.
    from python_multipart.multipart import MultipartCallbacks

# What clients echo into their logs; longer names are cut.
_MAX_FILENAME: Final = 255


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A field of the form begins. filename: as the client says, None when it is no file."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    """The next bytes of the field; a view into the piece that was fed."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The field is complete: the boundary after it was seen."""


Event = PartBegin | PartData | PartEnd


class FormReader:
    """Reads one body. Every method raises `Rejected` when the body is not what its header says."""

    def __init__(self, content_type: str, max_parts: int) -> None:
        """content_type: the header of the request. max_parts: most fields the form may have."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise Rejected(
                "not_multipart",
                'Send the picture as a form: curl -F "file=@picture.jpg" http://localhost:8001/upload',
            )
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _malformed(error) from error
        self._max_parts = max_parts
        self._parts = 0
        self._name = b""
        self._value = b""
        self._disposition = b""
        self._events: list[Event] = []
        self._complete = False

    def feed(self, piece: bytes) -> list[Event]:
        """What the next piece of the body brings, in order."""
        self._events = []
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _malformed(error) from error
        return self._events

    def finish(self) -> None:
        """To be called after the last piece."""
        if not self._complete:
            raise Rejected("truncated_body", "The request ends before its form does.")

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > self._max_parts:
            raise Rejected("too_many_parts", f"The form has more than {self._max_parts} fields.")
        self._disposition = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if not options.get(b"name"):
            raise Rejected("malformed_multipart", "A field of the form has no name.")
        filename = options.get(b"filename")
        self._events.append(
            PartBegin(_text(options[b"name"]), None if filename is None else _text(filename)[:_MAX_FILENAME])
        )

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(memoryview(data)[start:end]))

    def _part_end(self) -> None:
        self._events.append(PartEnd())

    def _end(self) -> None:
        self._complete = True


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _malformed(error: FormParserError) -> Rejected:
    return Rejected("malformed_multipart", f"The form can't be read: {error}")
