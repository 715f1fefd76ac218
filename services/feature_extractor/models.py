"""The models at work: the one that answers, and one in shadow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_extractor.domain import Extractor, on_the_wire
from visionmesh.errors import Rejected, Unavailable
from visionmesh.observability import metrics
from visionmesh.registry import ModelSource
from visionmesh.shadow import Failures

SERVICE: Final = "feature-extractor"

# `domain.prepare`, wherever it runs. Raises `Rejected`.
Prepare = Callable[[bytes, int], NDArray[np.uint8]]


def current_extractor(source: ModelSource) -> Extractor:
    """The extractor that is to be used now.

    Raises `Unavailable` when there is none, also when a registry names a model that is no extractor of
    pictures: no message is at fault, and another version may come.
    """
    try:
        return Extractor(source.current())
    except ValueError as error:
        raise Unavailable("model_store", str(error)) from error


@dataclass(frozen=True)
class Observed:
    """What the model in shadow gave for one picture. latency_ms: its share of the batch's inference."""

    descriptors: tuple[float, ...]
    latency_ms: float


class Shadow:
    """A second model that sees what the first one sees. Whatever befalls it costs its own rows alone: it
    is counted, and logged once per reason.

    It always computes, since it is there to be measured: the cache is not for it.
    """

    def __init__(self, source: ModelSource, prepare: Prepare) -> None:
        self._source = source
        self._prepare = prepare
        self._failures = Failures(SERVICE)

    def extractor(self) -> Extractor | None:
        """The model for a batch; None when it can't be had."""
        try:
            return current_extractor(self._source)
        except Exception as error:
            self._failures.note(f"{type(error).__name__}: {error}")
            return None

    def prepared(
        self, extractor: Extractor, data: bytes, ready: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8] | None:
        """The picture as the model takes it. ready: as the first model takes it, if that was needed."""
        if ready is not None and len(ready) == extractor.side:
            return ready
        try:
            return self._prepare(data, extractor.side)
        except Rejected:
            return None
        except Exception as error:
            self._failures.note(f"{type(error).__name__}: {error}")
            return None

    def observe(self, extractor: Extractor, pictures: Mapping[str, NDArray[np.uint8]]) -> dict[str, Observed]:
        """What the model gives for prepared pictures, by the same keys; nothing when it fails."""
        if not pictures:
            return {}
        start = time.perf_counter()
        try:
            rows = extractor.extract(list(pictures.values()))
        except Exception as error:
            self._failures.note(f"{type(error).__name__}: {error}")
            return {}
        latency_ms = (time.perf_counter() - start) * 1000 / len(pictures)
        metrics.INFERENCES.labels("shadow").inc(len(pictures))
        return {
            key: Observed(descriptors, latency_ms)
            for key, descriptors in zip(pictures, on_the_wire(rows), strict=True)
        }
