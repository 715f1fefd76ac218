"""What there is to measure: the same at every time, so that two runs see the same."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Motion:
    """Acceleration (g), rotation (deg/s), temperature (degrees Celsius)."""

    accel_g: tuple[float, float, float]
    gyro_dps: tuple[float, float, float]
    temperature_c: float


def light_distance_cm(seconds: float) -> int:
    """Something that goes to and fro before the TF-Luna, between 1 and 4 m."""
    return round(250 + 150 * math.sin(math.tau * seconds / 8))


def light_amplitude(seconds: float) -> int:
    """The echo grows weaker with the distance; every 20 s, for half a second, there is none."""
    if seconds % 20 > 19.5:
        return 60
    return round(2_000_000 / (light_distance_cm(seconds) + 300))


def sound_distance_cm(seconds: float) -> float:
    """Something before the HC-SR04, between 20 and 120 cm."""
    return round(70 + 50 * math.sin(math.tau * seconds / 12), 1)


def motion(seconds: float) -> Motion:
    """A board that is tilted to and fro by 20 degrees, every 5 s."""
    turn = math.tau / 5
    tilt = math.radians(20) * math.sin(turn * seconds)
    return Motion(
        accel_g=(math.sin(tilt), 0.0, math.cos(tilt)),
        gyro_dps=(0.0, 20 * turn * math.cos(turn * seconds), 0.0),
        temperature_c=31.5 + math.sin(seconds / 60),
    )
