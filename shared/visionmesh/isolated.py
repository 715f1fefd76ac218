"""Native code in a child process, with a deadline and a memory ceiling for every call.

Decoders read bytes that come from someone else. Here such code may crash, hang or ask for all memory: it
costs the one item that it was called with, never a neighbour and never the process.

The child is a new interpreter that imports the function's module (`isolated_child`) and is spoken to over a
socket. Forking the service instead would copy its locks in whatever state its threads hold them; forking a
template of the child would keep that in memory too, for a start that is some tenths of a second sooner.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from visionmesh.errors import Rejected, Unavailable
from visionmesh.isolated_child import NO_MEMORY, Begin, Outcome, resident
from visionmesh.observability import metrics

T = TypeVar("T")
R = TypeVar("R")

# Decoders leak. A new child costs 0.2 s of CPU, so this many calls make it a tenth of a millisecond each.
_CALLS_PER_CHILD: Final = 2000

# How often an item is tried whose child was ended by someone else (an operator, the kernel's OOM killer).
_ATTEMPTS: Final = 3

# A child imports before it is ready: a second at most, or ten when torch is among it, on an idle machine.
_START_SECONDS: Final = 120.0

_FROM_OUTSIDE: Final = (-signal.SIGKILL, -signal.SIGTERM)

# A child has one thread, which needs one heap. Thresholds that are set stay: glibc would raise its own with
# the first large picture, and keep what that took. What is below them is used again from picture to picture:
# asking the system anew for the pages of each array took a quarter of the time. The process itself holds no
# arrays and is given lower ones.
_MALLOC: Final = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 1024**2),
}


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
        begin = Begin(function, deadline_seconds, memory_bytes)
        self._deadline_seconds = deadline_seconds
        self._places = [
            _Place(begin, tuple(preload), calls_per_child, resident_bytes) for _ in range(processes)
        ]
        self._free = _Free(self._places)
        metrics.from_zero(metrics.ISOLATED_RESTARTS, metrics.ISOLATED_ENDS)

    def __enter__(self) -> Isolated[T, R]:
        try:
            self.start()
        # Who can't enter won't leave.
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts the children now, so that the first picture does not wait for their imports."""
        for place in self._places:
            place.child()
        for place in self._places:
            place.child().wait_until_ready()

    def close(self) -> None:
        """Ends the children at once; calls under way raise `Unavailable`, and later ones too."""
        for place in self._places:
            place.close()

    def call(self, item: T) -> R:
        """The function's result; waits for a child that is free, behind those who wait already.

        Raises `Rejected`, beside the function's own codes with `decoder_crashed`, `deadline_exceeded` and
        `memory_exceeded`; and `Unavailable` after `close`.
        """
        exit_code = 0
        for _ in range(_ATTEMPTS):
            place = self._free.take()
            try:
                outcome: Outcome = place.call(item)
            except TimeoutError:
                raise self._too_slow() from None
            except _ChildEndedError as ended:
                exit_code = ended.exit_code
                if exit_code == -signal.SIGALRM:
                    raise self._too_slow() from None
                metrics.ISOLATED_RESTARTS.labels("crash").inc()
                # Ended from outside, perhaps for what another process did.
                if exit_code in _FROM_OUTSIDE:
                    continue
                if exit_code == NO_MEMORY:
                    raise Rejected(
                        "memory_exceeded", "The file takes more memory than its reader is given."
                    ) from None
                raise _crashed() from None
            finally:
                self._free.give(place)
            if outcome.raised is not None:
                raise outcome.raised
            result: R = outcome.result
            return result
        if exit_code == -signal.SIGKILL:
            raise Rejected("memory_exceeded", "Reading the file was ended from outside, for lack of memory.")
        raise _crashed()

    def _too_slow(self) -> Rejected:
        metrics.ISOLATED_RESTARTS.labels("deadline").inc()
        return Rejected(
            "deadline_exceeded", f"Reading the file took longer than {self._deadline_seconds:g} s."
        )


class _Free:
    """The places that nobody uses. A queue would only wake who waits, and whoever has just given a place back
    takes it again first: here it is handed to the one who waits longest.
    """

    def __init__(self, places: Sequence[_Place]) -> None:
        self._lock = Lock()
        # The place that was used last is used next: its child is the warmest.
        self._idle = list(places)
        self._waiting: deque[Future[_Place]] = deque()

    def take(self) -> _Place:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            turn: Future[_Place] = Future()
            self._waiting.append(turn)
        return turn.result()

    def give(self, place: _Place) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set_result(place)
            else:
                self._idle.append(place)


class _ChildEndedError(Exception):
    """While it was waited for. exit_code: negative is a signal."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def _crashed() -> Rejected:
    return Rejected("decoder_crashed", "The file crashed the program that reads it.")


class _Place:
    """Where one child is at a time. Used by one thread at a time, but for `close`."""

    def __init__(
        self, begin: Begin, preload: tuple[str, ...], calls_per_child: int, resident_bytes: int | None
    ) -> None:
        self._begin = begin
        self._preload = preload
        self._calls_per_child = calls_per_child
        self._resident_bytes = resident_bytes
        self._lock = Lock()
        self._in_use = Lock()
        self._closed = False
        self._child: _Child | None = None

    def child(self) -> _Child:
        """The one that is there, or a new one, which may not be ready yet. Raises `Unavailable`."""
        with self._lock:
            if self._closed:
                raise _stopping()
            if self._child is not None and self._child.has_ended():
                metrics.ISOLATED_RESTARTS.labels("crash").inc()
                self._child = None
            if self._child is None:
                try:
                    self._child = _Child(self._begin, self._preload)
                # The system has no process, memory or descriptor for one.
                except OSError as error:
                    raise Unavailable("isolated", f"a child can't be started: {error}") from error
            return self._child

    def call(self, item: Any) -> Outcome:
        """Raises `_ChildEndedError`, TimeoutError at the deadline, and `Unavailable`."""
        with self._in_use:
            child = self.child()
            try:
                child.wait_until_ready()
                outcome = child.call(item, self._begin.deadline_seconds)
            # Whatever it was, the child may still be in the middle of it.
            except BaseException as error:
                self._replace(child)
                if self._closed:
                    raise _stopping() from error
                raise
            if child.calls >= self._calls_per_child or self._has_grown(child):
                self._replace(child)
            return outcome

    def _has_grown(self, child: _Child) -> bool:
        if self._resident_bytes is None or child.resident() <= self._resident_bytes:
            return False
        metrics.ISOLATED_RESTARTS.labels("grown").inc()
        return True

    def _replace(self, child: _Child) -> None:
        """Ends a child and starts the next, whose imports are then under way when it is needed."""
        child.end()
        with self._lock:
            self._child = None
        # Whoever needs it is told; the call that is over has its own outcome.
        with suppress(Unavailable):
            self.child()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()
        # Whoever waited for the child is told of its end by then.
        with self._in_use:
            if self._child is not None:
                self._child.end()
                self._child = None


def _stopping() -> Unavailable:
    return Unavailable("isolated", "the process is stopping")


class _Child:
    """One process. calls: those it has answered."""

    def __init__(self, begin: Begin, preload: tuple[str, ...]) -> None:
        ours, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _program(its.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                env={**os.environ, **_MALLOC},
            )
        self._socket = ours
        self._items, self._outcomes = ours.makefile("wb"), ours.makefile("rb")
        self._is_ready = False
        self.calls = 0
        # Small enough to wait in the socket until it has begun to read. Of its end `wait_until_ready` tells.
        with suppress(ConnectionError):
            self._socket.sendall(pickle.dumps(preload) + pickle.dumps(begin))

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def resident(self) -> int:
        """Bytes of the machine's memory that it holds; none once it has ended."""
        try:
            return resident(self._process.pid)
        except (FileNotFoundError, ProcessLookupError):
            return 0

    def wait_until_ready(self) -> None:
        """Raises `Unavailable`: no item is to blame for a child that does not start."""
        if self._is_ready:
            return
        try:
            self._receive(_START_SECONDS)
        except TimeoutError:
            raise Unavailable("isolated", f"a child took longer than {_START_SECONDS:g} s to start") from None
        except _ChildEndedError as ended:
            raise Unavailable("isolated", f"a child did not start: exit status {ended.exit_code}") from None
        self._is_ready = True

    def call(self, item: Any, deadline_seconds: float) -> Outcome:
        """Raises `_ChildEndedError` and TimeoutError."""
        self._socket.settimeout(deadline_seconds)
        try:
            # Into the socket and not into bytes, which would be a copy of the picture.
            pickle.dump(item, self._items)
            self._items.flush()
        except ConnectionError:
            raise self._ended() from None
        outcome: Outcome = self._receive(deadline_seconds)
        self.calls += 1
        return outcome

    def _receive(self, seconds: float) -> Any:
        self._socket.settimeout(seconds)
        try:
            return pickle.load(self._outcomes)
        # Nothing, or half of an answer.
        except (EOFError, ConnectionError, pickle.UnpicklingError):
            raise self._ended() from None

    def _ended(self) -> _ChildEndedError:
        self._process.kill()
        return _ChildEndedError(self._process.wait())

    def kill(self) -> None:
        """Ends it; a thread that waits for its answer is told."""
        self._process.kill()

    def end(self) -> None:
        """Ends it for good."""
        self._process.kill()
        self._process.wait()
        for file in (self._items, self._outcomes, self._socket):
            # What was not sent can't be sent any more.
            with suppress(OSError):
                file.close()


def _program(descriptor: int) -> str:
    """What the child's interpreter runs. It finds modules where this process does."""
    return (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from visionmesh.isolated_child import serve; serve({descriptor})"
    )
