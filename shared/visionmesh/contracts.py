"""The messages on the wire, and nothing else.

JSON, so that Kafka UI shows them readable. Unknown fields are ignored and every field that the first
producers did not send has a default, so an old producer is served in full and an old reader survives a
new producer. Golden files per version stand in `tests/contract/`.
"""

from __future__ import annotations

import re
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


def is_image_id(text: str) -> bool:
    """Whether `text` is 1 to 128 letters, digits and `. _ : -`."""
    return _IMAGE_ID.match(text) is not None
