"""TF-Luna: 9-byte frames of a distance by light (Benewake, SJ-PM-TF-Luna A05 product manual, 6.2).

A frame is `59 59`, then distance (cm), amplitude and temperature (eighths of a degree, from -256), each as a
little-endian uint16, then the low byte of the sum of the eight bytes before.

That checksum finds every damage to one byte, and lets through one in 256 of two bytes replaced at random, one
in 16 of two flipped bits. So where the line is damaging frames, or nothing is known of it yet, a measurement
passes only when a neighbour agrees with it. What remains is a distance that is wrong by no more than `near`
allows; nothing in the frame could tell it from the sensor's own noise.
"""

from __future__ import annotations

from typing import Final

from visionmesh.contracts import TfLunaValues

FRAME: Final = 9
HEADER: Final = b"\x59\x59"

# The manual, 6.2: below it a distance is not reliable, at this value the receiver was overexposed.
WEAKEST: Final = 100
OVEREXPOSED: Final = 0xFFFF

# Beyond 8 m the manual promises nothing; the sensor still finds what reflects well. Eighths of a degree from
# -256: -40 to 125 degrees, within which the chip can be at all.
_FARTHEST_CM: Final = 1200
_COLDEST: Final = (256 - 40) * 8
_WARMEST: Final = (256 + 125) * 8

# Frames a second, when the sensor is told nothing else.
_FULL_RATE: Final = 250

# Frames. A line of which nothing is known is taken to be bad: if it damages one byte in a hundred, so many
# tell almost surely.
_FIRST: Final = 32

# How far two neighbouring measurements may be apart: the sensor's noise, which grows with the distance, and
# an object that moves at 5 m/s.
_NEAR_CM: Final = 1
_NEAR_SHARE: Final = 0.01
_CM_PER_SECOND: Final = 500

# Likewise of amplitude and temperature: the echo of such an object changes by some 10 % in 4 ms, and the
# chip's temperature hardly at all.
_NEAR_AMPLITUDE: Final = 64
_NEAR_AMPLITUDE_PER_SECOND: Final = 25
_NEAR_EIGHTHS: Final = 1

# A set of three numbers as they stand in the frame: distance, amplitude, temperature.
_Raw = tuple[int, int, int]


class TfLunaDecoder:
    """Frames in, distances out, in order.

    hertz: frames a second, as the sensor was told; the slower, the more may change from one to the next. For
    a second after a damaged frame, the line is taken to be bad.

    Of any garbage, and of bytes that were lost, it takes at most one good frame along. A frame that is held
    until its neighbour confirms it comes out with that neighbour.
    """

    def __init__(self, hertz: int = _FULL_RATE) -> None:
        self._hertz = hertz
        self._buffer = bytearray()
        self._suspicious = _FIRST
        self._last: _Raw | None = None
        self._held: _Raw | None = None
        self._counts = {"frames": 0, "damaged": 0, "implausible": 0}

    @property
    def counts(self) -> dict[str, int]:
        """How many there were.

        frames: whole ones, with a right checksum. damaged: stretches of bytes that were none. implausible:
        frames among the former that no neighbour agreed with while the line was bad.
        """
        return self._counts

    def feed(self, data: bytes) -> list[TfLunaValues]:
        """Takes any bytes, in pieces of any size."""
        buffer = self._buffer
        buffer += data
        found: list[TfLunaValues] = []
        start = 0
        while len(buffer) - start >= FRAME:
            if is_frame(buffer, start):
                self._take(raw(buffer, start), found)
                start += FRAME
                continue
            after = _next_start(buffer, start)
            if after is None:
                break
            self._counts["damaged"] += 1
            self._suspicious = self._hertz
            start = after
        del buffer[:start]
        return found

    def _take(self, frame: _Raw, found: list[TfLunaValues]) -> None:
        self._counts["frames"] += 1
        held, self._held = self._held, None
        if self._suspicious:
            self._suspicious -= 1
            if held is None or not near(frame, held, self._hertz):
                self._counts["implausible"] += held is not None
                held = None
                if self._last is not None and not near(frame, self._last, self._hertz):
                    self._held = frame
                    return
        # Where the line has been good since, what was held is as good as what follows.
        if held is not None:
            found.append(values(held))
        self._last = frame
        found.append(values(frame))


def is_frame(buffer: bytes | bytearray, start: int) -> bool:
    """Whether the nine bytes from `start` on, which have to be there, are a frame."""
    return (
        buffer[start] == HEADER[0]
        and buffer[start + 1] == HEADER[1]
        and sum(buffer[start : start + FRAME - 1]) & 0xFF == buffer[start + FRAME - 1]
        and _can_be(*raw(buffer, start))
    )


def raw(buffer: bytes | bytearray, start: int) -> _Raw:
    """Distance, amplitude and temperature as they stand in a frame."""
    return (
        buffer[start + 2] | buffer[start + 3] << 8,
        buffer[start + 4] | buffer[start + 5] << 8,
        buffer[start + 6] | buffer[start + 7] << 8,
    )


def values(frame: _Raw) -> TfLunaValues:
    """The measurement in units. One that the sensor calls unreliable has no distance."""
    distance, amplitude, temperature = frame
    valid = WEAKEST <= amplitude < OVEREXPOSED
    return TfLunaValues(
        distance_cm=float(distance) if valid else None,
        amplitude=amplitude,
        temperature_c=temperature / 8 - 256,
        valid=valid,
    )


def _can_be(distance: int, amplitude: int, temperature: int) -> bool:
    """Whether a sensor could have measured this: bytes that only look like a frame rarely could."""
    valid = WEAKEST <= amplitude < OVEREXPOSED
    return _COLDEST <= temperature <= _WARMEST and (distance <= _FARTHEST_CM or not valid)


def near(one: _Raw, other: _Raw, hertz: int) -> bool:
    """Whether two measurements can follow each other, of so many a second."""
    return (
        abs(one[0] - other[0]) <= _NEAR_CM + _CM_PER_SECOND / hertz + _NEAR_SHARE * other[0]
        and abs(one[1] - other[1]) <= _NEAR_AMPLITUDE + _NEAR_AMPLITUDE_PER_SECOND / hertz * other[1]
        and abs(one[2] - other[2]) <= _NEAR_EIGHTHS
    )


def frame_of(distance_cm: int, amplitude: int, temperature_c: float) -> bytes:
    """The frame a sensor sends; what simulations speak."""
    eighths = round((temperature_c + 256) * 8)
    body = HEADER + b"".join(number.to_bytes(2, "little") for number in (distance_cm, amplitude, eighths))
    return body + bytes([sum(body) & 0xFF])


def rate_command(hertz: int) -> bytes:
    """Sets how many frames a second the sensor sends (the manual, 7.3: 0x03, SAMPLE_FREQ)."""
    body = b"\x5a\x06\x03" + hertz.to_bytes(2, "little")
    return body + bytes([sum(body) & 0xFF])


def _next_start(buffer: bytearray, start: int) -> int | None:
    """Where to go on behind bytes that begin no frame; None when that takes more bytes to tell.

    Most damage changes bytes and moves none, so that the next frame is looked for in its own place first.
    Bytes that only look like a frame are told by what follows them: they don't begin where another ends.
    """
    if len(buffer) - start < 2 * FRAME:
        return None
    if is_frame(buffer, start + FRAME):
        return start + FRAME
    if len(buffer) - start < 2 * FRAME + len(HEADER):
        return None
    for place in range(start + 1, start + FRAME):
        end = place + FRAME
        if is_frame(buffer, place) and buffer[end : end + 2] == HEADER:
            return place
    return start + FRAME
