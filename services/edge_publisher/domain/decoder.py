"""Bytes as they arrive -> values of a sensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from visionmesh.contracts import SensorValues

V_co = TypeVar("V_co", bound=SensorValues, covariant=True)


class Decoder(Protocol, Generic[V_co]):
    """Decodes the bytes of one connection. It keeps what is incomplete, so each connection has its own."""

    def feed(self, data: bytes) -> Sequence[V_co]:
        """The measurements that these bytes complete, in order. Whatever the bytes are, it never raises."""

    @property
    def counts(self) -> dict[str, int]:
        """What it saw so far: frames or lines that were damaged, and why."""
