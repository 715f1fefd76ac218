"""Descriptors that were computed before: the cache, as the extractor sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from visionmesh.cache import Cache

if TYPE_CHECKING:
    from visionmesh.model_store import Model

_VALUE: Final = np.dtype("<f4")

_MODEL_DIGITS: Final = 12


class Known:
    """What one model once gave for the bytes of a picture file, by their sha256.

    The key is `descriptors:<name@version>:<12 digits of the model's sha256>:<sha256 of the picture>`, in hex,
    the value the descriptors as they came from the model, float32 little-endian. Name and version are not
    enough: a model that is trained or registered again may have those of another one.
    """

    def __init__(self, cache: Cache, model: Model) -> None:
        self._cache = cache
        self._prefix = f"descriptors:{model.address}:{model.sha256[:_MODEL_DIGITS]}:"
        self._bytes = model.descriptor_count * _VALUE.itemsize

    def find(self, digests: Collection[str]) -> dict[str, NDArray[np.float32]]:
        """The descriptors, float32 [descriptor_count], of those pictures that are known."""
        values = self._cache.get_many([self._prefix + digest for digest in digests], length=self._bytes)
        return {
            digest: np.frombuffer(value, _VALUE).astype(np.float32)
            for digest, value in zip(digests, values, strict=True)
            if value is not None
        }

    def keep(self, found: Mapping[str, NDArray[np.float32]]) -> None:
        """Remembers descriptors. The digests have to be computed: a claimed one would poison the cache."""
        self._cache.put_many(
            {self._prefix + digest: row.astype(_VALUE).tobytes() for digest, row in found.items()}
        )
