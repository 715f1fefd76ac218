"""`python -m qr_decoder`: the QR decoder, wired."""

from __future__ import annotations

import sys
from functools import partial
from typing import Final

from qr_decoder.http import make_app
from qr_decoder.reading import DOMAIN, Reader, read_one
from qr_decoder.step import make_step
from visionmesh.database import Database
from visionmesh.isolated import Isolated
from visionmesh.object_store import S3ObjectStore
from visionmesh.observability import logs
from visionmesh.results import PostgresResultStore
from visionmesh.service import ready_when, run_service, start
from visionmesh.settings import Settings
from visionmesh.topics import IMAGES
from visionmesh.worker.loop import Worker

SERVICE: Final = "qr-decoder"
PORT: Final = 8008

# A picture may take its whole budget, and those of its batch wait for it; what a killed replica had in hand
# is read again.
_BATCH: Final = 8

# The largest budget that can be asked for over HTTP, unless the service's own is larger.
_LONGEST_BUDGET_MS: Final = 5000

# From the end of the budget to the deadline of the child: decoding the file, and the attempt under way, on a
# machine that may be busy. The deadline is for what hangs; too early, it would lose what was read.
_HEADROOM_SECONDS: Final = 5.0


def serve(settings: Settings) -> int:
    logs.configure(SERVICE, settings)
    max_budget_ms = max(_LONGEST_BUDGET_MS, settings.qr_budget_ms)
    objects = S3ObjectStore.from_settings(settings)
    fetch = partial(objects.get, max_bytes=settings.upload_max_bytes)
    with (
        Database.from_settings(settings) as database,
        Isolated(
            read_one,
            deadline_seconds=max(
                settings.isolated_deadline_seconds, max_budget_ms / 1000 + _HEADROOM_SECONDS
            ),
            memory_bytes=settings.isolated_memory_bytes,
            processes=settings.qr_processes,
            preload=(DOMAIN,),
        ) as isolated,
    ):
        read = Reader(
            isolated, settings.models_dir, profile=settings.qr_profile, budget_ms=settings.qr_budget_ms
        )
        worker = Worker.from_settings(
            SERVICE,
            IMAGES,
            make_step(fetch, read, processes=settings.qr_processes),
            settings,
            store=PostgresResultStore(database),
            record_attempts=True,
            max_batch=min(_BATCH, settings.worker_max_batch),
        )
        checks = {
            "worker": ready_when(worker),
            "object_store": objects.ping,
            "database": database.ping,
        }
        app = make_app(
            SERVICE,
            read,
            own_profile=settings.qr_profile,
            checks=checks,
            max_bytes=settings.upload_max_bytes,
            max_budget_ms=max_budget_ms,
        )
        return run_service(app, worker, port=PORT, settings=settings)


if __name__ == "__main__":
    sys.exit(start(serve))
