"""Stored pictures become the messages that announce them."""

from __future__ import annotations

import msgspec

from visionmesh.contracts import ImageUploaded
from visionmesh.kafka import Header, Record
from visionmesh.results import ImageRow
from visionmesh.topics import IMAGES


def announcement(image: ImageRow, headers: tuple[Header, ...] = ()) -> Record:
    """The record of topic `images-input-stream` that asks the workers to look at `image`.

    The same row gives the same record, however often it is published. headers: the trace of the upload.
    """
    message = ImageUploaded(
        image_id=image.image_id, minio_path=image.minio_path, tasks=image.tasks, sha256=image.sha256
    )
    return Record(IMAGES.name, image.image_id.encode(), msgspec.json.encode(message), headers)
