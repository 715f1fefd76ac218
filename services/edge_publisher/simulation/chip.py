"""The registers of an MPU-6050, behind the interface of `smbus2.SMBus`."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable
from typing import Final

from edge_publisher.domain.mpu6050 import (
    ACCEL_CONFIG,
    ACCEL_XOUT_H,
    BURST,
    GYRO_CONFIG,
    IDENTITY,
    PWR_MGMT_1,
    WHO_AM_I,
)
from edge_publisher.simulation import world

_REGISTERS: Final = 0x76

# After a reset the chip sleeps (register map, 4.28), and measures nothing.
_ASLEEP: Final = 0x40

_ACCEL_COUNTS_PER_G: Final = (16384, 8192, 4096, 2048)
_GYRO_COUNTS_PER_DPS: Final = (131.0, 65.5, 32.8, 16.4)


class Mpu6050Chip:
    """A chip on a bus of its own. Every bus that is opened to it sees the same registers.

    failing: how many of the next transfers go unanswered; less than 0, all of them.
    """

    def __init__(
        self, *, address: int = 0x68, identity: int = IDENTITY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registers: Final = bytearray(_REGISTERS)
        self.registers[WHO_AM_I] = identity
        self.registers[PWR_MGMT_1] = _ASLEEP
        self.failing = 0
        self._address = address
        self._clock = clock

    def open(self) -> Mpu6050Bus:
        """Raises `OSError` while nothing answers, as opening a bus that was unplugged does."""
        return Mpu6050Bus(self)

    def transfer(self, address: int, register: int, length: int) -> bytes:
        """The registers from `register` on, as they are now."""
        self._answer(address)
        if not self.registers[PWR_MGMT_1] & _ASLEEP:
            self._measure()
        return bytes(self.registers[register : register + length])

    def write(self, address: int, register: int, value: int) -> None:
        self._answer(address)
        self.registers[register] = value

    def _answer(self, address: int) -> None:
        if self.failing:
            self.failing -= 1
            raise OSError(errno.EREMOTEIO, os.strerror(errno.EREMOTEIO))
        if address != self._address:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    def _measure(self) -> None:
        motion = world.motion(self._clock())
        per_g = _ACCEL_COUNTS_PER_G[self.registers[ACCEL_CONFIG] >> 3 & 3]
        per_dps = _GYRO_COUNTS_PER_DPS[self.registers[GYRO_CONFIG] >> 3 & 3]
        counts = [round(each * per_g) for each in motion.accel_g]
        counts.append(round((motion.temperature_c - 36.53) * 340))
        counts += [round(each * per_dps) for each in motion.gyro_dps]
        clipped = [max(-32768, min(32767, each)) for each in counts]
        struct.pack_into(BURST.format, self.registers, ACCEL_XOUT_H, *clipped)


class Mpu6050Bus:
    """What `smbus2.SMBus` is to the driver."""

    def __init__(self, chip: Mpu6050Chip) -> None:
        self._chip = chip
        self._is_open = True

    def read_byte_data(self, i2c_addr: int, register: int) -> int:
        return self._transfer(i2c_addr, register, 1)[0]

    def read_i2c_block_data(self, i2c_addr: int, register: int, length: int) -> list[int]:
        return list(self._transfer(i2c_addr, register, length))

    def write_byte_data(self, i2c_addr: int, register: int, value: int) -> None:
        self._check()
        self._chip.write(i2c_addr, register, value)

    def close(self) -> None:
        self._is_open = False

    def _transfer(self, address: int, register: int, length: int) -> bytes:
        self._check()
        return self._chip.transfer(address, register, length)

    def _check(self) -> None:
        if not self._is_open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
