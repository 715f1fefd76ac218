"""HC-SR04 behind a microcontroller: distances by sound, as the notifications of a Nordic UART."""

from __future__ import annotations

import math
import re
from typing import Final, Literal

from edge_publisher.domain.lines import Lines
from visionmesh.contracts import HcSr04Values

# What it can measure (its data sheet).
NEAREST_CM: Final = 2.0
FARTHEST_CM: Final = 400.0

Format = Literal["ascii", "uint16_mm"]

# `123.4`, with the field's name before it if the firmware likes: `distance_cm: 123.4`.
_LINE: Final = re.compile(rb"(?:distance_cm\s*[:=]\s*)?(-?\d{1,5}(?:\.\d{1,4})?)")

# A line is shorter; what grows beyond it has lost its end.
_LONGEST_LINE: Final = 64


class HcSr04Decoder:
    """The bytes of notifications in, distances out.

    `ascii`: lines `123.4`, in cm; a line may be spread over several notifications, whose size Bluetooth
    bounds, so that the first one of a connection is left out. `uint16_mm`: two bytes a distance, in mm, the
    low one first; a notification holds whole ones.
    A distance outside 2 to 400 cm is what the sensor gives when no echo came back: not valid, and told so.
    """

    def __init__(self, form: Format) -> None:
        self._form = form
        self._text = Lines(_LONGEST_LINE)
        self._counts = {"distances": 0, "damaged": 0}

    @property
    def counts(self) -> dict[str, int]:
        """How many distances there were. damaged: lines and notifications that are none."""
        return {**self._counts, "damaged": self._counts["damaged"] + self._text.too_long}

    def feed(self, data: bytes) -> list[HcSr04Values]:
        """Takes one notification."""
        return self._lines(data) if self._form == "ascii" else self._words(data)

    def _lines(self, data: bytes) -> list[HcSr04Values]:
        found = []
        for line in self._text.feed(data):
            match = _LINE.fullmatch(line)
            if match is None:
                self._counts["damaged"] += 1
            else:
                found.append(self._distance(float(match[1])))
        return found

    def _words(self, data: bytes) -> list[HcSr04Values]:
        if not data or len(data) % 2:
            self._counts["damaged"] += 1
            return []
        return [
            self._distance(int.from_bytes(data[start : start + 2], "little") / 10)
            for start in range(0, len(data), 2)
        ]

    def _distance(self, distance_cm: float) -> HcSr04Values:
        self._counts["distances"] += 1
        valid = math.isfinite(distance_cm) and NEAREST_CM <= distance_cm <= FARTHEST_CM
        return HcSr04Values(distance_cm=distance_cm if valid else None, valid=valid)
