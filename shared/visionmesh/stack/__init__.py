"""The servers of the mesh behind one protocol: embedded (Python packages only) or native (the real ones).

`with open_stack("embedded", directory) as stack:` starts the servers, hands out `stack.endpoints` and stops
them at the end; whatever happens to the process, its servers end with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from visionmesh.stack.process import StackError
from visionmesh.stack.protocol import Endpoints, Ports, Server, Stack

if TYPE_CHECKING:
    from visionmesh.stack.embedded import EmbeddedStack
    from visionmesh.stack.native import NativeStack

__all__ = [
    "EmbeddedStack",
    "Endpoints",
    "NativeStack",
    "Ports",
    "Server",
    "Stack",
    "StackError",
    "StackKind",
    "open_stack",
]

StackKind = Literal["embedded", "native"]


def open_stack(
    kind: StackKind, directory: Path, *, ports: Ports | None = None, topics: Sequence[str] | None = None
) -> Stack:
    """The stack of that kind, not yet started; it keeps logs and data in `directory`.

    ports: the ports to listen on; free ones when absent.
    topics: what the embedded broker offers from the start, the table in `visionmesh.topics` when absent.
    The native broker ignores it: `mesh topics` creates them there, with their retention and limits.
    """
    from visionmesh.stack.embedded import EmbeddedStack
    from visionmesh.stack.native import NativeStack

    if kind == "embedded":
        return EmbeddedStack(directory, ports=ports, topics=topics)
    return NativeStack(directory, ports=ports)


def __getattr__(name: str) -> object:
    # The servers written in Python are children that import this package. They need none of the clients that
    # the stacks bring along, which are most of the time it takes to start them.
    if name == "EmbeddedStack":
        from visionmesh.stack.embedded import EmbeddedStack

        return EmbeddedStack
    if name == "NativeStack":
        from visionmesh.stack.native import NativeStack

        return NativeStack
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
