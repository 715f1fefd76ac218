"""An MPU-6050 on an I2C bus, read by a thread of its own: the bus has no way to be read without waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Final, Protocol

from edge_publisher.devices.link import LinkLost, Receiver
from edge_publisher.domain.mpu6050 import ACCEL_XOUT_H, BURST, IDENTITY, WHO_AM_I, Ranges, wake_up

# The chip is asked so often before the bus is given up: one error is a glitch, and the next read is due soon.
_ATTEMPTS: Final = 5

# What was measured is handed to the event loop this often, which costs less than to wake it every time.
_HAND_OVER_NS: Final = 20_000_000

_LATEST_INTERVALS: Final = 10


class Bus(Protocol):
    """What is used of `smbus2.SMBus`. Every method raises `OSError` when the chip does not answer."""

    def read_byte_data(self, i2c_addr: int, register: int) -> int: ...

    def write_byte_data(self, i2c_addr: int, register: int, value: int) -> None: ...

    def read_i2c_block_data(self, i2c_addr: int, register: int, length: int) -> list[int]: ...

    def close(self) -> None: ...


class Mpu6050Link:
    """A `Link` that hands over the chip's bursts of 14 bytes, `hertz` a second."""

    def __init__(
        self, open_bus: Callable[[], Bus], source: str, *, address: int, ranges: Ranges, hertz: int
    ) -> None:
        self.source: Final = source
        self._open_bus = open_bus
        self._address = address
        self._ranges = ranges
        self._hertz = hertz

    async def run(self, receiver: Receiver) -> None:
        loop = asyncio.get_running_loop()
        stop = Event()
        with ThreadPoolExecutor(1, thread_name_prefix="mpu6050") as thread:
            sampling = loop.run_in_executor(thread, self._sample, loop, receiver, stop)
            try:
                await asyncio.shield(sampling)
            finally:
                # Within one read: what waits for the bus can't be interrupted.
                stop.set()
                await asyncio.wait({sampling})

    # In the thread

    def _sample(self, loop: asyncio.AbstractEventLoop, receiver: Receiver, stop: Event) -> None:
        bus = self._open_bus()
        try:
            self._prepare(bus)
            loop.call_soon_threadsafe(receiver.opened)
            self._read_on(bus, loop, receiver, stop)
        finally:
            bus.close()

    def _prepare(self, bus: Bus) -> None:
        identity = bus.read_byte_data(self._address, WHO_AM_I)
        if identity != IDENTITY:
            raise LinkLost(
                f"the chip at 0x{self._address:02x} says it is 0x{identity:02x} and not an MPU-6050 (0x68)"
            )
        for register, value in wake_up(self._ranges, self._hertz):
            bus.write_byte_data(self._address, register, value)

    def _read_on(self, bus: Bus, loop: asyncio.AbstractEventLoop, receiver: Receiver, stop: Event) -> None:
        interval = 1_000_000_000 // self._hertz
        due = time.monotonic_ns()
        handed_over = due
        failed = 0
        bursts = bytearray()
        try:
            while not stop.is_set():
                try:
                    bursts += bytes(bus.read_i2c_block_data(self._address, ACCEL_XOUT_H, BURST.size))
                    failed = 0
                except OSError as error:
                    failed += 1
                    if failed == _ATTEMPTS:
                        raise
                    loop.call_soon_threadsafe(receiver.fault, f"a read failed: {error.strerror}")
                now = time.monotonic_ns()
                if bursts and now - handed_over >= _HAND_OVER_NS - interval // 2:
                    loop.call_soon_threadsafe(receiver.data, bytes(bursts), now)
                    bursts.clear()
                    handed_over = now
                # A thread that was woken a little late keeps the pace; one that was away does not catch up.
                due = due + interval if now - due < _LATEST_INTERVALS * interval else now
                stop.wait(max(0, due - now) / 1e9)
        finally:
            # What was measured before the failure, or the end, was measured.
            if bursts:
                loop.call_soon_threadsafe(receiver.data, bytes(bursts), time.monotonic_ns())
