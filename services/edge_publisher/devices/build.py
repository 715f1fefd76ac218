"""The devices of a machine, from its settings: real ones, simulated ones, recordings."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from edge_publisher.devices.link import Link
from edge_publisher.devices.protocol import Device
from edge_publisher.devices.recording import RecordingLink, ReplayLink
from edge_publisher.devices.stream import StreamDevice
from edge_publisher.domain.decoder import Decoder
from edge_publisher.domain.hcsr04 import HcSr04Decoder
from edge_publisher.domain.mpu6050 import BurstDecoder, LineDecoder, Offsets, Ranges
from edge_publisher.domain.pace import Pace
from edge_publisher.domain.tfluna import TfLunaDecoder, rate_command
from edge_publisher.simulation.notifications import Notifications
from edge_publisher.simulation.process import SimulatedLink, Simulator
from visionmesh.contracts import SensorValues
from visionmesh.settings import EdgeSettings

if TYPE_CHECKING:
    from edge_publisher.devices.camera import Camera

# The sensor's data sheet: sooner, it may hear the echo of the ping before.
_HC_SR04_INTERVAL_NS: Final = 60_000_000


def open_devices(settings: EdgeSettings, *, record: IO[str] | None = None) -> list[Device]:
    """Every sensor of the settings. Called on the event loop they are used from; none is opened yet.

    record: where everything that comes out of the sensor is written, when it is only one.
    """
    return _Builder(settings, record).devices()


class _Builder:
    def __init__(self, settings: EdgeSettings, record: IO[str] | None) -> None:
        self._settings = settings
        self._record = record
        self._simulator = Simulator(settings.hcsr04_format)

    def devices(self) -> list[Device]:
        make: dict[str, Callable[[], Device]] = {
            "imx477": self._imx477,
            "mpu6050": self._mpu6050,
            "tfluna": self._tfluna,
            "hcsr04": self._hcsr04,
        }
        return [make[sensor]() for sensor in dict.fromkeys(self._settings.sensors)]

    def _tfluna(self) -> Device:
        settings = self._settings
        greeting = rate_command(settings.tfluna_hz)
        return self._stream(
            "tfluna",
            lambda port: _serial(port, settings.tfluna_baud, greeting),
            settings.tfluna_port,
            partial(TfLunaDecoder, settings.tfluna_hz),
        )

    def _mpu6050(self) -> Device:
        settings = self._settings
        offsets = Offsets(settings.mpu6050_offsets[:3], settings.mpu6050_offsets[3:])
        if settings.mpu6050_link == "serial":
            return self._stream(
                "mpu6050",
                lambda port: _serial(port, settings.mpu6050_baud),
                settings.mpu6050_port,
                partial(LineDecoder, offsets),
            )
        ranges = Ranges(settings.mpu6050_accel_g, settings.mpu6050_gyro_dps)
        link = self._replay("mpu6050") or self._i2c(ranges)
        return self._device("mpu6050", link, partial(BurstDecoder, ranges, offsets))

    def _hcsr04(self) -> Device:
        settings = self._settings
        return self._stream(
            "hcsr04",
            self._ble,
            None,
            partial(HcSr04Decoder, settings.hcsr04_format),
            place="bus",
            without=Notifications(settings.hcsr04_format),
            allows=Pace(_HC_SR04_INTERVAL_NS).allows,
        )

    def _imx477(self) -> Device:
        # OpenCV is loaded by those who have a camera.
        from edge_publisher.devices.camera import RecordingCamera
        from edge_publisher.devices.imx477 import Imx477
        from edge_publisher.devices.upload import Uploader

        settings = self._settings
        camera = self._camera()
        key = None if settings.upload_key is None else settings.upload_key.get_secret_value()
        return Imx477(
            settings.device_id,
            camera if self._record is None else RecordingCamera(camera, self._record),
            workers=settings.camera_workers,
            cache_seconds=settings.camera_cache_seconds,
            interval_seconds=settings.camera_interval_seconds,
            uploader=None if settings.upload_url is None else partial(Uploader, settings.upload_url, key=key),
            upload_interval_seconds=settings.upload_interval_seconds,
            upload_change=settings.upload_change,
        )

    def _camera(self) -> Camera:
        from edge_publisher.devices.camera import RecordedCamera, open_camera
        from edge_publisher.simulation.camera import MovingCamera

        settings = self._settings
        size = settings.camera_width, settings.camera_height
        recording = self._recording("imx477")
        if recording is not None:
            return RecordedCamera(recording)
        if "imx477" in settings.simulate:
            return MovingCamera(*size, seconds=settings.simulated_capture_seconds)
        return open_camera(settings.camera_source, *size)

    def _stream(
        self,
        sensor: str,
        link: Callable[[str], Link],
        address: str | None,
        decoder: Callable[[], Decoder[SensorValues]],
        *,
        place: str | None = None,
        without: Link | None = None,
        **options: Any,
    ) -> Device:
        """A device whose link is at an address. place: its name in the simulation, where that is another.

        without: what takes its place where it can't be simulated.
        """
        found = self._replay(sensor)
        if found is None and sensor in self._settings.simulate:
            simulated = SimulatedLink(
                self._simulator.use(),
                place or sensor,
                link,
                source="serial" if place is None else "ble",
                without=without,
            )
            return self._device(sensor, simulated, decoder, closed=self._simulator.release, **options)
        return self._device(sensor, found or link(address or ""), decoder, **options)

    def _device(
        self, sensor: str, link: Link, decoder: Callable[[], Decoder[SensorValues]], **options: Any
    ) -> Device:
        if self._record is not None:
            link = RecordingLink(link, sensor, self._record)
        return StreamDevice(self._settings.device_id, sensor, link, decoder, **options)

    def _replay(self, sensor: str) -> Link | None:
        path = self._recording(sensor)
        return None if path is None else ReplayLink(path, sensor, repeat=True)

    def _recording(self, sensor: str) -> Path | None:
        folder = self._settings.replay
        path = None if folder is None else folder / f"{sensor}.jsonl"
        return path if path is not None and path.is_file() else None

    def _i2c(self, ranges: Ranges) -> Link:
        from edge_publisher.devices.i2c_link import Bus, Mpu6050Link

        settings = self._settings
        address = settings.mpu6050_address
        source = f"i2c-{settings.mpu6050_bus} 0x{address:02x}"

        def real() -> Bus:
            from smbus2 import SMBus

            return SMBus(settings.mpu6050_bus)

        if "mpu6050" in settings.simulate:
            from edge_publisher.simulation.chip import Mpu6050Chip

            open_bus: Callable[[], Bus] = Mpu6050Chip(address=address).open
            source = f"simulated {source}"
        else:
            open_bus = real
        return Mpu6050Link(open_bus, source, address=address, ranges=ranges, hertz=settings.mpu6050_hz)

    def _ble(self, bus: str) -> Link:
        """bus: the address of a simulated one, or nothing for the system's."""
        from edge_publisher.devices.ble_link import BleLink, Peripheral

        settings = self._settings
        if bus:
            # By which every client of D-Bus finds the system's bus (D-Bus specification, message bus names).
            os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = bus
        return BleLink(
            Peripheral(
                settings.hcsr04_address,
                settings.hcsr04_name,
                settings.hcsr04_service,
                settings.hcsr04_characteristic,
            )
        )


def _serial(port: str, baud: int, greeting: bytes = b"") -> Link:
    from edge_publisher.devices.serial_link import SerialLink

    return SerialLink(port, baud, greeting=greeting)
