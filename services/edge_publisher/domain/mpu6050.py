"""MPU-6050: acceleration, rotation and temperature, from its registers or from a microcontroller's lines.

Registers and conversions are those of InvenSense's register map, RM-MPU-6000A-00, revision 4.2; its sections
are named below.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from edge_publisher.domain.lines import Lines
from visionmesh.contracts import Mpu6050Values

# 4.4, 4.5, 4.17, 4.28, 4.32
SMPLRT_DIV: Final = 0x19
CONFIG: Final = 0x1A
GYRO_CONFIG: Final = 0x1B
ACCEL_CONFIG: Final = 0x1C
ACCEL_XOUT_H: Final = 0x3B
PWR_MGMT_1: Final = 0x6B
WHO_AM_I: Final = 0x75

# The chip's own address, whatever its pin AD0 says (4.32).
IDENTITY: Final = 0x68

# PWR_MGMT_1: awake, with the x gyroscope as the clock, which the map recommends over the internal one (4.28).
AWAKE: Final = 0x01

# CONFIG: low-pass filter at 94 Hz (acceleration) and 98 Hz (rotation); the gyroscope then measures at 1 kHz.
FILTER: Final = 0x02
_FILTERED_HZ: Final = 1000

# Full scale -> bits 4 and 3 of ACCEL_CONFIG and GYRO_CONFIG (4.4, 4.5).
ACCEL_RANGES_G: Final = {2: 0, 4: 1, 8: 2, 16: 3}
GYRO_RANGES_DPS: Final = {250: 0, 500: 1, 1000: 2, 2000: 3}

# Acceleration x y z, temperature, rotation x y z: int16, high byte first, in one read (4.17 to 4.19).
BURST: Final = struct.Struct(">7h")

_FULL_SCALE: Final = 32768

# 4.18
_COUNTS_PER_DEGREE: Final = 340
_DEGREES_AT_ZERO: Final = 36.53

# A line is shorter; what grows beyond it has lost its end.
_LONGEST_LINE: Final = 256

_KEYS: Final = ("ax", "ay", "az", "gx", "gy", "gz", "t")

# Beyond what any MPU-6050 can say, a number of a line is damaged: 16 g and 2000 deg/s, with room for the
# offsets and for the chip's tolerances, and the range of its temperature.
_LARGEST: Final = (20.0, 20.0, 20.0, 2500.0, 2500.0, 2500.0)
_COLDEST, _WARMEST = -60.0, 130.0


@dataclass(frozen=True, slots=True)
class Ranges:
    """Full scale of the chip, in g and deg/s; `ACCEL_RANGES_G` and `GYRO_RANGES_DPS` have what there is."""

    accel_g: int = 2
    gyro_dps: int = 250


@dataclass(frozen=True, slots=True)
class Offsets:
    """What a chip at rest shows too much of, along and about x, y, z: g and deg/s. Subtracted."""

    accel_g: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gyro_dps: tuple[float, float, float] = (0.0, 0.0, 0.0)


NO_OFFSETS: Final = Offsets()


def wake_up(ranges: Ranges, hertz: int) -> tuple[tuple[int, int], ...]:
    """The writes (register, value) that make the chip measure at least `hertz` times a second."""
    return (
        (PWR_MGMT_1, AWAKE),
        (SMPLRT_DIV, max(0, min(255, _FILTERED_HZ // hertz - 1))),
        (CONFIG, FILTER),
        (GYRO_CONFIG, GYRO_RANGES_DPS[ranges.gyro_dps] << 3),
        (ACCEL_CONFIG, ACCEL_RANGES_G[ranges.accel_g] << 3),
    )


class BurstDecoder:
    """The 14 bytes from ACCEL_XOUT_H on, in; one measurement each, out."""

    def __init__(self, ranges: Ranges, offsets: Offsets = NO_OFFSETS) -> None:
        self._accel = ranges.accel_g / _FULL_SCALE
        self._gyro = ranges.gyro_dps / _FULL_SCALE
        self._offsets = offsets
        self._counts = {"bursts": 0, "stuck": 0}

    @property
    def counts(self) -> dict[str, int]:
        """How many there were. stuck: bursts of one bit repeated, which is a line held low or high."""
        return self._counts

    def feed(self, data: bytes) -> list[Mpu6050Values]:
        """Takes whole bursts."""
        return [
            burst
            for start in range(0, len(data) - BURST.size + 1, BURST.size)
            if (burst := self._burst(data[start : start + BURST.size])) is not None
        ]

    def _burst(self, data: bytes) -> Mpu6050Values | None:
        self._counts["bursts"] += 1
        if data in (bytes(BURST.size), b"\xff" * BURST.size):
            self._counts["stuck"] += 1
            return None
        ax, ay, az, temperature, gx, gy, gz = BURST.unpack(data)
        return _calibrated(
            (ax * self._accel, ay * self._accel, az * self._accel),
            (gx * self._gyro, gy * self._gyro, gz * self._gyro),
            temperature / _COUNTS_PER_DEGREE + _DEGREES_AT_ZERO,
            self._offsets,
        )


class LineDecoder:
    """A microcontroller's lines in, a measurement each out.

    A line is `ax,ay,az,gx,gy,gz,t` or a JSON object with these keys: g, deg/s and degrees Celsius, ended by a
    newline. Anything else on the line, such as a greeting after a reset, is counted and left out.
    """

    def __init__(self, offsets: Offsets = NO_OFFSETS) -> None:
        self._offsets = offsets
        self._text = Lines(_LONGEST_LINE)
        self._counts = {"lines": 0, "damaged": 0}

    @property
    def counts(self) -> dict[str, int]:
        """How many lines there were. damaged: those that are no measurement."""
        return {**self._counts, "damaged": self._counts["damaged"] + self._text.too_long}

    def feed(self, data: bytes) -> list[Mpu6050Values]:
        """Takes any bytes, in pieces of any size."""
        return [found for line in self._text.feed(data) if (found := self._line(line)) is not None]

    def _line(self, line: bytes) -> Mpu6050Values | None:
        self._counts["lines"] += 1
        numbers = _numbers(line)
        if numbers is None:
            self._counts["damaged"] += 1
            return None
        ax, ay, az, gx, gy, gz, temperature = numbers
        return _calibrated((ax, ay, az), (gx, gy, gz), temperature, self._offsets)


def _numbers(line: bytes) -> Sequence[float] | None:
    """The seven numbers of a line, or None when it has others, or some that can't be."""
    try:
        if line.startswith(b"{"):
            found: Any = json.loads(line)
            numbers = [float(found[key]) for key in _KEYS]
        else:
            numbers = [float(text) for text in line.decode("ascii").split(",")]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    if len(numbers) != len(_KEYS) or not all(map(math.isfinite, numbers)):
        return None
    if any(abs(number) > largest for number, largest in zip(numbers[:-1], _LARGEST, strict=True)):
        return None
    return numbers if _COLDEST <= numbers[-1] <= _WARMEST else None


def _calibrated(
    accel: tuple[float, float, float],
    gyro: tuple[float, float, float],
    temperature: float,
    offsets: Offsets,
) -> Mpu6050Values:
    # A count is worth 61 micro-g at the finest: five decimals keep it, and are what is stored and sent.
    ax, ay, az = (round(one - offset, 5) for one, offset in zip(accel, offsets.accel_g, strict=True))
    gx, gy, gz = (round(one - offset, 4) for one, offset in zip(gyro, offsets.gyro_dps, strict=True))
    return Mpu6050Values(
        ax_g=ax, ay_g=ay, az_g=az, gx_dps=gx, gy_dps=gy, gz_dps=gz, temperature_c=round(temperature, 2)
    )
