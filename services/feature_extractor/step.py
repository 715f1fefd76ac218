"""A picture in the object store -> its descriptors, stored and published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_extractor.domain import Extractor, on_the_wire
from visionmesh import images
from visionmesh.contracts import ImageFeatures, ImageUploaded
from visionmesh.errors import Rejected
from visionmesh.results import FeaturesRow
from visionmesh.topics import FEATURES
from visionmesh.worker.step import Done, Outgoing, Skipped, Step, Verdict

TASK: Final = "classify"

# Pictures that are fetched or decoded at once. It bounds memory: each may have tens of megabytes.
_AT_ONCE: Final = 8

_SNIFF_BYTES: Final = 64

# Returns the bytes of a `minio_path`. Raises `Rejected` and `Unavailable`.
Fetch = Callable[[str], bytes]
# `domain.prepare`, wherever it runs. Raises `Rejected`.
Prepare = Callable[[bytes], NDArray[np.uint8]]


def make_step(fetch: Fetch, prepare: Prepare, extractor: Extractor) -> Step[ImageUploaded]:
    """The extractor's step: all pictures of a batch go through the net together."""
    threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")

    def look(message: ImageUploaded) -> NDArray[np.uint8] | Skipped | Rejected:
        if not message.asks_for(TASK):
            return Skipped(f"task_not_asked: {TASK} is not among the tasks of this picture")
        try:
            data = fetch(message.minio_path)
            media_type = images.media_type(data[:_SNIFF_BYTES])
            if media_type is not None and not images.is_decodable(media_type):
                return Skipped(f"not_a_picture: the extractor does not read {media_type}")
            return prepare(data)
        except Rejected as error:
            return error

    def step(messages: Sequence[ImageUploaded]) -> list[Verdict]:
        looked = list(threads.map(look, messages))
        pictures = [found for found in looked if isinstance(found, np.ndarray)]
        descriptors = iter(on_the_wire(extractor.extract(pictures)) if pictures else ())
        return [
            _done(message, next(descriptors), extractor) if isinstance(found, np.ndarray) else found
            for message, found in zip(messages, looked, strict=True)
        ]

    return step


def _done(message: ImageUploaded, descriptors: tuple[float, ...], extractor: Extractor) -> Done:
    """The row says which model it was; on the wire that would be paid for with every record."""
    return Done(
        rows=(FeaturesRow(message.image_id, descriptors, extractor.model.address),),
        messages=(Outgoing(FEATURES, ImageFeatures(message.image_id, descriptors, len(descriptors))),),
    )
