"""Whether a process can work: what `GET /ready` says.

A check is a function that returns when its server answers and raises when not. A server that is away may
keep a check waiting for long, so each one runs on a thread of its own, which the answer does not wait for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any, Final

from visionmesh.errors import Unavailable
from visionmesh.observability import metrics
from visionmesh.observability.logs import without_passwords

# Returns what is worth knowing (anything that JSON has, or None); raises to say that it is not ready.
Check = Callable[[], Any]

_DEADLINE_SECONDS: Final = 2.0

# Orchestrators and balancers ask often and each on their own; the servers are asked this often at most.
_CACHE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. error: why it is not ready, else None. detail: as the check returned it."""

    ready: bool
    error: str | None = None
    detail: Any = None

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"ready": self.ready}
        if self.error is not None:
            found["error"] = self.error
        if self.detail is not None:
            found["detail"] = self.detail
        return found


class Readiness:
    """Runs the checks of one process. Used from one event loop."""

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        deadline_seconds: float = _DEADLINE_SECONDS,
        cache_seconds: float = _CACHE_SECONDS,
    ) -> None:
        self._deadline_seconds = deadline_seconds
        self._cache_seconds = cache_seconds
        self._runs = {name: _Run(name, check) for name, check in checks.items()}
        self._cached: dict[str, Finding] = {}
        self._cached_at = float("-inf")

    async def findings(self) -> dict[str, Finding]:
        """One finding per check, none older than the cache and none later than the deadline."""
        if time.monotonic() - self._cached_at < self._cache_seconds:
            return self._cached
        futures = {name: asyncio.wrap_future(run.begin()) for name, run in self._runs.items()}
        if futures:
            await asyncio.wait(futures.values(), timeout=self._deadline_seconds)
        self._cached = {
            name: future.result()
            if future.done()
            else Finding(False, f"no answer within {self._deadline_seconds:g} s")
            for name, future in futures.items()
        }
        for name, finding in self._cached.items():
            metrics.READY.labels(name).set(finding.ready)
        self._cached_at = time.monotonic()
        return self._cached


class _Run:
    """One check, on at most one thread at a time: one that hangs must not gather threads."""

    def __init__(self, name: str, check: Check) -> None:
        self._name = name
        self._check = check
        self._lock = Lock()
        self._running: Future[Finding] | None = None

    def begin(self) -> Future[Finding]:
        with self._lock:
            if self._running is None or self._running.done():
                self._running = Future()
                # Set running, so that nobody who stops waiting can cancel it for the others.
                self._running.set_running_or_notify_cancel()
                # A daemon: a check that hangs must not keep the process from ending.
                Thread(
                    target=self._run, args=(self._running,), name=f"check-{self._name}", daemon=True
                ).start()
            return self._running

    def _run(self, future: Future[Finding]) -> None:
        try:
            detail = self._check()
        except Unavailable as error:
            future.set_result(Finding(False, without_passwords(error.reason)))
        except Exception as error:
            future.set_result(Finding(False, without_passwords(f"{type(error).__name__}: {error}")))
        else:
            future.set_result(Finding(True, detail=detail))
