"""What a sensor hangs on: something that bytes come out of, until it is lost."""

from __future__ import annotations

from typing import Protocol


class LinkLost(Exception):  # noqa: N818 - an outcome
    """A link could not be opened, or is no longer there. Says why, in a sentence."""


class Receiver(Protocol):
    """Who takes what a link gives. Called on the event loop."""

    def opened(self) -> None:
        """The hardware answers; data will follow."""

    def data(self, data: bytes, monotonic_ns: int) -> None:
        """Bytes, and when they arrived. A link whose hardware knows messages hands over whole ones."""

    def fault(self, reason: str) -> None:
        """A measurement failed, and the link goes on."""


class Link(Protocol):
    """One way to a sensor."""

    @property
    def source(self) -> str:
        """What it is, for people: `serial /dev/ttyUSB0`."""

    async def run(self, receiver: Receiver) -> None:
        """Opens the link and hands over what comes out of it, until it is lost or this is cancelled.

        May be called again afterwards. Returns only when there can be nothing more, as at the end of a
        recording. Raises `LinkLost`, and `OSError` as the hardware gives it. Never blocks the event loop.
        """
