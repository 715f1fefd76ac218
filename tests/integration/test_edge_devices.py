"""The real drivers on simulated hardware: pseudo-terminals, registers of a chip, BlueZ on its own D-Bus."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_publisher.devices.build import open_devices
from edge_publisher.devices.protocol import Device, Reading
from edge_publisher.devices.stream import StreamDevice
from edge_publisher.simulation import world
from edge_publisher.simulation.process import SimulatedLink, Simulator
from edge_publisher.simulation.ptys import TfLunaSensor
from visionmesh.cli import app
from visionmesh.contracts import VALUES
from visionmesh.errors import Unavailable
from visionmesh.settings import EdgeSettings, get_edge_settings

DEADLINE_SECONDS = 60.0
SENSORS = ("imx477", "mpu6050", "tfluna", "hcsr04")

needs_a_bus = pytest.mark.skipif(
    shutil.which("dbus-daemon") is None, reason="needs dbus-daemon (Debian: apt install dbus-daemon)"
)


@pytest.fixture(autouse=True)
def _own_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation sets it for the process; another test has another bus."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "")


def settings(**changes: Any) -> EdgeSettings:
    return EdgeSettings(device_id="pi-1", simulate=SENSORS, camera_width=320, camera_height=240, **changes)


async def until(holds: Callable[[], bool], what: str = "") -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not holds():
            await asyncio.sleep(0.01)


async def take(device: Device, count: int) -> list[Reading]:
    found: list[Reading] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for reading in device.readings():
            found.append(reading)
            if len(found) == count:
                break
    return found


def simulator_of(device: Device) -> Simulator:
    assert isinstance(device, StreamDevice)
    link = device._link
    assert isinstance(link, SimulatedLink)
    return link._simulator


def all_plausible(found: list[Reading]) -> bool:
    """Whether the world had anything like them at about their time (the sensors' process has the same clock).

    What a sensor sent while this machine halted is read, and gets its time, when that goes on.
    """
    stamps = [each.monotonic_ns / 1e9 for each in found]
    halt = max(later - earlier for earlier, later in pairwise(stamps))
    return all(plausible(each, 2 + halt) for each in found)


def plausible(reading: Reading, seconds: float) -> bool:
    """Whether the world had anything like it in so many seconds before its time."""
    at = reading.monotonic_ns / 1e9
    around = [at + step / 20 for step in range(-round(20 * seconds), 10)]
    values: Any = reading.values
    if reading.sensor == "tfluna" and values["valid"]:
        return min(abs(values["distance_cm"] - world.light_distance_cm(each)) for each in around) <= 5
    if reading.sensor == "hcsr04":
        return min(abs(values["distance_cm"] - world.sound_distance_cm(each)) for each in around) <= 2
    if reading.sensor == "mpu6050":
        return min(abs(values["gy_dps"] - world.motion(each).gyro_dps[1]) for each in around) <= 2
    return True


@pytest.mark.parametrize(
    ("sensor", "changes"),
    [
        ("tfluna", {"tfluna_hz": 250}),
        ("mpu6050", {}),
        ("mpu6050", {"mpu6050_link": "serial"}),
        pytest.param("hcsr04", {}, marks=needs_a_bus),
        pytest.param("hcsr04", {"hcsr04_format": "uint16_mm", "hcsr04_name": "hc-sr04"}, marks=needs_a_bus),
        ("imx477", {"camera_interval_seconds": 0.05}),
    ],
    ids=["tfluna", "mpu6050-i2c", "mpu6050-serial", "hcsr04", "hcsr04-uint16", "imx477"],
)
def test_every_sensor_is_read_twice(sensor: str, changes: dict[str, Any]) -> None:
    async def scenario() -> list[Reading]:
        (device,) = open_devices(settings(sensors=(sensor,), **changes))
        try:
            found = await take(device, 12)
            assert device.state.connected
            assert (await device.read()).sensor == sensor
            return found
        finally:
            await device.close()

    for _ in range(2):
        found = asyncio.run(scenario())
        assert all(set(each.values) == set(VALUES[sensor].__struct_fields__) for each in found)
        stamps = [each.monotonic_ns for each in found]
        assert stamps == sorted(stamps)
        assert all_plausible(found), found


@pytest.mark.parametrize(
    ("sensor", "told"),
    [
        ("tfluna", "the port"),
        ("mpu6050", "the port"),
        pytest.param("hcsr04", "the peripheral disconnected", marks=needs_a_bus),
    ],
)
def test_a_sensor_that_goes_away_comes_back_by_itself(sensor: str, told: str) -> None:
    async def scenario() -> None:
        (device,) = open_devices(settings(sensors=(sensor,), mpu6050_link="serial"))
        simulator = simulator_of(device)
        # A halt of this machine is no loss, and what is pulled out is known without waiting for silence.
        device._silence_seconds = 10 * DEADLINE_SECONDS
        await take(device, 3)
        for times in (1, 2):
            await asyncio.to_thread(simulator.do, "unplug", sensor=sensor)
            await until(lambda: not device.state.connected)
            state = device.state.as_json()
            assert state["lost_at"] is not None
            assert told in state["last_error"]
            seen = device.state.readings
            await asyncio.to_thread(simulator.do, "plug", sensor=sensor)
            await until(lambda seen=seen: device.state.connected and device.state.readings > seen)  # type: ignore[misc]
            assert device.state.reconnects == times
        await device.close()

    asyncio.run(scenario())


@needs_a_bus
@pytest.mark.parametrize("changes", [{}, {"hcsr04_address": "c0:ff:ee:00:00:04"}, {"hcsr04_name": "hc-sr04"}])
def test_a_peripheral_that_a_killed_process_left_connected_is_found(changes: dict[str, str]) -> None:
    async def scenario() -> list[Reading]:
        (device,) = open_devices(settings(sensors=("hcsr04",), **changes))
        await asyncio.to_thread(simulator_of(device).do, "connect", sensor="hcsr04")
        found = await take(device, 3)
        await device.close()
        return found

    assert all_plausible(asyncio.run(scenario()))


@needs_a_bus
def test_another_peripheral_is_not_taken_for_the_one_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_publisher.devices import ble_link

    monkeypatch.setattr(ble_link, "_SCAN_SECONDS", 1.0)

    async def scenario(connected: bool) -> None:
        (device,) = open_devices(settings(sensors=("hcsr04",), hcsr04_name="another"))
        if connected:
            await asyncio.to_thread(simulator_of(device).do, "connect", sensor="hcsr04")
        with pytest.raises(Unavailable):
            await device.read()
        await until(lambda: device.state.last_error is not None)
        assert device.state.last_error == "no peripheral with another in reach"
        await device.close()

    for connected in (False, True):
        asyncio.run(scenario(connected))


@pytest.mark.parametrize("form", ["ascii", "uint16_mm"])
def test_without_a_bus_there_are_the_notifications_alone(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    async def scenario() -> list[Reading]:
        (device,) = open_devices(settings(sensors=("hcsr04",), hcsr04_format=form))
        found = await take(device, 3)
        await device.close()
        return found

    assert all_plausible(asyncio.run(scenario()))


def test_noise_on_the_cable_costs_frames_and_gives_no_wrong_distance() -> None:
    async def scenario() -> tuple[list[Reading], dict[str, int]]:
        (device,) = open_devices(settings(sensors=("tfluna",), tfluna_hz=250))
        simulator = simulator_of(device)

        async def sent() -> int:
            return int((await asyncio.to_thread(simulator.do, "sent"))["tfluna"])

        await take(device, 1)
        await asyncio.to_thread(simulator.do, "noise", sensor="tfluna", share=0.01)
        before, seen = await sent(), device.state.readings
        found = await take(device, 1000)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                readings = device.state.readings
                frames = await sent()
                assert readings <= frames
                # A frame has nine bytes: 8.6 % are hit. What is on its way while they are counted, after a
                # halt a whole buffer, is read by the next time.
                if readings - seen >= 0.85 * (frames - before):
                    break
                await asyncio.sleep(0.1)
        await device.close()
        return found, device.state.details

    found, details = asyncio.run(scenario())
    assert all_plausible(found)
    assert details["damaged"] > 0


def test_two_publishers_do_not_share_a_port(tmp_path: Path) -> None:
    async def scenario() -> None:
        sensor = TfLunaSensor(tmp_path / "tfluna", 100)
        sensor.plug()
        sending = asyncio.create_task(sensor.run())
        real = EdgeSettings(sensors=("tfluna",), tfluna_port=str(sensor.path))
        (first,), (second,) = open_devices(real), open_devices(real)
        await take(first, 1)
        with pytest.raises(Exception, match="can't be opened"):
            await second.read()
        await first.close()
        assert (await take(second, 1))[0].sensor == "tfluna"
        await second.close()
        sending.cancel()
        sensor.unplug()

    asyncio.run(scenario())


def test_the_simulation_ends_with_its_last_sensor() -> None:
    async def scenario() -> None:
        devices = open_devices(settings(sensors=("tfluna", "mpu6050"), mpu6050_link="serial"))
        simulator = simulator_of(devices[0])
        for device in devices:
            await take(device, 1)
        process = simulator._process
        assert process is not None
        assert process.poll() is None
        folder = Path(str(simulator.places()["tfluna"])).parent
        await devices[0].close()
        assert process.poll() is None
        await devices[1].close()
        assert process.poll() == 0
        assert not folder.exists()

    asyncio.run(scenario())


def test_a_simulation_that_was_killed_is_started_again() -> None:
    async def scenario() -> None:
        (device,) = open_devices(settings(sensors=("tfluna",)))
        simulator = simulator_of(device)
        await take(device, 1)
        process = simulator._process
        assert process is not None
        process.kill()
        await until(lambda: device.state.reconnects == 1)
        assert simulator._process is not process
        await device.close()

    asyncio.run(scenario())


@pytest.fixture
def _simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EDGE_SIMULATE", "all")
    monkeypatch.setenv("EDGE_CAMERA_WIDTH", "320")
    monkeypatch.setenv("EDGE_CAMERA_HEIGHT", "240")
    get_edge_settings.cache_clear()
    yield
    get_edge_settings.cache_clear()


@pytest.mark.usefixtures("_simulated")
@pytest.mark.parametrize("sensor", ["tfluna", "mpu6050", "imx477", pytest.param("hcsr04", marks=needs_a_bus)])
def test_what_mesh_edge_record_writes_is_replayed(
    sensor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = CliRunner()
    path = tmp_path / f"{sensor}.jsonl"
    recorded = command.invoke(app, ["edge", "record", sensor, "--output", str(path), "--seconds", "1.5"])
    assert recorded.exit_code == 0, recorded.output
    monkeypatch.setenv("EDGE_REPLAY", str(tmp_path))
    get_edge_settings.cache_clear()
    replayed = command.invoke(app, ["edge", "read", sensor, "--seconds", "1"])
    assert replayed.exit_code == 0, replayed.output
    lines = [json.loads(line) for line in replayed.stdout.splitlines()]
    assert lines
    assert all(set(VALUES[sensor].__struct_fields__) < set(line) for line in lines)


def test_a_sensor_that_is_not_there_ends_the_command_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from visionmesh.cli import edge

    monkeypatch.setattr(edge, "_OPENING_SECONDS", 2.0)
    monkeypatch.setenv("EDGE_TFLUNA_PORT", "/dev/ttyUSB99")
    get_edge_settings.cache_clear()
    command = CliRunner()
    answer = command.invoke(app, ["edge", "read", "tfluna", "--seconds", "0.1"])
    get_edge_settings.cache_clear()
    assert answer.exit_code == 1
    assert "/dev/ttyUSB99 can't be opened: No such file or directory" in answer.stderr
    assert command.invoke(app, ["edge", "read", "sonar"]).exit_code == 2


@needs_a_bus
def test_the_bus_of_the_simulation_is_for_this_process_alone() -> None:
    simulator = Simulator()
    try:
        address = simulator.places()["bus"]
        assert address is not None
        assert address.startswith(f"unix:path={Path(str(simulator.places()['tfluna'])).parent}/")
        assert os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") != address
    finally:
        simulator.close()
