"""What commands ask of a mesh that another process runs: a file for each order, in the mesh's own folder.

The supervisor takes them as they were given, one at a time. A file goes away when its order is carried out;
one that can't be becomes a file with the reason. Whoever may write into the folder may give orders: it holds
the mesh's secrets, so that is its owner alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

_ORDER: Final = ".json"
_FAILED: Final = ".failed"

_LOOK_SECONDS: Final = 0.05


class Scale(msgspec.Struct, frozen=True, tag="scale"):
    """So many replicas of a service."""

    service: str
    replicas: int

    @property
    def text(self) -> str:
        return f"{self.service}={self.replicas}"


class Restart(msgspec.Struct, frozen=True, tag="restart"):
    """Every replica of a service anew, one after the other."""

    service: str

    @property
    def text(self) -> str:
        return f"{self.service} anew"


Order = Scale | Restart


class OrderError(Exception):
    """An order was not carried out; the text says why."""


@dataclass(frozen=True)
class Given:
    """An order that waits or is being carried out."""

    order: Order
    path: Path

    def done(self) -> None:
        self.path.unlink(missing_ok=True)

    def failed(self, reason: str) -> None:
        _answer(self.path, reason)


def give(directory: Path, order: Order) -> Given:
    """Asks the mesh that runs in `directory`."""
    folder = _folder(directory)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The time in front, so that the names sort as the orders were given.
    path = folder / f"{time.time_ns():020}-{os.getpid()}{_ORDER}"
    draft = path.with_suffix(".new")
    draft.write_bytes(msgspec.json.encode(order))
    draft.replace(path)
    return Given(order, path)


def wait(given: Given, still_runs: Callable[[], bool]) -> None:
    """Returns when the order is carried out.

    still_runs: whether there is anybody to do it. Raises `OrderError` when it can't be done, or nobody will.
    """
    while given.path.exists():
        if not still_runs():
            given.done()
            raise OrderError("The mesh has ended.")
        time.sleep(_LOOK_SECONDS)
    reason = given.path.with_suffix(_FAILED)
    if reason.exists():
        text = reason.read_text()
        reason.unlink(missing_ok=True)
        raise OrderError(text or "It can't be done; what the mesh prints says why.")


def next_given(directory: Path) -> Given | None:
    """The oldest order that waits. One that can't be read is answered with the reason."""
    for path in sorted(_folder(directory).glob(f"*{_ORDER}")):
        try:
            return Given(msgspec.json.decode(path.read_bytes(), type=Order), path)
        except FileNotFoundError:
            continue
        except (OSError, msgspec.DecodeError) as error:
            _answer(path, f"The order can't be read: {error}")
    return None


def forget(directory: Path) -> None:
    """Removes what was asked of a mesh that has ended since."""
    for path in _folder(directory).glob("*"):
        path.unlink(missing_ok=True)


def _answer(path: Path, reason: str) -> None:
    failed = path.with_suffix(_FAILED)
    try:
        failed.write_text(reason)
        path.unlink(missing_ok=True)
    except OSError:
        # A full disk has no room for the reason, and always for another name.
        os.truncate(path, 0)
        path.replace(failed)


def _folder(directory: Path) -> Path:
    return directory / "orders"
