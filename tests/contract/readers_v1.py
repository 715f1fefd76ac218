"""The contracts as version 1 of the mesh read them, frozen.

What is published today must be readable by these. A change that breaks them needs a new version beside
them and a topic that both can live with, not an edit here.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec


class ImageUploadedV1(msgspec.Struct):
    """What version 1 knew of `images-input-stream`."""

    image_id: str
    minio_path: str
    tasks: tuple[str, ...] | None = None
    sha256: str | None = None


class ImageFeaturesV1(msgspec.Struct):
    """What version 1 knew of `image-features-stream`."""

    image_id: str
    descriptors: tuple[float, ...]
    descriptor_count: int
    model: str | None = None


class SensorReadingV1(msgspec.Struct):
    """What version 1 knew of `sensor-readings-stream`."""

    device_id: str
    sensor: str
    seq: int
    captured_at: datetime
    values: dict[str, float | int | bool | str | None]
    monotonic_ns: int | None = None


class SeedImage(msgspec.Struct, forbid_unknown_fields=True):
    """The first message ever: two fields, and a reader that accepts no other."""

    image_id: str
    minio_path: str


class SeedFeatures(msgspec.Struct, forbid_unknown_fields=True):
    """Likewise for the descriptors."""

    image_id: str
    descriptors: tuple[float, ...]
    descriptor_count: int


class SeedReading(msgspec.Struct, forbid_unknown_fields=True):
    """Likewise for the sensors."""

    device_id: str
    sensor: str
    seq: int
    captured_at: datetime
    values: dict[str, float | int | bool | str | None]


READERS: Final = {
    "images-input-stream": ImageUploadedV1,
    "image-features-stream": ImageFeaturesV1,
    "sensor-readings-stream": SensorReadingV1,
}
SEED_READERS: Final = {
    "images-input-stream": SeedImage,
    "image-features-stream": SeedFeatures,
    "sensor-readings-stream": SeedReading,
}
