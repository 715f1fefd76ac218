"""A camera that moves: a scene that is panned over, with a laser spot going round and a lamp."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

# How far the camera pans, as a share of the picture, and how long that takes.
_PAN: Final = 0.25
_PAN_SECONDS: Final = 30.0

_LASER_SECONDS: Final = 10.0

# The lamp is on for the second half of each of these.
_LAMP_SECONDS: Final = 40.0
_LAMP: Final = 40


class MovingCamera:
    """A `Camera`. seconds: how long a picture takes, as a real one has to be exposed and fetched."""

    def __init__(
        self, width: int, height: int, *, seconds: float = 0.1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.source: Final = "simulated camera"
        self._size = (width, height)
        self._seconds = seconds
        self._clock = clock
        self._scene = _scene(width + int(width * _PAN), height)

    def capture(self) -> NDArray[np.uint8]:
        time.sleep(self._seconds)
        now = self._clock()
        width, height = self._size
        reach = self._scene.shape[1] - width
        left = round(reach * (0.5 + 0.5 * math.sin(math.tau * now / _PAN_SECONDS)))
        picture = self._scene[:, left : left + width].copy()
        if now % _LAMP_SECONDS > _LAMP_SECONDS / 2:
            picture = cv2.add(picture, np.full_like(picture, _LAMP))
        x, y = self.laser_at(now)
        radius = max(2, height // 100)
        cv2.circle(picture, (x, y), radius, (250, 250, 255), cv2.FILLED)
        return np.asarray(picture)

    def laser_at(self, seconds: float) -> tuple[int, int]:
        """Where the spot is, in pixels."""
        width, height = self._size
        turn = math.tau * seconds / _LASER_SECONDS
        return round(width / 2 + width / 4 * math.cos(turn)), round(height / 2 + height / 4 * math.sin(turn))

    def close(self) -> None:
        """There is nothing to let go of."""


def _scene(width: int, height: int) -> NDArray[np.uint8]:
    """Something with edges and shades, nowhere as bright as a laser."""
    random = np.random.default_rng(477)
    scene = np.linspace(40, 140, width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    scene = np.ascontiguousarray(scene)
    for _ in range(60):
        colour = tuple(int(each) for each in random.integers(20, 170, 3))
        corner = int(random.integers(0, width)), int(random.integers(0, height))
        size = int(random.integers(width // 40, width // 8)), int(random.integers(height // 20, height // 4))
        cv2.rectangle(scene, corner, (corner[0] + size[0], corner[1] + size[1]), colour, cv2.FILLED)
    return scene
