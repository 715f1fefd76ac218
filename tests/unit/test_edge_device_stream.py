"""A device on a link that a test plays: what it hands on, when it connects again, what its state says."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from smbus2 import smbus2

from edge_publisher.devices import protocol, stream
from edge_publisher.devices.i2c_link import Mpu6050Link
from edge_publisher.devices.link import Link, LinkLost, Receiver
from edge_publisher.devices.protocol import Reading
from edge_publisher.devices.recording import RecordingLink, ReplayLink, read
from edge_publisher.devices.stream import StreamDevice
from edge_publisher.domain.hcsr04 import HcSr04Decoder
from edge_publisher.domain.mpu6050 import ACCEL_XOUT_H, BurstDecoder, LineDecoder, Ranges
from edge_publisher.domain.pace import Pace
from edge_publisher.domain.tfluna import TfLunaDecoder, frame_of
from edge_publisher.simulation.chip import Mpu6050Chip
from visionmesh.errors import Unavailable

FRAME = frame_of(200, 1500, 31.0)
DEADLINE_SECONDS = 30.0


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(stream, "_LONGEST_DELAY_SECONDS", 0.05)


class PlayedLink:
    """A link whose every run does what the next of `runs` does; after the last it stays silent."""

    source = "played"

    def __init__(self, *runs: Callable[[Receiver], Awaitable[None]]) -> None:
        self.runs = list(runs)
        self.opened = 0
        self.closed = 0

    async def run(self, receiver: Receiver) -> None:
        self.opened += 1
        try:
            if self.runs:
                await self.runs.pop(0)(receiver)
            await asyncio.Event().wait()
        finally:
            self.closed += 1


def gives(*pieces: bytes, error: Exception | None = None) -> Callable[[Receiver], Awaitable[None]]:
    async def run(receiver: Receiver) -> None:
        receiver.opened()
        for piece in pieces:
            receiver.data(piece, time.monotonic_ns())
        if error is not None:
            raise error

    return run


def device_on(link: Link, **options: Any) -> StreamDevice:
    return StreamDevice("pi-1", "tfluna", link, TfLunaDecoder, **options)


async def take(device: StreamDevice, count: int) -> list[Reading]:
    found: list[Reading] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for reading in device.readings():
            found.append(reading)
            if len(found) == count:
                break
    return found


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not holds():
            await asyncio.sleep(0.005)


def test_readings_have_both_clocks_in_order() -> None:
    async def scenario() -> list[Reading]:
        device = device_on(PlayedLink(gives(FRAME, FRAME * 5, FRAME * 3)))
        try:
            return await take(device, 9)
        finally:
            await device.close()

    before_ns, before = time.monotonic_ns(), time.time()
    found = asyncio.run(scenario())
    stamps = [each.monotonic_ns for each in found]
    assert stamps == sorted(stamps)
    assert before_ns <= stamps[0]
    assert stamps[-1] <= time.monotonic_ns()
    assert all(before - 1 <= each.captured_at.timestamp() <= time.time() + 1 for each in found)
    assert {(each.device_id, each.sensor) for each in found} == {("pi-1", "tfluna")}
    assert found[0].values == {
        "distance_cm": 200.0,
        "amplitude": 1500,
        "temperature_c": 31.0,
        "valid": True,
    }


def test_what_arrives_in_one_piece_is_spread_over_the_time_since_the_piece_before() -> None:
    async def run(receiver: Receiver) -> None:
        receiver.opened()
        now = time.monotonic_ns()
        receiver.data(FRAME, now - 20_000_000)
        receiver.data(FRAME * 4, now)

    async def scenario() -> list[Reading]:
        device = device_on(PlayedLink(run))
        try:
            return await take(device, 5)
        finally:
            await device.close()

    found = asyncio.run(scenario())
    steps = [later.monotonic_ns - each.monotonic_ns for each, later in itertools.pairwise(found)]
    assert steps == [5_000_000] * 4


@pytest.mark.parametrize(
    "error", [LinkLost("gone"), OSError(5, "Input/output error"), RuntimeError("a library's bug")]
)
def test_a_link_that_is_lost_comes_back(error: Exception) -> None:
    async def scenario() -> None:
        link = PlayedLink(gives(FRAME, error=error), gives(error=LinkLost("still away")), gives(FRAME, FRAME))
        device = device_on(link)
        assert len(await take(device, 3)) == 3
        state = device.state
        assert (state.connected, state.readings, state.reconnects, state.errors) == (True, 3, 1, 2)
        assert state.last_error == "still away"
        assert state.lost_at is None
        await device.close()
        assert link.opened == link.closed == 3
        assert not state.connected

    asyncio.run(scenario())


def test_while_it_is_away_the_state_says_since_when_and_why() -> None:
    async def scenario() -> None:
        device = device_on(PlayedLink(gives(FRAME, error=LinkLost("the cable is out"))))
        await take(device, 1)
        await until(lambda: not device.state.connected)
        state = device.state.as_json()
        assert state["last_error"] == "the cable is out"
        assert state["lost_at"] is not None
        await device.close()

    asyncio.run(scenario())


def test_a_link_that_is_open_and_silent_is_given_up() -> None:
    async def scenario() -> None:
        link = PlayedLink(gives(FRAME), gives(), gives(FRAME))
        device = device_on(link, silence_seconds=0.05)
        assert len(await take(device, 2)) == 2
        assert device.state.last_error == "no reading for 0.05 s"
        await device.close()
        assert link.opened == link.closed

    asyncio.run(scenario())


def test_the_end_of_a_link_ends_the_readings() -> None:
    class Ending(PlayedLink):
        async def run(self, receiver: Receiver) -> None:
            await gives(FRAME, FRAME)(receiver)

    async def scenario() -> int:
        device = device_on(Ending())
        async with asyncio.timeout(DEADLINE_SECONDS):
            return len([reading async for reading in device.readings()])

    assert asyncio.run(scenario()) == 2


def test_what_nobody_fetches_in_time_is_dropped_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BUFFERED", 3)

    async def scenario() -> None:
        frames = [frame_of(200 + number, 1500, 31.0) for number in range(10)]
        device = device_on(PlayedLink(gives(*frames)))
        assert [each.values["distance_cm"] for each in await take(device, 3)] == [207.0, 208.0, 209.0]
        assert device.state.dropped == 7
        await device.close()

    asyncio.run(scenario())


def test_all_who_ask_at_once_get_one_reading() -> None:
    async def scenario() -> None:
        link = PlayedLink(gives(FRAME))
        device = device_on(link)
        answers = await asyncio.gather(*(device.read() for _ in range(20)))
        assert len({id(answer) for answer in answers}) == 1
        assert device.state.readings == link.opened == 1
        await device.close()

    asyncio.run(scenario())


def test_who_asks_a_sensor_that_is_away_is_told_why() -> None:
    async def scenario() -> None:
        device = device_on(PlayedLink(gives(error=LinkLost("no such port"))), patience_seconds=1.5)
        with pytest.raises(Unavailable, match="no such port"):
            await device.read()
        await device.close()
        with pytest.raises(Unavailable):
            await device.read()

    asyncio.run(scenario())


def test_closing_twice_and_reading_on_after_it() -> None:
    async def scenario() -> None:
        closed: list[str] = []
        device = device_on(PlayedLink(gives(FRAME)), closed=lambda: closed.append("once"))
        await take(device, 1)
        await device.close()
        await device.close()
        assert [each async for each in device.readings()] == []
        assert closed == ["once"]

    asyncio.run(scenario())


def test_measurements_that_come_too_soon_are_left_out_and_counted() -> None:
    async def run(receiver: Receiver) -> None:
        receiver.opened()
        receiver.data(b"\n", 1_000_000_000)
        for number in range(100):
            receiver.data(b"50\n", 1_000_000_000 + number * 6_000_000)
        receiver.data(b"51\n", 3_000_000_000)

    async def scenario() -> None:
        device = StreamDevice(
            "pi-1", "hcsr04", PlayedLink(run), lambda: HcSr04Decoder("ascii"), allows=Pace(60_000_000).allows
        )
        found = await take(device, 10)
        await until(lambda: device.state.readings + device.state.details["too_soon"] == 101)
        assert 10 <= device.state.readings <= 15
        assert found[0].values == {"distance_cm": 50.0, "valid": True}
        await device.close()

    asyncio.run(scenario())


# MPU-6050 over I2C


def on_chip(chip: Mpu6050Chip, **options: Any) -> StreamDevice:
    link = Mpu6050Link(chip.open, "chip", address=0x68, ranges=Ranges(), hertz=200)
    return StreamDevice("pi-1", "mpu6050", link, lambda: BurstDecoder(Ranges()), **options)


def test_the_chip_is_woken_up_and_read_twice() -> None:
    chip = Mpu6050Chip()

    async def scenario() -> list[Reading]:
        device = on_chip(chip)
        try:
            return await take(device, 20)
        finally:
            await device.close()

    for _ in range(2):
        found = asyncio.run(scenario())
        gravity = [sum(float(each.values[axis]) ** 2 for axis in ("ax_g", "ay_g", "az_g")) for each in found]  # type: ignore[arg-type]
        assert gravity == pytest.approx([1.0] * len(gravity), abs=0.01)
        chip.registers[0x6B] = 0x40


def test_a_glitch_on_the_bus_is_counted_and_costs_no_connection() -> None:
    async def scenario() -> None:
        chip = Mpu6050Chip()
        device = on_chip(chip)
        await take(device, 2)
        chip.failing = 3
        await until(lambda: device.state.errors >= 3)
        seen = device.state.readings
        await until(lambda: device.state.readings > seen)
        assert (device.state.connected, device.state.reconnects, device.state.errors) == (True, 0, 3)
        await device.close()

    asyncio.run(scenario())


class CountingChip(Mpu6050Chip):
    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def transfer(self, address: int, register: int, length: int) -> bytes:
        found = super().transfer(address, register, length)
        self.read += length if register == ACCEL_XOUT_H else 0
        return found


class Received:
    """A receiver that counts bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    def opened(self) -> None: ...

    def data(self, data: bytes, _: int) -> None:
        self.bytes += len(data)

    def fault(self, reason: str) -> None: ...


@pytest.mark.parametrize("end", ["failure", "close"])
def test_what_was_read_from_the_chip_before_the_end_is_handed_over(end: str) -> None:
    async def scenario() -> None:
        chip, received = CountingChip(), Received()
        link = Mpu6050Link(chip.open, "chip", address=0x68, ranges=Ranges(), hertz=1000)
        run = asyncio.create_task(link.run(received))
        await until(lambda: received.bytes > 0)
        await until(lambda: chip.read > received.bytes)
        if end == "failure":
            chip.failing = -1
        else:
            run.cancel()
        await asyncio.wait({run})
        assert received.bytes == chip.read

    asyncio.run(scenario())


def test_a_chip_that_is_away_and_comes_back_asleep_is_woken_again() -> None:
    async def scenario() -> None:
        chip = Mpu6050Chip()
        device = on_chip(chip)
        await take(device, 2)
        chip.failing = -1
        await until(lambda: not device.state.connected)
        assert device.state.last_error == "Remote I/O error"
        # It was without power.
        chip.registers[0x6B], chip.failing = 0x40, 0
        await until(lambda: device.state.connected)
        assert device.state.reconnects == 1
        await device.close()

    asyncio.run(scenario())


def test_another_chip_is_not_taken_for_an_mpu6050() -> None:
    async def scenario() -> None:
        device = on_chip(Mpu6050Chip(identity=0x70), patience_seconds=1.5)
        with pytest.raises(Unavailable, match="says it is 0x70"):
            await device.read()
        await device.close()

    asyncio.run(scenario())


# Recordings


def test_a_recording_replays_to_the_same_readings_twice(tmp_path: Path) -> None:
    path = tmp_path / "tfluna.jsonl"
    pieces = [frame_of(200 + number % 3, 1500, 31.0) for number in range(50)]
    pieces[7] = b"\x00\x59" + pieces[7]

    async def record() -> list[Reading]:
        with path.open("w") as file:
            device = device_on(RecordingLink(PlayedLink(gives(*pieces)), "tfluna", file))
            found = await take(device, 50)
            await device.close()
            return found

    async def replay() -> list[Reading]:
        device = device_on(ReplayLink(path, "tfluna", speed=float("inf")))
        async with asyncio.timeout(DEADLINE_SECONDS):
            return [reading async for reading in device.readings()]

    recorded = [each.values for each in asyncio.run(record())]
    assert [each.values for each in asyncio.run(replay())] == recorded
    assert [each.values for each in asyncio.run(replay())] == recorded


def test_a_recording_whose_last_line_was_cut_off_is_read_up_to_it(tmp_path: Path) -> None:
    file = io.StringIO()
    link = RecordingLink(PlayedLink(gives(FRAME, FRAME)), "tfluna", file)

    async def record() -> None:
        device = device_on(link)
        await take(device, 2)
        await device.close()

    asyncio.run(record())
    path = tmp_path / "cut.jsonl"
    path.write_text(file.getvalue()[:-5])
    assert [data for _, data in read(path, "tfluna")] == [FRAME]


@pytest.mark.parametrize(
    "text",
    ["", "[]\n", '{"recording": "mpu6050", "version": 1}\n', '{"recording": "tfluna", "version": 2}\n']
    + [f'{{"recording": "tfluna", "version": 1}}\n{line}\n' for line in ("{}", "x", '{"t":0,"data":"?"}')],
)
def test_what_is_no_recording_of_the_sensor_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text)
    with pytest.raises(LinkLost, match=r"other\.jsonl"):
        list(read(path, "tfluna"))


def test_a_recording_of_lines_replays_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "mpu6050.jsonl"
    with path.open("w") as file:
        link = RecordingLink(PlayedLink(gives(b"\n0,0,1,", b"0,0,0,20\n")), "mpu6050", file)

        async def record() -> None:
            device = StreamDevice("pi-1", "mpu6050", link, LineDecoder)
            await take(device, 1)
            await device.close()

        asyncio.run(record())
    assert [data for _, data in read(path, "mpu6050")] == [b"\n0,0,1,", b"0,0,0,20\n"]


def test_smbus2_itself_reads_the_chip_through_the_kernels_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver over the real library; what stands for the kernel is its ioctl of an I2C adapter."""
    chip = Mpu6050Chip()
    chosen: list[int] = []

    def ioctl(descriptor: int, request: int, argument: Any) -> int:
        if request == smbus2.I2C_SLAVE:
            chosen.append(argument)
        elif request == smbus2.I2C_FUNCS:
            argument.value = int(smbus2.I2cFunc.SMBUS_EMUL)
        elif request == smbus2.I2C_SMBUS and argument.read_write == smbus2.I2C_SMBUS_READ:
            if argument.size == smbus2.I2C_SMBUS_I2C_BLOCK_DATA:
                block = chip.transfer(chosen[-1], argument.command, argument.data.contents.block[0])
                argument.data.contents.block[1 : 1 + len(block)] = list(block)
            else:
                argument.data.contents.byte = chip.transfer(chosen[-1], argument.command, 1)[0]
        elif request == smbus2.I2C_SMBUS:
            chip.write(chosen[-1], argument.command, argument.data.contents.byte)
        return 0

    monkeypatch.setattr(smbus2, "ioctl", ioctl)

    async def scenario() -> list[Reading]:
        link = Mpu6050Link(
            lambda: smbus2.SMBus(os.devnull), "null", address=0x68, ranges=Ranges(4, 500), hertz=200
        )
        device = StreamDevice("pi-1", "mpu6050", link, lambda: BurstDecoder(Ranges(4, 500)))
        try:
            return await take(device, 5)
        finally:
            await device.close()

    for _ in range(2):
        for reading in asyncio.run(scenario()):
            assert reading.values["ax_g"] ** 2 + reading.values["az_g"] ** 2 == pytest.approx(1, abs=0.01)  # type: ignore[operator]
    assert set(chosen) == {0x68}
    assert (chip.registers[0x1B], chip.registers[0x1C]) == (1 << 3, 1 << 3)
