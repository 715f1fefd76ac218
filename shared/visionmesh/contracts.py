"""The messages on the wire, and nothing else.

JSON, so that Kafka UI shows them readable. Unknown fields are ignored and every field that the first
producers did not send has a default, so an old producer is served in full and an old reader survives a
new producer. Golden files per version stand in `tests/contract/`.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Final

import msgspec

# Letters, digits and `. _ : -`: safe in a URL path, in an object key and in a Kafka key.
IMAGE_ID_PATTERN: Final = r"^[A-Za-z0-9._:\-]{1,128}\Z"
_IMAGE_ID = re.compile(IMAGE_ID_PATTERN)

ImageId = Annotated[str, msgspec.Meta(pattern=IMAGE_ID_PATTERN)]

# What can be asked of a picture. A task that no running worker serves waits in the topic.
TASKS: Final = ("classify", "qr", "ocr")


class ImageUploaded(msgspec.Struct, frozen=True, omit_defaults=True):
    """A picture lies in the object store. Topic `images-input-stream`.

    minio_path: `bucket/key`, for example `raw-images/2024/10/06/uuid.jpg`.
    tasks: the tasks asked for, all of them when absent.
    sha256: hex digest of the stored bytes, when the producer knows it. A picture that is known by it is not
        computed, or even fetched, again.
    """

    image_id: ImageId
    minio_path: str
    tasks: tuple[str, ...] | None = None
    sha256: str | None = None

    def asks_for(self, task: str) -> bool:
        return self.tasks is None or task in self.tasks


class ImageFeatures(msgspec.Struct, frozen=True, omit_defaults=True):
    """The descriptors of a picture. Topic `image-features-stream`.

    descriptors: float32 values written with 4 significant digits, which changes no label.
    descriptor_count: how many there are; 20 unless a model of another width is deployed.
    model: the space that the descriptors are in, when the producer says it: the `name@version` of the
        extractor that gave them first. A classifier that was trained in another one refuses the message.
    """

    image_id: ImageId
    descriptors: tuple[float, ...]
    descriptor_count: int
    model: str | None = None


# A device and its sensors are named in Kafka keys, in URL paths and in MQTT topics.
DEVICE_ID_PATTERN: Final = r"^[A-Za-z0-9._:\-]{1,128}\Z"

DeviceId = Annotated[str, msgspec.Meta(pattern=DEVICE_ID_PATTERN)]

# What a field of `values` may hold. Numbers can be averaged over time, the rest is kept as it is.
Value = bool | int | float | str | None


class SensorReading(msgspec.Struct, frozen=True, omit_defaults=True):
    """One reading of one sensor. Topic `sensor-readings-stream`.

    device_id: the machine the sensor hangs on. sensor: one of `VALUES`, or a name of the producer's own.
    seq: counts up by one per device and sensor, so that a hole is a reading that is missing and a repeated
        one is the same reading again.
    captured_at: by the device's wall clock, with a time zone, when the sensor measured; it may jump when that
        clock is set.
    values: the fields of the sensor's struct below, by name. Others are kept as well.
    monotonic_ns: the device's monotonic clock at the same moment, in nanoseconds since it started, which
        tells how far apart two readings are whatever the wall clock did between them.
    """

    device_id: DeviceId
    sensor: DeviceId
    seq: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    captured_at: Annotated[datetime, msgspec.Meta(tz=True)]
    values: dict[str, Value]
    monotonic_ns: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


def _unit(unit: str, description: str) -> msgspec.Meta:
    return msgspec.Meta(description=description, extra_json_schema={"x-unit": unit})


class Imx477Values(msgspec.Struct, frozen=True):
    """What the camera tells of a picture. Positions are pixels from the upper left corner."""

    luminosity: Annotated[float, _unit("0-255", "mean brightness")]
    sharpness: Annotated[float, _unit("1", "variance of the Laplacian of the brightness; small is blurred")]
    laser_x: Annotated[float | None, _unit("px", "centre of the laser spot; null when none is seen")]
    laser_y: Annotated[float | None, _unit("px", "centre of the laser spot; null when none is seen")]
    laser_area: Annotated[float, _unit("px^2", "area of the laser spot; 0 when none is seen")]
    width: Annotated[int, _unit("px", "of the picture")]
    height: Annotated[int, _unit("px", "of the picture")]
    capture_ms: Annotated[float, _unit("ms", "from asking the camera to having the picture")]
    analysis_ms: Annotated[float, _unit("ms", "from having the picture to having these values")]
    image_id: Annotated[
        str | None, _unit("", "the picture's own id in the mesh; null when it was not to be uploaded")
    ]


class Mpu6050Values(msgspec.Struct, frozen=True):
    """Acceleration and rotation, calibrated."""

    ax_g: Annotated[float, _unit("g", "acceleration along x; 1 g is 9.80665 m/s^2")]
    ay_g: Annotated[float, _unit("g", "acceleration along y")]
    az_g: Annotated[float, _unit("g", "acceleration along z")]
    gx_dps: Annotated[float, _unit("deg/s", "rotation about x")]
    gy_dps: Annotated[float, _unit("deg/s", "rotation about y")]
    gz_dps: Annotated[float, _unit("deg/s", "rotation about z")]
    temperature_c: Annotated[float, _unit("degC", "of the chip")]


class TfLunaValues(msgspec.Struct, frozen=True):
    """A distance by light. What is not valid was measured all the same, and is no distance."""

    distance_cm: Annotated[float | None, _unit("cm", "null when it is not valid")]
    amplitude: Annotated[int, _unit("0-65535", "strength of the echo")]
    temperature_c: Annotated[float, _unit("degC", "of the chip")]
    valid: Annotated[bool, _unit("", "false below amplitude 100 (too weak) and at 65535 (overexposed)")]


class HcSr04Values(msgspec.Struct, frozen=True):
    """A distance by sound."""

    distance_cm: Annotated[float | None, _unit("cm", "null when it is not valid")]
    valid: Annotated[bool, _unit("", "false outside 2 to 400 cm, where there was no echo")]


SensorValues = Imx477Values | Mpu6050Values | TfLunaValues | HcSr04Values

# The name of each sensor, in messages and in routes, with the fields of its `values`.
VALUES: Final[dict[str, type[SensorValues]]] = {
    "imx477": Imx477Values,
    "mpu6050": Mpu6050Values,
    "tfluna": TfLunaValues,
    "hcsr04": HcSr04Values,
}


def is_image_id(text: str) -> bool:
    """Whether `text` is 1 to 128 letters, digits and `. _ : -`."""
    return _IMAGE_ID.match(text) is not None
