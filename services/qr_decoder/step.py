"""A picture in the object store -> its QR codes, stored; nothing is published.

A picture without codes is done, with a row that says so: it takes the place of codes that were stored before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from qr_decoder.reading import Read
from visionmesh.contracts import ImageUploaded
from visionmesh.errors import Rejected
from visionmesh.results import QrCodesRow
from visionmesh.worker.step import Done, Skipped, Step, Verdict, not_asked

TASK: Final = "qr"

# The reader's word for files that are known and no pictures.
_NO_PICTURE: Final = "unsupported_media_type"

# Returns the bytes of a `minio_path`. Raises `Rejected` and `Unavailable`.
Fetch = Callable[[str], bytes]


def make_step(fetch: Fetch, read: Read, *, processes: int = 1) -> Step[ImageUploaded]:
    """The decoder's step: each picture for itself.

    processes: how many pictures `read` reads at once. One more is fetched meanwhile and no further: who asks
    over HTTP waits for a picture or two, and not for a batch.
    """
    threads = ThreadPoolExecutor(processes + 1, thread_name_prefix="picture")

    def verdict(message: ImageUploaded) -> Verdict:
        if not message.asks_for(TASK):
            return not_asked(TASK)
        try:
            found = read(fetch(message.minio_path))
        except Rejected as error:
            if error.code == _NO_PICTURE:
                return Skipped(f"not_a_picture: {error.reason}")
            return error
        return Done(rows=(QrCodesRow(message.image_id, found.codes),))

    def step(messages: Sequence[ImageUploaded]) -> list[Verdict]:
        return list(threads.map(verdict, messages))

    return step
