"""Partitions: made before they are needed, dropped when nobody wants them any more."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Final

import structlog

from visionmesh.errors import Unavailable
from visionmesh.observability import metrics
from visionmesh.sensors import Housekeeping

log = structlog.get_logger()

_PERIOD_SECONDS: Final = 3600.0

# A database that is away is asked again this soon.
_AGAIN_SECONDS: Final = 60.0

# Enough that a sink which is down over a weekend finds its partitions made; a reading makes its own at need.
_DAYS_AHEAD: Final = 3


class Keeper:
    """Keeps the partitions in a thread of its own, from `start` to `stop`.

    Every replica has one: what one has done, the others find done.
    """

    def __init__(
        self,
        tables: Housekeeping,
        *,
        retention_days: int | None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """retention_days: full days that are kept besides the one that runs; None keeps everything."""
        self._tables = tables
        self._retention_days = retention_days
        self._now = now
        self._stop = Event()
        self._thread = Thread(target=self._run, name="partitions", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def keep(self) -> None:
        """One round. Raises `Unavailable`."""
        today = self._now().astimezone(UTC).date()
        self._tables.ensure_days(today + timedelta(days=ahead) for ahead in range(_DAYS_AHEAD + 1))
        if self._retention_days is None:
            return
        dropped = self._tables.drop_before(today - timedelta(days=self._retention_days))
        if dropped:
            metrics.SENSOR_PARTITIONS_DROPPED.inc(len(dropped))
            log.info("partitions_dropped", partitions=dropped, retention_days=self._retention_days)

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                self.keep()
                pause = _PERIOD_SECONDS
            except Unavailable as error:
                log.warning("partitions_not_kept", reason=error.reason)
                pause = _AGAIN_SECONDS
            # Readings are taken whatever goes wrong here, and make the partitions they need.
            except Exception:
                log.exception("partitions_not_kept")
                pause = _AGAIN_SECONDS
