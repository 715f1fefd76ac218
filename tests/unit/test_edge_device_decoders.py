"""What sensors send, whole and damaged, in pieces of any size: the same bytes always give the same."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_publisher.domain.hcsr04 import HcSr04Decoder
from edge_publisher.domain.mpu6050 import (
    ACCEL_CONFIG,
    BURST,
    GYRO_CONFIG,
    PWR_MGMT_1,
    SMPLRT_DIV,
    BurstDecoder,
    LineDecoder,
    Offsets,
    Ranges,
    wake_up,
)
from edge_publisher.domain.pace import Pace
from edge_publisher.domain.tfluna import FRAME, TfLunaDecoder, frame_of, rate_command
from edge_publisher.simulation import world
from edge_publisher.simulation.chip import Mpu6050Chip
from visionmesh.contracts import Mpu6050Values, SensorValues, TfLunaValues

DECODERS: dict[str, Callable[[], Any]] = {
    "tfluna": TfLunaDecoder,
    "mpu6050-i2c": lambda: BurstDecoder(Ranges()),
    "mpu6050-lines": LineDecoder,
    "hcsr04-ascii": lambda: HcSr04Decoder("ascii"),
    "hcsr04-uint16": lambda: HcSr04Decoder("uint16_mm"),
}


def distances(found: Sequence[TfLunaValues]) -> list[float | None]:
    return [each.distance_cm for each in found]


def moving(count: int, seed: int = 0) -> list[bytes]:
    """Frames at 250 a second of something that moves, comes and goes."""
    draw = random.Random(seed)
    return [
        frame_of(
            world.light_distance_cm(number / 250) + round(draw.gauss(0, 1)) + 200 * (number // 500 % 2),
            1500 + round(draw.gauss(0, 15)),
            31.0,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("name", DECODERS)
@given(pieces=st.lists(st.binary(max_size=80), max_size=20))
@settings(max_examples=60, deadline=None)
def test_any_bytes_twice(name: str, pieces: list[bytes]) -> None:
    decoders = DECODERS[name](), DECODERS[name]()
    runs: list[list[SensorValues]] = [
        [values for piece in pieces for values in decoder.feed(piece)] for decoder in decoders
    ]
    assert runs[0] == runs[1]
    assert decoders[0].counts == decoders[1].counts
    for values in runs[0]:
        msgspec.json.decode(msgspec.json.encode(values), type=type(values))


# TF-Luna


def test_a_frame_of_the_manual() -> None:
    # 100 cm, amplitude 1000, 25 degrees: (25 + 256) * 8 = 2248 = 0x08c8.
    frame = bytes.fromhex("5959 6400 e803 c808 d1")
    assert frame == frame_of(100, 1000, 25.0)
    assert TfLunaDecoder().feed(frame) == [TfLunaValues(100.0, 1000, 25.0, True)]


@pytest.mark.parametrize(
    ("amplitude", "valid"), [(0, False), (99, False), (100, True), (65534, True), (65535, False)]
)
def test_an_amplitude_that_is_not_valid_has_no_distance(amplitude: int, valid: bool) -> None:
    (found,) = TfLunaDecoder().feed(frame_of(100, amplitude, 25.0))
    assert (found.distance_cm, found.valid) == (100.0 if valid else None, valid)
    assert found.amplitude == amplitude


@pytest.mark.parametrize("size", [1, 2, 7, 9, 10, 64, 4096])
def test_pieces_of_any_size(size: int) -> None:
    data = b"".join(moving(400))
    decoder = TfLunaDecoder()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert [values for piece in pieces for values in decoder.feed(piece)] == TfLunaDecoder().feed(data)


@pytest.mark.parametrize("length", range(1, 2 * FRAME))
@pytest.mark.parametrize("filler", [b"\x00", b"\x59", b"\x5a", b"\xff"])
def test_garbage_takes_at_most_one_frame_along(length: int, filler: bytes) -> None:
    before, after = frame_of(200, 1500, 31.0) * 20, frame_of(200, 1500, 31.0) * 20
    found = TfLunaDecoder().feed(before + filler * length + after)
    assert len(found) >= 39
    assert set(distances(found)) == {200.0}


@pytest.mark.parametrize("lost", range(1, FRAME))
def test_lost_bytes_take_at_most_the_next_frame_along(lost: int) -> None:
    frame = frame_of(200, 1500, 31.0)
    assert len(TfLunaDecoder().feed(frame * 20 + frame[lost:] + frame * 20)) >= 39


@pytest.mark.parametrize("place", range(FRAME))
def test_one_changed_byte_costs_its_own_frame_and_no_other(place: int) -> None:
    damaged = bytearray(frame_of(200, 1500, 31.0))
    damaged[place] ^= 0x10
    decoder = TfLunaDecoder()
    found = decoder.feed(frame_of(200, 1500, 31.0) * 5 + damaged + frame_of(200, 1500, 31.0) * 5)
    assert distances(found) == [200.0] * 10
    assert decoder.counts == {"frames": 10, "damaged": 1, "implausible": 0}


@pytest.mark.parametrize(
    ("distance_cm", "amplitude", "temperature_c", "frames"),
    [
        (1200, 1500, 31.0, 1),
        (1201, 1500, 31.0, 0),
        (65535, 50, 31.0, 1),
        (200, 1500, -40.0, 1),
        (200, 1500, -41.0, 0),
        (200, 1500, 125.0, 1),
        (200, 1500, 126.0, 0),
        (0x5959, 0x5959, 0x5959 / 8 - 256, 0),
    ],
)
def test_what_no_sensor_can_measure_is_no_frame(
    distance_cm: int, amplitude: int, temperature_c: float, frames: int
) -> None:
    decoder = TfLunaDecoder()
    decoder.feed(frame_of(distance_cm, amplitude, temperature_c) + bytes(2 * FRAME))
    assert decoder.counts["frames"] == frames


def test_an_answer_of_the_sensor_between_frames_is_no_frame() -> None:
    frame = frame_of(200, 1500, 31.0)
    assert len(TfLunaDecoder().feed(frame * 3 + rate_command(250) + frame * 3)) == 6


def test_on_a_good_line_every_jump_passes_at_once() -> None:
    there_and_back = [frame_of(100 + 300 * (number % 2), 1500, 31.0) for number in range(100)]
    decoder = TfLunaDecoder()
    decoder.feed(frame_of(100, 1500, 31.0) * 32)
    assert [len(decoder.feed(frame)) for frame in there_and_back] == [1] * 100


def test_damage_that_comes_before_any_that_is_seen_passes_no_distance() -> None:
    good = frame_of(200, 1500, 31.0)
    bad = bytearray(good)
    bad[3], bad[8] = 2, (good[8] + 2) & 0xFF
    assert distances(TfLunaDecoder().feed(good * 3 + bad + good * 3)) == [200.0] * 6
    # A first one that is wrong is soon seen to be alone.
    assert distances(TfLunaDecoder().feed(bytes(bad) + good * 3)) == [712.0] + [200.0] * 3


def test_damage_that_the_checksum_does_not_see_passes_no_distance() -> None:
    """Two bytes changed so that their sum stays the same, on a line where others were damaged."""
    good, decoder = frame_of(200, 1500, 31.0), TfLunaDecoder()
    decoder.feed(good * 3 + good[:-1] + b"\x00" + good * 3)
    # The low byte of the distance with: amplitude, temperature, checksum, and its own high byte.
    for place, by, back in ((4, 64, -64), (6, 40, -40), (8, -100, -100), (3, -2, 2)):
        bad = bytearray(good)
        bad[2] = (bad[2] + by) & 0xFF
        bad[place] = (bad[place] + back) & 0xFF
        assert sum(bad[:-1]) & 0xFF == bad[-1]
        assert distances(decoder.feed(bytes(bad) + good)) == [200.0]
    assert decoder.counts["implausible"] == 4


def test_a_jump_on_a_bad_line_passes_when_the_next_frame_agrees() -> None:
    near, far, decoder = frame_of(100, 1500, 31.0), frame_of(400, 900, 31.0), TfLunaDecoder()
    decoder.feed(near + near[:-1] + b"\x00" + near * 2)
    assert distances(decoder.feed(far)) == []
    assert distances(decoder.feed(far)) == [400.0, 400.0]
    assert decoder.counts["implausible"] == 0


@pytest.mark.parametrize("hertz", [1, 10, 100, 250])
def test_what_moves_at_three_metres_a_second_passes_a_bad_line_at_any_rate(hertz: int) -> None:
    centimetres = [round(100 + 300 * number / hertz) for number in range(3 * hertz)]
    frames = [frame_of(each, 2_000_000 // (each + 300), 31.0) for each in centimetres]
    decoder = TfLunaDecoder(hertz)
    decoder.feed(frames[0][:-1] + b"\x00" + frames[0])
    assert distances(decoder.feed(b"".join(frames))) == centimetres
    assert decoder.counts == {"frames": len(frames) + 1, "damaged": 1, "implausible": 0}


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_in_one_byte_of_a_hundred_passes_no_wrong_distance(seed: int) -> None:
    frames = moving(25_000)
    draw = random.Random(seed)
    data = bytes(draw.randrange(256) if draw.random() < 0.01 else byte for byte in b"".join(frames))
    whole = sum(
        data[start : start + FRAME] == frames[number]
        for number, start in enumerate(range(0, len(data), FRAME))
    )
    found = TfLunaDecoder().feed(data)
    expected = iter(distances(TfLunaDecoder().feed(b"".join(frames))))
    # Every distance that comes out was sent, in this order.
    assert all(each in expected for each in distances(found))
    assert 0.998 * whole <= len(found) <= whole + 3


# MPU6050


def test_a_burst_is_in_units() -> None:
    burst = BURST.pack(16384, -8192, 0, 340, 131, -262, 0)
    assert BurstDecoder(Ranges()).feed(burst) == [Mpu6050Values(1.0, -0.5, 0.0, 0.9995, -1.9989, 0.0, 37.53)]
    assert BurstDecoder(Ranges(16, 2000)).feed(burst)[0] == Mpu6050Values(
        8.0, -4.0, 0.0, 7.9956, -15.9912, 0.0, 37.53
    )


def test_offsets_are_subtracted() -> None:
    offsets = Offsets((0.1, -0.1, 0.0), (1.0, 0.0, -1.0))
    (found,) = BurstDecoder(Ranges(), offsets).feed(BURST.pack(0, 0, 16384, 0, 0, 0, 0))
    assert (found.ax_g, found.ay_g, found.az_g) == (-0.1, 0.1, 1.0)
    assert (found.gx_dps, found.gy_dps, found.gz_dps) == (-1.0, 0.0, 1.0)
    (line,) = LineDecoder(offsets).feed(b"\n0,0,1,0,0,0,20\n")
    assert (line.ax_g, line.gx_dps, line.temperature_c) == (-0.1, -1.0, 20.0)


@pytest.mark.parametrize("burst", [bytes(14), b"\xff" * 14])
def test_a_line_that_is_held_is_no_measurement(burst: bytes) -> None:
    decoder = BurstDecoder(Ranges())
    assert decoder.feed(burst) == []
    assert decoder.counts == {"bursts": 1, "stuck": 1}


@pytest.mark.parametrize(("hertz", "divider"), [(1000, 0), (100, 9), (250, 3), (4, 249), (1, 255)])
def test_the_chip_measures_as_often_as_it_is_asked(hertz: int, divider: int) -> None:
    writes = dict(wake_up(Ranges(8, 500), hertz))
    assert writes[PWR_MGMT_1] & 0x40 == 0
    assert (writes[SMPLRT_DIV], writes[ACCEL_CONFIG], writes[GYRO_CONFIG]) == (divider, 2 << 3, 1 << 3)


@pytest.mark.parametrize(("accel_g", "gyro_dps"), [(2, 250), (4, 500), (8, 1000), (16, 2000)])
def test_the_chip_and_the_decoder_agree_in_every_range(accel_g: int, gyro_dps: int) -> None:
    chip, ranges = Mpu6050Chip(clock=lambda: 1.0), Ranges(accel_g, gyro_dps)
    bus = chip.open()
    for register, value in wake_up(ranges, 100):
        bus.write_byte_data(0x68, register, value)
    (found,) = BurstDecoder(ranges).feed(bytes(bus.read_i2c_block_data(0x68, 0x3B, 14)))
    truth = world.motion(1.0)
    assert (found.ax_g, found.ay_g, found.az_g) == pytest.approx(truth.accel_g, abs=0.001)
    assert (found.gx_dps, found.gy_dps, found.gz_dps) == pytest.approx(truth.gyro_dps, abs=0.1)
    assert found.temperature_c == pytest.approx(truth.temperature_c, abs=0.01)


def test_both_kinds_of_lines_in_any_pieces() -> None:
    lines = b"rest of a line\r\n0.5,0,-1,10,20,-30,25.5\r\n" + (
        json.dumps({"ax": 0.5, "ay": 0, "az": -1, "gx": 10, "gy": 20, "gz": -30, "t": 25.5, "n": 7}).encode()
        + b"\n"
    )
    expected = [Mpu6050Values(0.5, 0.0, -1.0, 10.0, 20.0, -30.0, 25.5)] * 2
    for size in (1, 3, len(lines)):
        decoder = LineDecoder()
        pieces = [lines[start : start + size] for start in range(0, len(lines), size)]
        assert [values for piece in pieces for values in decoder.feed(piece)] == expected


@pytest.mark.parametrize(
    "line",
    [
        b"MPU6050 ready",
        b"1,2,3",
        b"1,2,3,4,5,6,7,8",
        b"nan,0,0,0,0,0,20",
        b"1e999,0,0,0,0,0,20",
        b"21,0,0,0,0,0,20",
        b"0,0,0,2600,0,0,20",
        b"0,0,0,0,0,0,200",
        b'{"ax": 1}',
        b'{"ax": [1], "ay": 0, "az": 0, "gx": 0, "gy": 0, "gz": 0, "t": 0}',
        b"{" * 200,
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_no_measurement_is_counted(line: bytes) -> None:
    decoder = LineDecoder()
    assert decoder.feed(b"\n" + line + b"\n0,0,1,0,0,0,20\n") == [Mpu6050Values(0, 0, 1, 0, 0, 0, 20)]
    assert decoder.counts == {"lines": 2, "damaged": 1}


def test_a_line_without_end_is_given_up() -> None:
    decoder = LineDecoder()
    assert decoder.feed(b"\n" + b"1" * 1000) == []
    assert decoder.feed(b"0,0,1,0,0,0,20\n0,0,1,0,0,0,20\n") == [Mpu6050Values(0, 0, 1, 0, 0, 0, 20)]


# HC-SR04


@pytest.mark.parametrize(
    ("text", "distance_cm"),
    [
        (b"123.4\n", 123.4),
        (b"distance_cm: 17\r\n", 17.0),
        (b"distance_cm=2\n", 2.0),
        (b"1.99\n", None),
        (b"400\n", 400.0),
        (b"400.1\n", None),
        (b"0\n", None),
        (b"-1\n", None),
    ],
)
def test_lines_of_centimetres(text: bytes, distance_cm: float | None) -> None:
    for size in (1, 20):
        decoder = HcSr04Decoder("ascii")
        line = b"\n" + text
        pieces = [line[start : start + size] for start in range(0, len(line), size)]
        (found,) = [values for piece in pieces for values in decoder.feed(piece)]
        assert (found.distance_cm, found.valid) == (distance_cm, distance_cm is not None)


@pytest.mark.parametrize("text", [b"hello\n", b"12.3.4\n", b"1e3\n", b"nan\n", b"1" * 100])
def test_other_lines_are_counted(text: bytes) -> None:
    decoder = HcSr04Decoder("ascii")
    assert decoder.feed(b"\n" + text) == []
    assert decoder.counts == {"distances": 0, "damaged": 1}


def test_half_a_line_is_no_distance() -> None:
    decoder = HcSr04Decoder("ascii")
    assert decoder.feed(b"3.4\n") == [], "the rest of 123.4"
    assert [each.distance_cm for each in decoder.feed(b"123.4\n")] == [123.4]
    assert decoder.feed(b"1" * 65) == []
    assert decoder.feed(b"23.4\n") == [], "the rest of a line that was too long"
    assert [each.distance_cm for each in decoder.feed(b"56.7\n")] == [56.7]
    assert decoder.counts == {"distances": 2, "damaged": 1}


def test_words_of_millimetres() -> None:
    decoder = HcSr04Decoder("uint16_mm")
    assert [each.distance_cm for each in decoder.feed(b"\xd2\x04\x14\x00\x13\x00")] == [123.4, 2.0, None]
    assert decoder.feed(b"\x01") == []
    assert decoder.feed(b"") == []
    assert decoder.counts == {"distances": 3, "damaged": 2}


def test_a_pace_lets_bunches_through_and_no_more_on_average() -> None:
    pace = Pace(60)
    assert [pace.allows(now) for now in range(0, 600, 60)] == [True] * 10
    bunched = Pace(60)
    assert [bunched.allows(0) for _ in range(6)] == [True] * 4 + [False] * 2
    rushing = Pace(60)
    assert sum(rushing.allows(now) for now in range(0, 60_000, 10)) == pytest.approx(1000, abs=4)
