"""A picture in the object store -> its descriptors, stored and published.

A picture is known by the sha256 of its bytes: what the model once gave for them is taken from the cache, and
equal pictures of a batch are computed once. Neither changes what is stored or published. The digest in a
message is a claim, which saves fetching a picture that is known; what is kept is filed under the digest of
the bytes that were fetched. With a model in shadow, which has to see every picture, claims are not used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_extractor.domain import Extractor, on_the_wire
from feature_extractor.known import Known
from feature_extractor.models import Observed, Prepare, Shadow, current_extractor
from visionmesh import images
from visionmesh.cache import Cache
from visionmesh.contracts import ImageFeatures, ImageUploaded
from visionmesh.errors import Rejected
from visionmesh.observability import metrics
from visionmesh.registry import ModelSource
from visionmesh.results import FeaturesRow, Row, ShadowFeaturesRow
from visionmesh.topics import FEATURES
from visionmesh.worker.step import Done, Outgoing, Skipped, Step, Verdict, not_asked

TASK: Final = "classify"

# Pictures that are fetched or decoded at once. It bounds memory: each may have tens of megabytes.
_AT_ONCE: Final = 8

_SNIFF_BYTES: Final = 64

_SHA256: Final = re.compile(r"[0-9a-f]{64}")

# Returns the bytes of a `minio_path`. Raises `Rejected` and `Unavailable`.
Fetch = Callable[[str], bytes]


def make_step(
    fetch: Fetch,
    prepare: Prepare,
    source: ModelSource,
    cache: Cache,
    *,
    shadow: ModelSource | None = None,
) -> Step[ImageUploaded]:
    """The extractor's step: all pictures of a batch go through the net together.

    shadow: of a second model, whose descriptors are stored apart and never published.
    """
    threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")
    observer = None if shadow is None else Shadow(shadow, prepare)

    def step(messages: Sequence[ImageUploaded]) -> list[Verdict]:
        extractor = current_extractor(source)
        batch = _Batch(fetch, prepare, extractor, Known(cache, extractor.model), observer)
        if observer is None:
            batch.look_up(messages)
        looked = list(threads.map(batch.look, messages))
        batch.compute(found for found in looked if isinstance(found, str))
        return [
            batch.verdict(message, found) if isinstance(found, str) else found
            for message, found in zip(messages, looked, strict=True)
        ]

    return step


class _Batch:
    """The pictures of one batch, by digest. Many threads `look`, one does everything else."""

    def __init__(
        self, fetch: Fetch, prepare: Prepare, extractor: Extractor, known: Known, shadow: Shadow | None
    ) -> None:
        self._fetch = fetch
        self._prepare = prepare
        self._extractor = extractor
        self._known = known
        self._shadow = shadow
        self._shadow_extractor = None if shadow is None else shadow.extractor()
        self._lock = Lock()
        self._looked_up: set[str] = set()
        self._taken: set[str] = set()
        self._pictures: dict[str, NDArray[np.uint8] | Rejected] = {}
        self._shadow_pictures: dict[str, NDArray[np.uint8]] = {}
        self._descriptors: dict[str, NDArray[np.float32]] = {}
        self._on_the_wire: dict[str, tuple[float, ...]] = {}
        self._observed: dict[str, Observed] = {}

    def look_up(self, messages: Iterable[ImageUploaded]) -> None:
        """Asks the cache for all pictures whose digest is claimed, at once."""
        claims = (_claim(message) for message in messages if message.asks_for(TASK))
        self._looked_up = {claim for claim in claims if claim is not None}
        self._descriptors = self._known.find(self._looked_up)

    def look(self, message: ImageUploaded) -> str | Skipped | Rejected:
        """The digest of the picture, when its descriptors are known or can now be computed or refused."""
        if not message.asks_for(TASK):
            return not_asked(TASK)
        claim = _claim(message)
        if claim is not None and claim in self._descriptors:
            return claim
        try:
            data = self._fetch(message.minio_path)
        except Rejected as error:
            return error
        media_type = images.media_type(data[:_SNIFF_BYTES])
        if media_type is not None and not images.is_decodable(media_type):
            return Skipped(f"not_a_picture: the extractor does not read {media_type}")
        digest = sha256(data).hexdigest()
        with self._lock:
            is_first = digest not in self._taken
            self._taken.add(digest)
        if is_first:
            self._take(digest, data)
        return digest

    def _take(self, digest: str, data: bytes) -> None:
        """Makes ready what the models need of a picture; each is in the hands of one thread."""
        if digest not in self._looked_up:
            self._descriptors.update(self._known.find([digest]))
        ready = None
        if digest not in self._descriptors:
            try:
                ready = self._pictures[digest] = self._prepare(data, self._extractor.side)
            except Rejected as error:
                self._pictures[digest] = error
                return
        if self._shadow is not None and self._shadow_extractor is not None:
            picture = self._shadow.prepared(self._shadow_extractor, data, ready)
            if picture is not None:
                self._shadow_pictures[digest] = picture

    def compute(self, digests: Iterable[str]) -> None:
        """Runs the models. digests: of all pictures, in the order of the messages; they may repeat."""
        order = list(dict.fromkeys(digests))
        self._compute_unknown(order)
        usable = [digest for digest in order if digest in self._descriptors]
        if usable:
            rows = on_the_wire(np.stack([self._descriptors[digest] for digest in usable]))
            self._on_the_wire = dict(zip(usable, rows, strict=True))
        if self._shadow is not None and self._shadow_extractor is not None:
            pictures = {
                digest: self._shadow_pictures[digest] for digest in order if digest in self._shadow_pictures
            }
            self._observed = self._shadow.observe(self._shadow_extractor, pictures)

    def _compute_unknown(self, order: Sequence[str]) -> None:
        pictures = {digest: self._pictures[digest] for digest in order if digest in self._pictures}
        pixels = {key: picture for key, picture in pictures.items() if isinstance(picture, np.ndarray)}
        if not pixels:
            return
        rows = self._extractor.extract(list(pixels.values()))
        metrics.INFERENCES.labels("answer").inc(len(pixels))
        found = dict(zip(pixels, rows, strict=True))
        self._known.keep(found)
        self._descriptors.update(found)

    def verdict(self, message: ImageUploaded, digest: str) -> Done | Rejected:
        """What becomes of a message whose picture has this digest."""
        refused = self._pictures.get(digest)
        if isinstance(refused, Rejected):
            return refused
        model, descriptors = self._extractor.model, self._on_the_wire[digest]
        rows: list[Row] = [FeaturesRow(message.image_id, descriptors, model.address)]
        if digest in self._observed and self._shadow_extractor is not None:
            seen, by = self._observed[digest], self._shadow_extractor.model.address
            rows.append(ShadowFeaturesRow(message.image_id, seen.descriptors, by, seen.latency_ms))
        features = ImageFeatures(message.image_id, descriptors, len(descriptors), model.space)
        return Done(rows=tuple(rows), messages=(Outgoing(FEATURES, features),))


def _claim(message: ImageUploaded) -> str | None:
    """The digest that the producer says the picture has, if it is one."""
    text = (message.sha256 or "").lower()
    return text if _SHA256.fullmatch(text) else None
