"""A serial port, read without ever waiting for it.

pyserial opens and configures the port; from then on the event loop says when there is something to read.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

import serial

from edge_publisher.devices.link import LinkLost, Receiver

# After a read, the port is left alone for so long: several frames are then read at once, for a fraction of
# the time that waking up for each would take. The kernel keeps 4096 bytes meanwhile, far more than come.
_GATHER_SECONDS: Final = 0.016

_READ: Final = 4096


class SerialLink:
    """A `Link` over a serial port. greeting: written when it was opened, to configure the sensor."""

    def __init__(self, port: str, baud: int, *, greeting: bytes = b"") -> None:
        self.source: Final = f"serial {port}"
        self._port = port
        self._baud = baud
        self._greeting = greeting

    async def run(self, receiver: Receiver) -> None:
        port = await asyncio.to_thread(self._open)
        try:
            receiver.opened()
            if self._greeting:
                os.write(port.fileno(), self._greeting)
            await _Reader(port.fileno(), receiver).run()
        finally:
            port.close()

    def _open(self) -> serial.Serial:
        # `timeout=0` makes it non-blocking; exclusive, so that two publishers don't share one sensor's bytes.
        try:
            return serial.Serial(self._port, self._baud, timeout=0, write_timeout=0, exclusive=True)
        except serial.SerialException as error:
            reason = str(error) if error.errno is None else os.strerror(error.errno)
            raise LinkLost(f"the port {self._port} can't be opened: {reason}") from error


class _Reader:
    def __init__(self, descriptor: int, receiver: Receiver) -> None:
        self._descriptor = descriptor
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        self._listen()
        try:
            await self._lost
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._loop.remove_reader(self._descriptor)

    def _listen(self) -> None:
        self._loop.add_reader(self._descriptor, self._readable)

    def _readable(self) -> None:
        now = time.monotonic_ns()
        try:
            data = os.read(self._descriptor, _READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._give_up(f"the port is gone: {error.strerror}")
            return
        if not data:
            self._give_up("the port is gone: it was closed at the other end")
            return
        self._receiver.data(data, now)
        self._loop.remove_reader(self._descriptor)
        self._timer = self._loop.call_later(_GATHER_SECONDS, self._listen)

    def _give_up(self, reason: str) -> None:
        self._loop.remove_reader(self._descriptor)
        if not self._lost.done():
            self._lost.set_exception(LinkLost(reason))
