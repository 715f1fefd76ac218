"""Native code in a child process, with a deadline and a memory ceiling for every call.

Decoders read bytes that come from someone else. Here such code may crash, hang or ask for all memory: it
costs the one item that it was called with, never a neighbour and never the process.

The child is forked from a server process that has done nothing but import the function's module
(`forkserver`): forking the service itself would copy its locks in whatever state its threads hold them.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from visionmesh.errors import Rejected, Unavailable
from visionmesh.observability import metrics

T = TypeVar("T")
R = TypeVar("R")

# Decoders leak. A new child costs about 0.1 s, so this many calls make it a tenth of a millisecond each.
_CALLS_PER_CHILD: Final = 1000

# How often an item is tried whose child was ended by someone else (an operator, the kernel's OOM killer).
_ATTEMPTS: Final = 3

# pebble forgets a call that was scheduled while its pool broke or was stopped; this often it is looked at.
_LOOK_SECONDS: Final = 1.0

_FROM_OUTSIDE: Final = (-signal.SIGKILL, -signal.SIGTERM)

# A child whose service was killed has nobody to end it: its own alarm does, this long after the deadline.
_ALARM_SECONDS: Final = 1.0

# The status of a child that ended for what it held, and how long that takes: pebble loses a call whose child
# ends before it was heard to have taken it up.
_GROWN: Final = os.EX_TEMPFAIL
_HEARD_SECONDS: Final = 0.2

_preload = {__name__}


class Isolated(Generic[T, R]):
    """Calls one function of a module in child processes. Safe to share between threads.

    function: module-level; its argument and its result must pickle. A `Rejected` that it raises comes
    back as that; anything else that it raises is a bug and is raised here.
    """

    def __init__(
        self,
        function: Callable[[T], R],
        *,
        deadline_seconds: float,
        memory_bytes: int,
        processes: int = 1,
        calls_per_child: int = _CALLS_PER_CHILD,
        resident_bytes: int | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        """deadline_seconds: longest one call may take, from when a child takes it up.
        memory_bytes: address space that a child may use beyond what it has at its start.
        calls_per_child: how many calls it is kept for.
        resident_bytes: a child that holds more of the machine's memory after a call is given no other one.
        preload: modules that every child has from its start, and that this process need not load.
        """
        self._function = function
        self._deadline_seconds = deadline_seconds
        self._memory_bytes = memory_bytes
        self._processes = processes
        self._calls_per_child = calls_per_child
        self._resident_bytes = resident_bytes
        self._modules = (function.__module__, *preload)
        self._lock = Lock()
        self._closed = False
        self._pool: ProcessPool | None = None

    def __enter__(self) -> Isolated[T, R]:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts the children now, so that the first picture does not wait for their imports."""
        with self._lock:
            pool = self._running_pool()
        for future in [pool.schedule(_warm_up) for _ in range(self._processes)]:
            future.result()

    def close(self) -> None:
        """Ends the children at once; calls under way raise `Unavailable`."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            _end(pool)

    def call(self, item: T) -> R:
        """The function's result. Raises `Rejected`, also with the codes of `map`."""
        (outcome,) = self.map([item])
        if isinstance(outcome, Rejected):
            raise outcome
        return outcome

    def map(self, items: Sequence[T]) -> list[R | Rejected]:
        """One result or `Rejected` for each item, in order.

        Beside the function's own codes: `decoder_crashed`, `deadline_exceeded`, `memory_exceeded`.
        Raises `Unavailable` after `close`.
        """
        outcomes = self._try(items)
        return [
            self._again(item, outcome) if isinstance(outcome, _Lost) else outcome
            for item, outcome in zip(items, outcomes, strict=True)
        ]

    def _again(self, item: T, lost: _Lost) -> R | Rejected:
        """Tries an item alone that was in a child when that died, perhaps with another one's guilt."""
        attempts = 0 if lost.exit_code == _GROWN else 1
        while attempts < _ATTEMPTS:
            (outcome,) = self._try([item])
            if not isinstance(outcome, _Lost):
                return outcome
            lost = outcome
            # A child that has grown did not try. There are no more of them than children.
            attempts += lost.exit_code != _GROWN
        if lost.exit_code == -signal.SIGKILL:
            return Rejected("memory_exceeded", "Reading the file was ended from outside, for lack of memory.")
        return _crashed()

    def _try(self, items: Sequence[T]) -> list[R | Rejected | _Lost]:
        calls = [self._schedule(item) for item in items]
        bug: BaseException | None = None
        outcomes: list[R | Rejected | _Lost] = []
        for call in calls:
            try:
                outcomes.append(_Lost() if call is None else self._outcome(*call))
            # Kept until all others have ended, so that no child works for nobody.
            except Exception as error:
                bug = bug or error
        if self._closed:
            raise Unavailable("isolated", "the process is stopping")
        if bug is not None:
            raise bug
        return outcomes

    def _outcome(self, pool: ProcessPool, future: ProcessFuture[Any]) -> R | Rejected | _Lost:
        while not wait([future], _LOOK_SECONDS).done:
            if not pool.active:
                return _Lost()
        try:
            outcome: R | Rejected = future.result()
        except BrokenProcessPool:
            return _Lost()
        except ProcessExpired as error:
            if error.exitcode == -signal.SIGALRM:
                return self._too_slow()
            if error.exitcode == _GROWN:
                metrics.ISOLATED_RESTARTS.labels("grown").inc()
                return _Lost(error.exitcode)
            metrics.ISOLATED_RESTARTS.labels("crash").inc()
            return _Lost(error.exitcode) if error.exitcode in _FROM_OUTSIDE else _crashed()
        except TimeoutError:
            return self._too_slow()
        return outcome

    def _too_slow(self) -> Rejected:
        metrics.ISOLATED_RESTARTS.labels("deadline").inc()
        return Rejected(
            "deadline_exceeded", f"Reading the file took longer than {self._deadline_seconds:g} s."
        )

    def _schedule(self, item: T) -> tuple[ProcessPool, ProcessFuture[Any]] | None:
        """None when the pool broke at this very moment."""
        with self._lock:
            pool = self._running_pool()
            try:
                return pool, pool.schedule(
                    _guarded,
                    args=(self._function, item, self._deadline_seconds),
                    timeout=self._deadline_seconds,
                )
            except RuntimeError:
                return None

    def _running_pool(self) -> ProcessPool:
        """The pool; a new one when a child died between two calls, which pebble does not survive."""
        if self._closed:
            raise Unavailable("isolated", "the process is stopping")
        if self._pool is not None and not self._pool.active:
            metrics.ISOLATED_RESTARTS.labels("crash").inc()
            _end(self._pool)
            self._pool = None
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            _preload.update(self._modules)
            context.set_forkserver_preload(sorted(_preload))
            self._pool = ProcessPool(
                self._processes,
                max_tasks=self._calls_per_child,
                initializer=_confine,
                initargs=(self._memory_bytes, self._resident_bytes),
                context=context,
            )
        return self._pool


class _Lost:
    """An item whose child, or the whole pool, ended by something else than what it does itself."""

    def __init__(self, exit_code: int | None = None) -> None:
        self.exit_code = exit_code


def _crashed() -> Rejected:
    return Rejected("decoder_crashed", "The file crashed the program that reads it.")


def _end(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


# In the child


# What a child may hold after its first call.
_resident_limit: float = math.inf
_is_first_call = True


def _confine(memory_bytes: int, resident_bytes: int | None) -> None:
    """Called once in a new child, before its first item."""
    # Python's handler would wait until native code returns, which may be never.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # A crash is expected here; a core file of every broken picture would fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    global _resident_limit
    _resident_limit = math.inf if resident_bytes is None else resident_bytes
    ceiling = _memory(0) + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))


def resident() -> int:
    """Bytes of the machine's memory that this process holds."""
    return _memory(1)


def _memory(column: int) -> int:
    """One number of Linux's `statm`, in bytes: 0 is the address space, 1 what of it is resident."""
    return int(Path("/proc/self/statm").read_text().split()[column]) * os.sysconf("SC_PAGE_SIZE")


def _warm_up() -> None:
    """Does nothing; that it could be called says that the child is there."""


def _guarded(function: Callable[[Any], Any], item: Any, deadline_seconds: float) -> Any:
    global _is_first_call
    if not _is_first_call and resident() > _resident_limit:
        time.sleep(_HEARD_SECONDS)
        os._exit(_GROWN)
    _is_first_call = False
    signal.setitimer(signal.ITIMER_REAL, deadline_seconds + _ALARM_SECONDS)
    try:
        return function(item)
    except Rejected as error:
        # As a value: pebble would send the whole chain of causes along.
        return Rejected(error.code, error.reason)
    except MemoryError:
        return Rejected("memory_exceeded", "Reading the file takes more memory than it is given.")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
