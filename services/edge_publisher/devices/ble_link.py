"""A microcontroller on Bluetooth Low Energy that notifies of what it measures, by bleak."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from bleak import BleakAdapter, BleakClient, BleakScanner
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData
from bleak.exc import BleakError
from dbus_fast.errors import DBusError

from edge_publisher.devices.link import LinkLost, Receiver

# Nordic's UART: the service, and the characteristic by which the peripheral sends
# (https://docs.nordicsemi.com/bundle/ncs-latest/page/nrf/libraries/bluetooth/services/nus.html).
UART_SERVICE: Final = "6e400001-b5a3-f393-e0a9-e50e24dcca9e"
UART_SENDS: Final = "6e400003-b5a3-f393-e0a9-e50e24dcca9e"

_SCAN_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Peripheral:
    """Which one: by its address, else by its name, else the first that advertises the service."""

    address: str | None = None
    name: str | None = None
    service: str = UART_SERVICE
    characteristic: str = UART_SENDS

    def __str__(self) -> str:
        return self.address or self.name or f"service {self.service}"


class BleLink:
    """A `Link` that hands over notifications, each as one piece."""

    def __init__(self, peripheral: Peripheral) -> None:
        self.source: Final = f"ble {peripheral}"
        self._peripheral = peripheral

    async def run(self, receiver: Receiver) -> None:
        try:
            await self._run(receiver)
        # bleak lets what BlueZ and the bus say through in these shapes.
        except (BleakError, DBusError, EOFError, TimeoutError) as error:
            raise LinkLost(str(error) or "Bluetooth did not answer in time") from error

    async def _run(self, receiver: Receiver) -> None:
        lost = asyncio.Event()
        async with BleakClient(await self._find(), lambda _: lost.set(), timeout=_CONNECT_SECONDS) as client:
            receiver.opened()
            await client.start_notify(
                self._peripheral.characteristic,
                lambda _, data: receiver.data(bytes(data), time.monotonic_ns()),
            )
            await lost.wait()
        raise LinkLost("the peripheral disconnected")

    async def _find(self) -> BLEDevice:
        # One that is connected does not advertise, and stays connected when the process that connected it is
        # killed: a scan would look for it for ever.
        adapter = await BleakAdapter.get()
        for device in await adapter.get_connected_devices([self._peripheral.service]):
            if self._is_named(device, None):
                return device
        found = await BleakScanner.find_device_by_filter(self._is_it, timeout=_SCAN_SECONDS)
        if found is None:
            raise LinkLost(f"no peripheral with {self._peripheral} in reach")
        return found

    def _is_it(self, device: BLEDevice, advertised: AdvertisementData) -> bool:
        if not self._is_named(device, advertised.local_name):
            return False
        if self._peripheral.address or self._peripheral.name:
            return True
        return self._peripheral.service.lower() in [uuid.lower() for uuid in advertised.service_uuids]

    def _is_named(self, device: BLEDevice, local_name: str | None) -> bool:
        """Whether it has the address or the name that is wanted, if any is."""
        wanted = self._peripheral
        if wanted.address is not None:
            return device.address.upper() == wanted.address.upper()
        return wanted.name is None or wanted.name in (local_name, device.name)
