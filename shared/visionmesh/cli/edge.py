"""`mesh edge`: the sensors of this machine, without servers."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final

import typer

from visionmesh.cli.console import complain, fail

if TYPE_CHECKING:
    from edge_publisher.devices.protocol import Reading
    from visionmesh.settings import EdgeSettings

app = typer.Typer(
    help="The sensors of this machine; the EDGE_ variables say where they hang.", no_args_is_help=True
)

Sensor = Annotated[str, typer.Argument(help="imx477, mpu6050, tfluna or hcsr04.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="For how long.")]

_MPU6050: Final = "mpu6050"
_AXES: Final = ("ax_g", "ay_g", "az_g", "gx_dps", "gy_dps", "gz_dps")

# Standing still, an MPU-6050 is quieter than this by far: 0.02 g and 1 deg/s.
_STILL: Final = (0.02, 0.02, 0.02, 1.0, 1.0, 1.0)

# What it should show then, lying flat.
_FLAT: Final = (0.0, 0.0, 1.0, 0.0, 0.0, 0.0)


# For a sensor that has to be found first, such as one on Bluetooth.
_OPENING_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.1


@app.command()
def read(sensor: Sensor, seconds: Seconds = 5.0) -> None:
    """Print what a sensor tells, a JSON line for each reading."""
    readings = asyncio.run(_readings(_settings(sensor), seconds, sys.stdout, None))
    _sum_up(sensor, readings)


@app.command()
def record(
    sensor: Sensor,
    output: Annotated[
        Path | None, typer.Option(help="The file; <sensor>.jsonl here when absent, as EDGE_REPLAY wants it.")
    ] = None,
    seconds: Seconds = 10.0,
) -> None:
    """Write down what comes out of a sensor, byte for byte, for replay with EDGE_REPLAY."""
    path = output or Path(f"{sensor}.jsonl")
    # Of the sensor itself, also where EDGE_REPLAY names the recording that this one is to replace.
    settings = _settings(sensor).model_copy(update={"replay": None})
    unfinished = path.with_name(f"{path.name}.new")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            readings = asyncio.run(_readings(settings, seconds, None, file))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sum_up(sensor, readings, f" {path} has what it sent.")


@app.command()
def calibrate(seconds: Seconds = 5.0) -> None:
    """Measure the offsets of an MPU-6050 that lies flat and still, for EDGE_MPU6050_OFFSETS."""
    settings = _settings(_MPU6050).model_copy(update={"mpu6050_offsets": (0.0,) * len(_AXES)})
    readings = asyncio.run(_readings(settings, seconds, None, None))
    if len(readings) < 2:
        fail("The MPU-6050 gave no readings.")
    columns = [[float(str(each.values[axis])) for each in readings] for axis in _AXES]
    restless = [
        axis
        for axis, column, still in zip(_AXES, columns, _STILL, strict=True)
        if statistics.stdev(column) > still
    ]
    if restless:
        fail(f"It moved ({', '.join(restless)}). Lay it flat, let it be, and try again.")
    offsets = [round(statistics.fmean(column) - flat, 5) for column, flat in zip(columns, _FLAT, strict=True)]
    sys.stdout.write(f"EDGE_MPU6050_OFFSETS='{json.dumps(offsets)}'\n")


def _settings(sensor: str) -> EdgeSettings:
    import structlog

    from visionmesh.contracts import VALUES
    from visionmesh.settings import get_edge_settings

    if sensor not in VALUES:
        fail(f"There is no sensor {sensor!r}; there are {', '.join(VALUES)}.", 2)
    # What a driver has to say stays out of the readings. `configure` replaces only what it is given.
    structlog.reset_defaults()
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    return get_edge_settings().model_copy(update={"sensors": (sensor,), "upload_url": None})


async def _readings(
    settings: EdgeSettings, seconds: float, out: IO[str] | None, file: IO[str] | None
) -> Sequence[Reading]:
    """What the only sensor of the settings tells from its first reading on, for so many seconds.

    Ends the command when there is none within that time and a few seconds more.
    """
    from edge_publisher.devices.build import open_devices

    (device,) = open_devices(settings, record=file)
    found: list[Reading] = []

    async def collect() -> None:
        async for reading in device.readings():
            found.append(reading)
            if out is not None:
                out.write(json.dumps(_plain(reading)) + "\n")

    collecting = asyncio.create_task(collect())
    try:
        for _ in range(round((seconds + _OPENING_SECONDS) / _LOOK_SECONDS)):
            if found or collecting.done():
                await asyncio.wait({collecting}, timeout=seconds)
                break
            await asyncio.sleep(_LOOK_SECONDS)
    finally:
        await device.close()
        await collecting
    if not found:
        fail(f"{device.state.source} gave no readings: {device.state.last_error or 'it is silent'}.")
    return found


def _plain(reading: Reading) -> Mapping[str, object]:
    return {"captured_at": reading.captured_at.isoformat(), "sensor": reading.sensor, **reading.values}


def _sum_up(sensor: str, readings: Sequence[Reading], more: str = "") -> None:
    spent = (readings[-1].monotonic_ns - readings[0].monotonic_ns) / 1e9
    rate = f", {(len(readings) - 1) / spent:.1f} a second" if spent > 0 else ""
    complain(f"{len(readings)} readings of {sensor}{rate}.{more}")
