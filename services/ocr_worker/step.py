"""A document in the object store -> its text, stored; nothing is published.

A document without text is done, with a row that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ocr_worker.reading import Read
from visionmesh.contracts import ImageUploaded
from visionmesh.errors import Rejected
from visionmesh.results import OcrDocumentRow
from visionmesh.worker.step import Done, Step, Verdict, not_asked

TASK: Final = "ocr"

# Returns the bytes of a `minio_path`. Raises `Rejected` and `Unavailable`.
Fetch = Callable[[str], bytes]


def make_step(fetch: Fetch, read: Read, *, processes: int = 1) -> Step[ImageUploaded]:
    """The worker's step: each document for itself.

    processes: how many pages `read` reads at once. One more document is fetched meanwhile and no further: who
    asks over HTTP waits for a page or two, and not for a batch.
    """
    threads = ThreadPoolExecutor(processes + 1, thread_name_prefix="document")

    def verdict(message: ImageUploaded) -> Verdict:
        if not message.asks_for(TASK):
            return not_asked(TASK)
        try:
            document = read(fetch(message.minio_path))
        except Rejected as error:
            return error
        return Done(rows=(OcrDocumentRow(message.image_id, document),))

    def step(messages: Sequence[ImageUploaded]) -> list[Verdict]:
        return list(threads.map(verdict, messages))

    return step
