"""What an HC-SR04 notifies of, without Bluetooth: for machines where not even a bus can be simulated."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from edge_publisher.devices.link import Receiver
from edge_publisher.domain.hcsr04 import Format
from edge_publisher.simulation import world


def notification(seconds: float, form: Format) -> bytes:
    """What the simulated peripheral sends at this time."""
    distance_cm = world.sound_distance_cm(seconds)
    if form == "ascii":
        return f"{distance_cm}\n".encode()
    return round(distance_cm * 10).to_bytes(2, "little")


class Notifications:
    """A `Link` in the place of bleak's client."""

    source: Final = "notifications without a bus"

    def __init__(self, form: Format, *, hertz: float = 10.0) -> None:
        self._form = form
        self._hertz = hertz

    async def run(self, receiver: Receiver) -> None:
        receiver.opened()
        while True:
            receiver.data(notification(time.monotonic(), self._form), time.monotonic_ns())
            await asyncio.sleep(1 / self._hertz)
