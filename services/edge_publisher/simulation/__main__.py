"""`python -m edge_publisher.simulation FOLDER FORMAT`: sensors on ptys and Bluetooth, until stdin ends.

FORMAT: what the HC-SR04 notifies of. The first line on stdout says where they are, in JSON. A line on stdin
is a command, in JSON too, answered with a line: `{"do": "unplug", "sensor": "tfluna"}` and `plug`; `noise`
with its `share`; `connect`, as if a process that was killed had connected the HC-SR04; `sent`, which answers
how many messages each sensor has sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_publisher.domain.hcsr04 import Format
from edge_publisher.simulation.ptys import Mpu6050Sensor, SerialSensor, TfLunaSensor

if TYPE_CHECKING:
    from edge_publisher.simulation.bluez import Peripheral

_TF_LUNA_HZ: Final = 100
_MPU6050_HZ: Final = 100

# What any client of the bus may do: there is none but the driver and the double of BlueZ.
_BUS: Final = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


async def serve(folder: Path, form: Format) -> None:
    sensors: dict[str, SerialSensor] = {
        "tfluna": TfLunaSensor(folder / "tfluna", _TF_LUNA_HZ),
        "mpu6050": Mpu6050Sensor(folder / "mpu6050", _MPU6050_HZ),
    }
    places: dict[str, str | None] = {name: str(sensor.path) for name, sensor in sensors.items()}
    for sensor in sensors.values():
        sensor.plug()
    daemon, address = await _bus(folder)
    peripheral = None if address is None else await _peripheral(address, form)
    places["bus"] = None if peripheral is None else address
    runs = [asyncio.create_task(each.run()) for each in (*sensors.values(), peripheral) if each is not None]
    try:
        _say(places)
        async for command in _commands():
            _say(_obey(command, sensors, peripheral))
    finally:
        for run in runs:
            run.cancel()
        if daemon is not None and daemon.returncode is None:
            daemon.terminate()
            await daemon.wait()


async def _bus(folder: Path) -> tuple[asyncio.subprocess.Process | None, str | None]:
    """A message bus of its own, and its address; neither where there is no dbus-daemon."""
    program = shutil.which("dbus-daemon")
    if program is None:
        return None, None
    path = folder / "bus"
    configuration = folder / "bus.conf"
    configuration.write_text(_BUS.format(path=path))
    daemon = await asyncio.create_subprocess_exec(
        program,
        f"--config-file={configuration}",
        "--nofork",
        "--nopidfile",
        "--print-address",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        # It tells of every limit that it may not raise.
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert daemon.stdout is not None
    address = (await daemon.stdout.readline()).decode().strip()
    return daemon, address


async def _peripheral(address: str, form: Format) -> Peripheral | None:
    """None where the bus serves nobody: dbus-daemon ends when its user has no name, as in many containers."""
    from dbus_fast.errors import AuthError, DBusError

    from edge_publisher.simulation.bluez import Peripheral

    try:
        return await Peripheral.on(address, form=form)
    except (OSError, EOFError, AuthError, DBusError):
        return None


async def _commands() -> Any:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        yield json.loads(line)


def _obey(command: dict[str, Any], sensors: dict[str, SerialSensor], peripheral: Peripheral | None) -> Any:
    name, what = command.get("sensor"), command["do"]
    if what == "sent":
        sent = {each: sensor.sent for each, sensor in sensors.items()}
        return sent if peripheral is None else {**sent, "hcsr04": peripheral.sent}
    if name == "hcsr04" and peripheral is not None:
        {"unplug": peripheral.drop, "plug": peripheral.come_back, "connect": peripheral.connect}[what]()
    elif what == "noise":
        sensors[str(name)].noise = float(command["share"])
    else:
        sensor = sensors[str(name)]
        {"unplug": sensor.unplug, "plug": sensor.plug}[what]()
    return {"done": what}


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # The interrupt of a terminal reaches the whole group; this one ends when its owner does.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(serve(Path(sys.argv[1]), "uint16_mm" if sys.argv[2] == "uint16_mm" else "ascii"))
    os._exit(0)
