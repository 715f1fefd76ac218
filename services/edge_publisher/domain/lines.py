"""Bytes as they come from a serial line or a radio, cut into the lines that a microcontroller wrote."""

from __future__ import annotations


class Lines:
    """Pieces of any size in, whole lines out.

    What comes first may be the rest of a line whose beginning nobody saw, `3.4` of `123.4`, and so may what
    follows one that grew beyond `longest` bytes: both are left out, up to the next newline.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._buffer = b""
        self._begun = False
        self.too_long = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in these bytes, without white space around them; none is empty."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if lines and not self._begun:
            self._begun = True
            lines = lines[1:]
        if len(self._buffer) > self._longest:
            self._buffer = b""
            self._begun = False
            self.too_long += 1
        return [line for line in map(bytes.strip, lines) if line]
