"""`python -m qr_decoder`: the QR decoder, wired."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from qr_decoder import weights
from qr_decoder.http import make_app
from qr_decoder.locators import LocatorFile, asked_by, unlisted
from qr_decoder.reader import Reader
from qr_decoder.reading import DOMAIN, ULTRALIGHT, ULTRALIGHT_DOMAIN, Asked, Found, read_one
from qr_decoder.step import make_step
from visionmesh.database import Database
from visionmesh.isolated import Isolated
from visionmesh.object_store import S3ObjectStore
from visionmesh.observability import logs, metrics
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

# What QReader may add to its child: torch's work and copies of a large picture, besides a large detector.
QREADER_BYTES: Final = 3 * 1024**3

# The weights of the large detector are 90 MB.
_DOWNLOAD_SECONDS: Final = 600.0

# From the end of the budget to the deadline of the child: decoding the file, and the attempt under way, on a
# machine that may be busy. The deadline is for what hangs; too early, it would lose what was read.
_HEADROOM_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Engine:
    """What reads the pictures in the child. folder: of what it loads. preload: modules of the child.

    locators: those that its profile asks.
    """

    read_one: Callable[[Asked], Found]
    folder: Path
    profile: str
    preload: tuple[str, ...]
    memory_bytes: int
    locators: Sequence[LocatorFile]


def _cascade(settings: Settings) -> _Engine:
    profile = settings.qr_profile
    preload = (ULTRALIGHT_DOMAIN if profile == ULTRALIGHT else DOMAIN,)
    return _Engine(
        read_one,
        settings.models_dir,
        profile,
        preload,
        settings.isolated_memory_bytes,
        asked_by(profile, settings.models_dir),
    )


def _qreader(settings: Settings) -> _Engine:
    """Raises `Rejected` where the package or its weights can't be had."""
    # It loads numpy, which this process has no use for with the other engine.
    from qr_decoder import qreader_engine

    os.environ.update(weights.QUIET)
    memory_bytes = max(settings.isolated_memory_bytes, QREADER_BYTES)
    preload = (qreader_engine.PACKAGE,)
    size, folder = settings.qr_reader_size, settings.qr_reader_weights
    with Isolated(
        qreader_engine.prepare,
        deadline_seconds=_DOWNLOAD_SECONDS,
        memory_bytes=memory_bytes,
        preload=preload,
    ) as isolated:
        isolated.call(qreader_engine.Weights(size, folder))
    detector = unlisted(f"qrdet-{size}", weights.file_of(size, folder))
    return _Engine(qreader_engine.read_one, folder, f"qreader-{size}", preload, memory_bytes, (detector,))


_ENGINES: Final = {"cascade": _cascade, "qreader": _qreader}


def serve(settings: Settings) -> int:
    logs.configure(SERVICE, settings)
    engine = _ENGINES[settings.qr_engine](settings)
    max_budget_ms = max(_LONGEST_BUDGET_MS, settings.qr_budget_ms)
    objects = S3ObjectStore.from_settings(settings)
    fetch = partial(objects.get, max_bytes=settings.upload_max_bytes)
    with (
        Database.from_settings(settings) as database,
        Isolated(
            engine.read_one,
            deadline_seconds=max(
                settings.isolated_deadline_seconds, max_budget_ms / 1000 + _HEADROOM_SECONDS
            ),
            memory_bytes=engine.memory_bytes,
            processes=settings.qr_processes,
            preload=engine.preload,
        ) as isolated,
    ):
        read = Reader(isolated, engine.folder, profile=engine.profile, budget_ms=settings.qr_budget_ms)
        for locator in engine.locators:
            metrics.announce_model(locator.name, locator.version, locator.family)
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
            own_profile=engine.profile,
            checks=checks,
            max_bytes=settings.upload_max_bytes,
            max_budget_ms=max_budget_ms,
            processes=settings.qr_processes,
        )
        return run_service(app, worker, port=PORT, settings=settings)


if __name__ == "__main__":
    sys.exit(start(serve))
