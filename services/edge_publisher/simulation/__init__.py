"""Sensors that are not there, at the lowest level there is, so that the real drivers run without hardware.

* `world`: what there is to measure, as a function of time
* `ptys`: the serial sensors, as pseudo-terminals that speak their protocols
* `bluez`: BlueZ and a peripheral, on a D-Bus of their own, so that bleak itself runs
* `notifications`: the same peripheral without Bluetooth, where there is no dbus-daemon
* `__main__`: both of them in a process of their own, so that what they cost is not the driver's
* `process`: starts that process, and says where its sensors are
* `chip`: the registers of an MPU-6050, at the interface of `smbus2.SMBus`
* `camera`: a camera that moves
"""
