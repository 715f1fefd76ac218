"""`edge-devices`: the drivers alone.

What noise does to a TF-Luna, what a driver costs, what two threads bring to the analysis of a picture, and
how soon a sensor that was away is back.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import figure, median
from edge_publisher.devices.build import open_devices
from edge_publisher.devices.i2c_link import Mpu6050Link
from edge_publisher.devices.imx477 import measure
from edge_publisher.devices.pool import Pool
from edge_publisher.devices.protocol import Device
from edge_publisher.devices.serial_link import SerialLink
from edge_publisher.devices.stream import StreamDevice
from edge_publisher.domain.mpu6050 import BurstDecoder, Ranges
from edge_publisher.domain.picture import grey_of, laser, luminosity, sharpness
from edge_publisher.domain.tfluna import FRAME, TfLunaDecoder, frame_of
from edge_publisher.simulation.camera import MovingCamera
from edge_publisher.simulation.chip import Mpu6050Chip
from edge_publisher.simulation.process import SimulatedLink
from edge_publisher.simulation.ptys import TfLunaSensor
from visionmesh.contracts import TfLunaValues
from visionmesh.errors import Unavailable
from visionmesh.settings import EdgeSettings

CONNECT_SECONDS = 60.0

HERTZ = 250
NOISE = 0.01

# What the seed gives for one after the other, on a Raspberry Pi.
SEED_MS = 450.0

# The IMX477's own size, and what a preview has.
SIZES = ((4056, 3040), (2028, 1520), (1014, 760))

Distances = Sequence[tuple[float | None, int]]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mesh bench edge-devices", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000, help="damaged frames that are decoded")
    parser.add_argument("--seconds", type=float, default=20, help="for each measurement of a running driver")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["noise", "driver", "analysis", "recovery"])
    options = parser.parse_args(arguments)
    parts: dict[str, Callable[[], None]] = {
        "noise": lambda: noise(options.frames),
        "driver": lambda: drivers(options.seconds),
        "analysis": lambda: asyncio.run(analysis(options.rounds)),
        "recovery": lambda: asyncio.run(recovery(options.rounds)),
    }
    for name, part in parts.items():
        if options.only in (None, name):
            part()
    return 0


# Noise


def scene(start: int, count: int, seed: int) -> tuple[Distances, bytes]:
    """Distances and amplitudes at 250 Hz of something that moves, comes and goes; and their frames."""
    draw = np.random.default_rng((seed, start))
    at = (start + np.arange(count)) / HERTZ
    moving = 250 + 150 * np.sin(np.pi * at) + 200 * (at // 2 % 2) + draw.normal(0, 1, count)
    distance = np.clip(moving.round(), 3, 800).astype(np.uint16)
    amplitude = np.clip(1500 + draw.normal(0, 15, count), 100, 60_000).astype(np.uint16)
    degrees = ((31 + np.sin(at / 60) + 256) * 8).round().astype(np.uint16)
    frames = np.full((count, FRAME), 0x59, np.uint8)
    for column, values in ((2, distance), (4, amplitude), (6, degrees)):
        frames[:, column], frames[:, column + 1] = values & 0xFF, values >> 8
    frames[:, 8] = frames[:, :8].sum(axis=1, dtype=np.uint32) & 0xFF
    return list(zip(distance.tolist(), amplitude.tolist(), strict=True)), frames.tobytes()


def damaged(data: bytes, kind: str, seed: int) -> bytes:
    """One byte in a hundred replaced by any other, or with one bit of it flipped."""
    draw = np.random.default_rng(seed)
    found = np.frombuffer(data, np.uint8).copy()
    hit = draw.random(found.size) < NOISE
    count = int(hit.sum())
    if kind == "replaced":
        found[hit] += draw.integers(1, 256, count).astype(np.uint8)
    else:
        found[hit] ^= (1 << draw.integers(0, 8, count)).astype(np.uint8)
    return found.tobytes()


def wrong_by(found: Sequence[TfLunaValues], truth: Distances) -> Iterator[int]:
    """By how many cm each accepted distance is off that was never sent, given what was, in order."""
    place = 0
    for each in found:
        ahead = truth[place : place + 100]
        sent = (each.distance_cm, each.amplitude)
        if sent in ahead:
            place += ahead.index(sent) + 1
            continue
        near = [distance for distance, _ in truth[max(0, place - 2) : place + 4] if distance is not None]
        error = min((abs(int(each.distance_cm or 0) - int(one)) for one in near), default=0)
        if error:
            yield error


def noise(frames: int) -> None:
    block = 25_000
    for kind in ("replaced", "flipped"):
        undamaged = accepted = sent = 0
        wrong: Counter[int] = Counter()
        for number in range(max(1, frames // block)):
            truth, clean = scene(number * block, block, seed=1)
            data = damaged(clean, kind, number)
            found = TfLunaDecoder().feed(data)
            wrong.update(wrong_by(found, truth))
            whole = np.frombuffer(data, np.uint8).reshape(-1, FRAME)
            undamaged += int((whole == np.frombuffer(clean, np.uint8).reshape(-1, FRAME)).all(axis=1).sum())
            accepted += len(found)
            sent += block
        print(
            f"edge-devices: 1 byte in 100 {kind}: {sent} frames sent, {undamaged} undamaged, "
            f"{accepted} accepted ({100 - 100 * accepted / undamaged:.3f} % of the undamaged lost), "
            f"{sum(wrong.values())} wrong distances {dict(sorted(wrong.items())) or ''}",
            flush=True,
        )


# Drivers


async def connected(device: Device) -> None:
    """Waits until it gives readings: on a busy machine, longer than who asks for one waits."""
    async with asyncio.timeout(CONNECT_SECONDS):
        while not device.state.connected:
            with suppress(Unavailable):
                await device.read()


class Sequence250(TfLunaSensor):
    """Sends a known sequence, so that what arrives can be compared with it."""

    def __init__(self, path: Path, frames: bytes, **options: Any) -> None:
        super().__init__(path, HERTZ, **options)
        self._frames = frames
        self._number = 0

    def message(self, seconds: float) -> bytes:
        start = self._number * FRAME
        self._number += 1
        return self._frames[start : start + FRAME] or frame_of(100, 1500, 31.0)


def send(path: Path, noise_share: float, count: int, begin: Any) -> None:
    """In a process of its own: plugs in, and sends when it is told to."""
    _, frames = scene(0, count, seed=2)
    sensor = Sequence250(path, frames, noise=noise_share, seed=3)
    sensor.plug()
    begin.wait()
    asyncio.run(sensor.run())


def drivers(seconds: float) -> None:
    for share in (0.0, NOISE):
        asyncio.run(on_a_terminal(seconds, share))
    asyncio.run(on_a_bus(seconds))


async def on_a_terminal(seconds: float, share: float) -> None:
    """The TF-Luna's driver on a pseudo-terminal at 250 Hz."""
    count = int((seconds + 5) * HERTZ)
    truth, _ = scene(0, count, seed=2)
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        port, begin = Path(folder) / "tfluna", context.Event()
        process = context.Process(target=send, args=(port, share, count, begin), daemon=True)
        process.start()
        while not port.exists():
            await asyncio.sleep(0.05)
        device = StreamDevice("bench", "tfluna", SerialLink(str(port), 115200), TfLunaDecoder)
        found: list[TfLunaValues] = []

        async def collect() -> None:
            async for reading in device.readings():
                found.append(TfLunaValues(**dict(reading.values)))  # type: ignore[arg-type]

        collecting = asyncio.create_task(collect())
        # The port has to be open: what a sensor sends before is nobody's.
        await asyncio.sleep(1)
        begin.set()
        while not found:
            await asyncio.sleep(0.05)
        spent, started = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        share_of_core = 100 * (time.process_time() - spent) / (time.monotonic() - started)
        process.terminate()
        await device.close()
        collecting.cancel()
    wrong = list(wrong_by(found, truth))
    at = found[-1].distance_cm, found[-1].amplitude
    sent = len(truth) - truth[::-1].index(at) if at in truth else len(found)
    print(
        f"edge-devices: TF-Luna on a pty, noise {share:.0%}: {sent} frames sent, {len(found)} accepted "
        f"({(1 - share) ** FRAME:.1%} of them arrive undamaged), {len(wrong)} wrong {wrong or ''}; "
        f"{device.state.details}, {device.state.dropped} dropped"
    )
    figure(f"edge-devices: TF-Luna driver, noise {share:.0%} (goal 2)", [share_of_core], "% core")


async def on_a_bus(seconds: float) -> None:
    """The MPU-6050's driver on the registers of a chip, whose cost is counted too."""
    for hertz in (100, 200, 500):
        link = Mpu6050Link(Mpu6050Chip().open, "chip", address=0x68, ranges=Ranges(), hertz=hertz)
        device = StreamDevice("bench", "mpu6050", link, lambda: BurstDecoder(Ranges()))
        await connected(device)
        spent, started, before = time.process_time(), time.monotonic(), device.state.readings
        await asyncio.sleep(seconds / 3)
        passed = time.monotonic() - started
        figure(f"edge-devices: MPU-6050 at {hertz} Hz", [(device.state.readings - before) / passed], "/s")
        figure(
            f"edge-devices: MPU-6050 driver at {hertz} Hz",
            [100 * (time.process_time() - spent) / passed],
            "% core",
        )
        await device.close()


# Analysis


class CountingPool(Pool):
    """spent: seconds of processor that each thread has spent: on cores of its own it would take no longer."""

    def __init__(self, *arguments: Any) -> None:
        self.spent: Counter[int] = Counter()
        super().__init__(*arguments)

    async def run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        def work() -> Any:
            before = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.spent[threading.get_ident()] += time.thread_time() - before  # type: ignore[assignment]

        return await super().run(work)


async def analysis(rounds: int) -> None:
    """One after the other, and in the camera's two threads, by turns."""
    cv2.setNumThreads(1)
    pool = CountingPool(2, "bench", lambda _: None)
    for width, height in SIZES:
        picture = MovingCamera(width, height, seconds=0).capture()
        grey = grey_of(picture)
        work: tuple[Callable[[NDArray[np.uint8]], object], ...] = (luminosity, sharpness, laser)
        sequential, parallel, whole, shares = [], [], [], []
        for _ in range(max(5, rounds)):
            each = [timed(function, grey) for function in work]
            sequential.append(sum(each))
            pool.spent.clear()
            started = time.perf_counter()
            await measure(pool, grey)
            shares.append(sum(pool.spent.values()) / max(pool.spent.values()))
            parallel.append((time.perf_counter() - started) * 1000)
            started = time.perf_counter()
            again = await pool.run(grey_of, picture)
            await measure(pool, again)
            whole.append((time.perf_counter() - started) * 1000)
        name = f"edge-devices: {width}x{height}"
        figure(f"{name}, one after the other", sequential, "ms")
        figure(f"{name}, two threads", parallel, "ms")
        figure(f"{name}, gain", [one / two for one, two in zip(sequential, parallel, strict=True)], "x")
        figure(f"{name}, with its grey picture", whole, "ms")
        best = min(sequential) / min(parallel)
        print(f"{'':<44} {best:.2f} x of the best rounds; two cores can give 2 x", flush=True)
        figure(f"{name}, all work / busier thread's", shares, "x")
        print(f"{'':<44} {SEED_MS / median(whole):.1f} x the seed's {SEED_MS:.0f} ms", flush=True)
    pool.close()


def timed(function: Callable[[NDArray[np.uint8]], object], grey: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    function(grey)
    return (time.perf_counter() - started) * 1000


# Recovery


async def recovery(rounds: int) -> None:
    """How soon readings are back, when the hardware is back after 0.5 to 2 s."""
    sensors = ["tfluna", "mpu6050"]
    if shutil.which("dbus-daemon"):
        sensors.append("hcsr04")
    draw = random.Random(7)
    for sensor in sensors:
        (device,) = open_devices(
            EdgeSettings(sensors=(sensor,), simulate=(sensor,), mpu6050_link="serial")  # type: ignore[arg-type]
        )
        assert isinstance(device, StreamDevice)
        assert isinstance(device._link, SimulatedLink)
        simulator = device._link._simulator
        await connected(device)

        async def unplug(sensor: str = sensor, do: Callable[..., Any] = simulator.do) -> None:
            await asyncio.to_thread(do, "unplug", sensor=sensor)

        async def plug(sensor: str = sensor, do: Callable[..., Any] = simulator.do) -> None:
            await asyncio.to_thread(do, "plug", sensor=sensor)

        await lost_and_found(device, unplug, plug, rounds, draw)
        await device.close()
    chip = Mpu6050Chip()
    device = StreamDevice(
        "bench",
        "mpu6050",
        Mpu6050Link(chip.open, "i2c", address=0x68, ranges=Ranges(), hertz=100),
        lambda: BurstDecoder(Ranges()),
    )
    await connected(device)

    async def fail() -> None:
        chip.failing = -1

    async def work() -> None:
        chip.failing = 0

    await lost_and_found(device, fail, work, rounds, draw)
    await device.close()


async def lost_and_found(
    device: StreamDevice, lose: Callable[[], Any], find: Callable[[], Any], rounds: int, draw: random.Random
) -> None:
    noticed, back = [], []
    said = ""
    for _ in range(max(5, rounds)):
        started = time.monotonic()
        await lose()
        while device.state.connected:
            await asyncio.sleep(0.005)
        noticed.append(time.monotonic() - started)
        said = device.state.last_error or ""
        await asyncio.sleep(draw.uniform(0.5, 2))
        started = time.monotonic()
        await find()
        while not device.state.connected:
            await asyncio.sleep(0.005)
        back.append(time.monotonic() - started)
    name = f"edge-devices: {device.state.sensor} ({device.state.source})"
    figure(f"{name}, loss noticed", noticed, "s")
    figure(f"{name}, back after", back, "s")
    print(f"{'':<44} /health said: {said}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
