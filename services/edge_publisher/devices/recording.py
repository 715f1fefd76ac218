"""What came out of a link, in a file, and out of the file again.

A recording is lines of JSON: a first one that says what it is of, then one for each piece of data, with the
seconds since the first piece and the bytes as base64. So a recording of any sensor runs through the same
decoder as the sensor itself.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from edge_publisher.devices.link import Link, LinkLost, Receiver

VERSION: Final = 1


class RecordingLink:
    """A `Link` that writes down what another one gives."""

    def __init__(self, link: Link, sensor: str, file: IO[str]) -> None:
        self.source: Final = link.source
        self._link = link
        self._file = file
        self._first_ns: int | None = None
        write_header(file, sensor, link.source)

    async def run(self, receiver: Receiver) -> None:
        await self._link.run(_Copying(receiver, self._write))

    def _write(self, data: bytes, monotonic_ns: int) -> None:
        if self._first_ns is None:
            self._first_ns = monotonic_ns
        write_piece(self._file, (monotonic_ns - self._first_ns) / 1e9, data)


class ReplayLink:
    """A `Link` that gives what was recorded, as fast as it came or `speed` times as fast.

    speed: infinite gives everything at once. repeat: begins again at the end, without which the link ends.
    """

    def __init__(self, path: Path, sensor: str, *, speed: float = 1.0, repeat: bool = False) -> None:
        self.source: Final = f"recording {path.name}"
        self._path = path
        self._sensor = sensor
        self._speed = speed
        self._repeat = repeat

    async def run(self, receiver: Receiver) -> None:
        pieces = await asyncio.to_thread(lambda: list(read(self._path, self._sensor)))
        receiver.opened()
        while True:
            started = time.monotonic()
            for seconds, data in pieces:
                # Also at once, so that others get their turn.
                await asyncio.sleep(max(0.0, started + seconds / self._speed - time.monotonic()))
                receiver.data(data, time.monotonic_ns())
            if not self._repeat or not pieces:
                return


class _Copying:
    """A receiver that lets someone else see the data first."""

    def __init__(self, receiver: Receiver, write: Callable[[bytes, int], None]) -> None:
        self.opened = receiver.opened
        self.fault = receiver.fault
        self._receiver = receiver
        self._write = write

    def data(self, data: bytes, monotonic_ns: int) -> None:
        self._write(data, monotonic_ns)
        self._receiver.data(data, monotonic_ns)


def write_header(file: IO[str], sensor: str, source: str) -> None:
    file.write(json.dumps({"recording": sensor, "version": VERSION, "source": source}) + "\n")


def write_piece(file: IO[str], seconds: float, data: bytes) -> None:
    """seconds: since the first piece."""
    file.write(json.dumps({"t": round(seconds, 6), "data": base64.b64encode(data).decode()}) + "\n")


def read(path: Path, sensor: str) -> Iterator[tuple[float, bytes]]:
    """The pieces of a recording: seconds since the first, bytes. Raises `LinkLost` when it is none of it.

    A last line that was cut off, as when the recorder was killed, ends it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
            if header.get("recording") != sensor or header.get("version") != VERSION:
                raise LinkLost(f"{path.name} is no recording of {sensor} that can be read here")
            for line in file:
                if line.endswith("\n"):
                    piece = json.loads(line)
                    yield float(piece["t"]), base64.b64decode(piece["data"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise LinkLost(f"{path.name} is damaged: {error}") from error
