"""The child of `visionmesh.isolated`: reads an item, calls the function, writes the outcome, and again.

It has this module and what its function needs, and nothing of the service: so it imports little.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, BinaryIO, Final

from visionmesh.errors import Rejected, Unavailable

# A child that works for a service that was killed has nobody to end it: its own alarm does, this long after
# the deadline.
_ALARM_SECONDS: Final = 1.0

# How native code says that there is no memory: OpenCV and ONNX Runtime raise exceptions of their own.
_NO_ROOM: Final = ("Failed to allocate", "bad_alloc")

# Exit status of a child that has no room for an item.
NO_MEMORY: Final = 71


@dataclass(frozen=True, slots=True)
class Begin:
    """What a child calls. memory_bytes: address space that it may use beyond what it has at its start."""

    function: Callable[[Any], Any]
    deadline_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The child takes items."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one item: what the function returned, or what it raised."""

    result: Any = None
    raised: Exception | None = None


def serve(descriptor: int) -> None:
    """Runs until the other end of a socket is closed.

    In come the names of modules to import, a `Begin`, and items; out go `Ready` and an `Outcome` for each
    item; all as pickles.
    """
    # Ctrl-C in a terminal is the parent's business. Python's handler of SIGTERM would wait until native code
    # returns, which may be never.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # The system closes the socket, when the process has its exit status: who sees the end can ask for that.
    items = os.fdopen(descriptor, "rb", closefd=False)
    outcomes = os.fdopen(descriptor, "wb", closefd=False)
    for module in pickle.load(items):
        # What is not installed is missed by the function, which can say so.
        with suppress(ImportError):
            import_module(module)
    begin: Begin = pickle.load(items)
    _confine(begin.memory_bytes)
    _write(outcomes, pickle.dumps(Ready()))
    while True:
        try:
            item = pickle.load(items)
        except EOFError:
            return
        except MemoryError:
            sys.exit(NO_MEMORY)
        _write(outcomes, _outcome(begin, item))


def resident(process: int | None = None) -> int:
    """Bytes of the machine's memory that a process holds; this one, unless another's id is given."""
    return _memory("self" if process is None else str(process), 1)


def _memory(process: str, column: int) -> int:
    """One number of Linux's `statm`, in bytes: 0 is the address space, 1 what of it is resident."""
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[column]) * os.sysconf("SC_PAGE_SIZE")


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()


def _confine(memory_bytes: int) -> None:
    # A crash is expected here; a core file of every broken picture would fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ceiling = _memory("self", 0) + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))


def _outcome(begin: Begin, item: Any) -> bytes:
    signal.setitimer(signal.ITIMER_REAL, begin.deadline_seconds + _ALARM_SECONDS)
    raised: Exception
    try:
        return pickle.dumps(Outcome(begin.function(item)))
    except Rejected as error:
        # Without the chain of its causes, which may hold half of the picture.
        raised = Rejected(error.code, error.reason)
    except Exception as error:
        raised = _no_room() if _lacks_memory(error) else _that_travels(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return pickle.dumps(Outcome(raised=raised))


def _lacks_memory(error: Exception) -> bool:
    # A server's answer may have the same words.
    if isinstance(error, Unavailable):
        return False
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_ROOM)


def _no_room() -> Rejected:
    return Rejected("memory_exceeded", "Reading the file takes more memory than it is given.")


def _that_travels(bug: Exception) -> Exception:
    """The exception with its traceback as a note; one that can't be pickled as a RuntimeError."""
    from traceback import format_exception

    where = "".join(format_exception(bug))
    bug.add_note(where)
    try:
        pickle.loads(pickle.dumps(bug))
    # Whatever the constructor of a class of exceptions asks for, or its arguments don't allow.
    except Exception:
        return RuntimeError(where)
    return bug
