"""Serial sensors as pseudo-terminals: each at a path of its own, with a cable that can be pulled out."""

from __future__ import annotations

import asyncio
import os
import random
import time
import tty
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

from edge_publisher.domain.tfluna import frame_of, rate_command
from edge_publisher.simulation import world

_RATE_COMMAND: Final = rate_command(0)[:3]
_RATE_BYTES: Final = len(rate_command(0))

# A sensor that could not send in time leaves out what it missed.
_LATEST_SECONDS: Final = 0.5


class SerialSensor(ABC):
    """Sends `message` `hertz` times a second, whether anyone listens or not.

    path: where the port is while it is plugged in. noise: the share of bytes that arrive as others.
    sent: how many messages went out whole.
    """

    def __init__(self, path: Path, hertz: int, *, noise: float = 0.0, seed: int = 0) -> None:
        self.path: Final = path
        self.hertz = hertz
        self.noise = noise
        self.sent = 0
        self._random = random.Random(seed)
        self._ends: tuple[int, int] | None = None

    @abstractmethod
    def message(self, seconds: float) -> bytes:
        """What is sent at this time."""

    def received(self, data: bytes) -> bytes:
        """The answer to what the driver wrote."""
        return b""

    def plug(self) -> None:
        """Makes the port; a new terminal each time, at the same path, as udev's links by-id do."""
        if self._ends is not None:
            return
        sensor, driver = os.openpty()
        tty.setraw(driver)
        os.set_blocking(sensor, False)
        self._ends = (sensor, driver)
        link = self.path.with_suffix(".new")
        link.symlink_to(os.ttyname(driver))
        link.replace(self.path)

    def unplug(self) -> None:
        """Takes the port away: whoever has it open reads an error from now on."""
        if self._ends is not None:
            self.path.unlink(missing_ok=True)
            for end in self._ends:
                os.close(end)
            self._ends = None

    async def run(self) -> None:
        """Sends until it is cancelled."""
        due = time.monotonic()
        while True:
            now = time.monotonic()
            if now - due > _LATEST_SECONDS:
                due = now
            if self._ends is not None:
                self._exchange(self._ends[0], due)
            due += 1 / self.hertz
            await asyncio.sleep(due - time.monotonic())

    def _exchange(self, sensor: int, now: float) -> None:
        try:
            answer = self.received(os.read(sensor, 4096))
        except OSError:
            answer = b""
        data = answer + self._damaged(self.message(now))
        try:
            # A port that nobody reads is full after a second; a sensor does not notice.
            self.sent += os.write(sensor, data) == len(data)
        except OSError:
            return

    def _damaged(self, data: bytes) -> bytes:
        if not self.noise:
            return data
        draw = self._random
        return bytes(draw.randrange(256) if draw.random() < self.noise else each for each in data)


class TfLunaSensor(SerialSensor):
    """Frames of nine bytes, and the command that sets how many a second."""

    def message(self, seconds: float) -> bytes:
        return frame_of(
            world.light_distance_cm(seconds), world.light_amplitude(seconds), 30 + seconds % 60 / 60
        )

    def received(self, data: bytes) -> bytes:
        start = data.find(_RATE_COMMAND)
        command = data[start : start + _RATE_BYTES]
        if start < 0 or len(command) < _RATE_BYTES or sum(command[:-1]) & 0xFF != command[-1]:
            return b""
        self.hertz = max(1, int.from_bytes(command[3:5], "little"))
        return command


class Mpu6050Sensor(SerialSensor):
    """A microcontroller that prints its MPU-6050 as lines, by turns of both kinds."""

    def message(self, seconds: float) -> bytes:
        motion = world.motion(seconds)
        numbers = [*motion.accel_g, *motion.gyro_dps, motion.temperature_c]
        texts = [f"{number:.4f}" for number in numbers]
        if self.sent % 2:
            names = ("ax", "ay", "az", "gx", "gy", "gz", "t")
            pairs = ",".join(f'"{name}":{text}' for name, text in zip(names, texts, strict=True))
            return f"{{{pairs}}}\r\n".encode()
        return f"{','.join(texts)}\r\n".encode()
