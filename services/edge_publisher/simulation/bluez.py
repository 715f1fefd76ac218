"""BlueZ, as far as bleak asks it, with one peripheral: an HC-SR04 on a Nordic UART.

It stands on a D-Bus of its own (`dbus-daemon`, which needs no rights), and implements the objects of BlueZ's
documentation (https://github.com/bluez/bluez/tree/master/doc: org.bluez.Adapter, Device, GattService,
GattCharacteristic). The bus and its types are those of dbus-fast, which bleak brings along.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Final

from dbus_fast import BusType, PropertyAccess
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import (
    DBusBool,
    DBusBytes,
    DBusDict,
    DBusInt16,
    DBusObjectPath,
    DBusSignature,
    DBusStr,
    DBusUInt16,
)
from dbus_fast.errors import DBusError
from dbus_fast.service import ServiceInterface, dbus_method, dbus_property

from edge_publisher.domain.hcsr04 import Format
from edge_publisher.simulation.notifications import notification

ADDRESS: Final = "C0:FF:EE:00:00:04"
NAME: Final = "hc-sr04"
UART_SERVICE: Final = "6e400001-b5a3-f393-e0a9-e50e24dcca9e"
UART_SENDS: Final = "6e400003-b5a3-f393-e0a9-e50e24dcca9e"

_ADAPTER: Final = "/org/bluez/hci0"
_DEVICE: Final = f"{_ADAPTER}/dev_{ADDRESS.replace(':', '_')}"
_SERVICE: Final = f"{_DEVICE}/service0010"
_CHARACTERISTIC: Final = f"{_SERVICE}/char0011"

# How often a peripheral that nobody is connected to says that it is there.
_ADVERTISE_SECONDS: Final = 0.2

_READ: Final = PropertyAccess.READ

_Strings = Annotated[list[str], DBusSignature("as")]
_Nothing = Annotated[None, DBusSignature("")]


class Peripheral:
    """The simulated microcontroller, seen through BlueZ. hertz: notifications a second."""

    def __init__(self, bus: MessageBus, *, hertz: float = 10.0, form: Format = "ascii") -> None:
        self.sent = 0
        self._bus = bus
        self._hertz = hertz
        self._form = form
        self._device = _Device(self)
        self._adapter = _Adapter()
        self._characteristic = _Characteristic()
        self._is_in_reach = True

    @staticmethod
    async def on(address: str, **options: Any) -> Peripheral:
        """A peripheral on the bus at this address, known there as BlueZ."""
        bus = await MessageBus(bus_type=BusType.SYSTEM, bus_address=address).connect()
        peripheral = Peripheral(bus, **options)
        bus.export(_ADAPTER, peripheral._adapter)
        bus.export(_DEVICE, peripheral._device)
        bus.export(_SERVICE, _Service())
        bus.export(_CHARACTERISTIC, peripheral._characteristic)
        await bus.request_name("org.bluez")
        return peripheral

    async def run(self) -> None:
        """Advertises and notifies until it is cancelled."""
        due = time.monotonic()
        while True:
            connected = self._device.connected
            if self._is_in_reach and not connected:
                self._device.advertise()
            elif self._is_in_reach and self._characteristic.notifying:
                self._characteristic.notify(notification(due, self._form))
                self.sent += 1
            due = max(due + (1 / self._hertz if connected else _ADVERTISE_SECONDS), time.monotonic() - 1)
            await asyncio.sleep(due - time.monotonic())

    def drop(self) -> None:
        """Out of reach: the connection is lost, and nothing is heard of it."""
        self._is_in_reach = False
        self.disconnected()

    def come_back(self) -> None:
        self._is_in_reach = True

    def connect(self) -> None:
        """What Device1.Connect does; raises the error of BlueZ while it is out of reach."""
        if not self._is_in_reach:
            raise DBusError("org.bluez.Error.Failed", "le-connection-abort-by-remote")
        self._device.become(connected=True)

    def disconnected(self) -> None:
        self._characteristic.notifying = False
        self._device.become(connected=False)


class _Adapter(ServiceInterface):
    def __init__(self) -> None:
        super().__init__("org.bluez.Adapter1")

    @dbus_property(access=_READ, name="Address")
    def address(self) -> DBusStr:
        return "00:00:00:00:00:01"

    @dbus_property(access=_READ, name="Alias")
    def alias(self) -> DBusStr:
        return "simulated"

    @dbus_property(access=_READ, name="Powered")
    def powered(self) -> DBusBool:
        return True

    @dbus_property(access=_READ, name="Roles")
    def roles(self) -> _Strings:
        return ["central"]

    @dbus_method(name="SetDiscoveryFilter")
    def set_discovery_filter(self, properties: DBusDict) -> _Nothing:
        """There is one peripheral, which passes every filter."""

    @dbus_method(name="StartDiscovery")
    def start_discovery(self) -> _Nothing:
        """The peripheral advertises whether anyone listens or not."""

    @dbus_method(name="StopDiscovery")
    def stop_discovery(self) -> _Nothing:
        """As above."""


class _Device(ServiceInterface):
    def __init__(self, peripheral: Peripheral) -> None:
        super().__init__("org.bluez.Device1")
        self.connected = False
        self._peripheral = peripheral

    @dbus_property(access=_READ, name="Adapter")
    def adapter(self) -> DBusObjectPath:
        return _ADAPTER

    @dbus_property(access=_READ, name="Address")
    def address(self) -> DBusStr:
        return ADDRESS

    @dbus_property(access=_READ, name="AddressType")
    def address_type(self) -> DBusStr:
        return "random"

    @dbus_property(access=_READ, name="Name")
    def known_as(self) -> DBusStr:
        return NAME

    @dbus_property(access=_READ, name="Alias")
    def alias(self) -> DBusStr:
        return NAME

    @dbus_property(access=_READ, name="UUIDs")
    def uuids(self) -> _Strings:
        return [UART_SERVICE]

    @dbus_property(access=_READ, name="RSSI")
    def rssi(self) -> DBusInt16:
        return -60

    @dbus_property(access=_READ, name="Paired")
    def paired(self) -> DBusBool:
        return False

    @dbus_property(access=_READ, name="Connected")
    def is_connected(self) -> DBusBool:
        return self.connected

    @dbus_property(access=_READ, name="ServicesResolved")
    def services_resolved(self) -> DBusBool:
        return self.connected

    @dbus_method(name="Connect")
    def connect(self) -> _Nothing:
        self._peripheral.connect()

    @dbus_method(name="Disconnect")
    def disconnect(self) -> _Nothing:
        self._peripheral.disconnected()

    def advertise(self) -> None:
        self.emit_properties_changed({"RSSI": -60})

    def become(self, *, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            self.emit_properties_changed({"Connected": connected, "ServicesResolved": connected})


class _Service(ServiceInterface):
    def __init__(self) -> None:
        super().__init__("org.bluez.GattService1")

    @dbus_property(access=_READ, name="UUID")
    def uuid(self) -> DBusStr:
        return UART_SERVICE

    @dbus_property(access=_READ, name="Primary")
    def primary(self) -> DBusBool:
        return True

    @dbus_property(access=_READ, name="Device")
    def device(self) -> DBusObjectPath:
        return _DEVICE


class _Characteristic(ServiceInterface):
    def __init__(self) -> None:
        super().__init__("org.bluez.GattCharacteristic1")
        self.notifying = False
        self._value = b""

    @dbus_property(access=_READ, name="UUID")
    def uuid(self) -> DBusStr:
        return UART_SENDS

    @dbus_property(access=_READ, name="Service")
    def service(self) -> DBusObjectPath:
        return _SERVICE

    @dbus_property(access=_READ, name="Flags")
    def flags(self) -> _Strings:
        return ["notify"]

    @dbus_property(access=_READ, name="MTU")
    def mtu(self) -> DBusUInt16:
        return 23

    @dbus_property(access=_READ, name="Value")
    def value(self) -> DBusBytes:
        return self._value

    @dbus_property(access=_READ, name="Notifying")
    def is_notifying(self) -> DBusBool:
        return self.notifying

    @dbus_method(name="StartNotify")
    def start_notify(self) -> _Nothing:
        self.notifying = True

    @dbus_method(name="StopNotify")
    def stop_notify(self) -> _Nothing:
        self.notifying = False

    @dbus_method(name="ReadValue")
    def read_value(self, options: DBusDict) -> DBusBytes:
        return self._value

    def notify(self, value: bytes) -> None:
        self._value = value
        self.emit_properties_changed({"Value": value})
