"""`python -m ocr_worker`: the text service, wired."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final

from ocr_worker.http import Terms, make_app
from ocr_worker.intake import IngestApi
from ocr_worker.load import GroupLag, Tally
from ocr_worker.reading import DOMAIN, PADDLEX, EngineChoice, Reader, read_one
from ocr_worker.step import make_step
from visionmesh.database import Database
from visionmesh.errors import Unavailable
from visionmesh.isolated import Isolated
from visionmesh.object_store import S3ObjectStore
from visionmesh.observability import logs, metrics
from visionmesh.results import PostgresImages, PostgresResultStore
from visionmesh.service import ready_when, run_service, start
from visionmesh.settings import Settings
from visionmesh.topics import IMAGES
from visionmesh.worker.loop import Worker

SERVICE: Final = "ocr-worker"
PORT: Final = 8500

# Documents of a batch wait for each other, and what a killed replica had in hand is read again.
_BATCH_PER_ENGINE: Final = 2


# Of the networks of every engine.
_FAMILY: Final = "PP-OCR"

# What a container is limited to: a quota and its period in microseconds, or `max` for the quota.
_CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


def engine_choice(settings: Settings) -> EngineChoice:
    return EngineChoice(
        settings.ocr_engine,
        settings.ocr_language,
        settings.ocr_threads or max(1, cores() // settings.ocr_processes),
        settings.ocr_paddlex_url,
        settings.ocr_paddle_models,
        settings.ocr_page_seconds,
    )


def cores(limit: Path = _CPU_LIMIT) -> int:
    """Those that this process may use: more threads than that would only wait for each other."""
    available = len(os.sched_getaffinity(0))
    try:
        quota, period = limit.read_text().split()
        return min(available, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        return available


def warm_up(reader: Reader) -> None:
    """Raises what is wrong with the engine."""
    try:
        reader.warm_up()
    except Unavailable as error:
        # A server that an engine asks may come later: documents wait for it.
        if error.server != PADDLEX:
            raise


def announce(engine: str) -> None:
    """Tells what reads, by the version of the package: its networks come with it, or are named by it.

    A server's version is not known here.
    """
    version = ""
    if engine != PADDLEX:
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(engine)
    metrics.announce_model(engine, version, _FAMILY)


def serve(settings: Settings) -> int:
    logs.configure(SERVICE, settings)
    processes = settings.ocr_processes
    objects = S3ObjectStore.from_settings(settings)
    fetch = partial(objects.get, max_bytes=settings.upload_max_bytes)
    with (
        Database.from_settings(settings) as database,
        Isolated(
            read_one,
            deadline_seconds=settings.ocr_page_seconds,
            memory_bytes=settings.ocr_engine_memory_bytes,
            processes=processes,
            calls_per_child=settings.ocr_pages_per_engine,
            resident_bytes=settings.ocr_engine_resident_bytes,
            preload=(DOMAIN,),
        ) as isolated,
        GroupLag(settings, SERVICE) as lag,
    ):
        reader = Reader(
            isolated, engine_choice(settings), processes=processes, max_pages=settings.ocr_max_pages
        )
        warm_up(reader)
        announce(settings.ocr_engine)
        read = Tally(reader)
        worker = Worker.from_settings(
            SERVICE,
            IMAGES,
            make_step(fetch, read, processes=processes),
            settings,
            store=PostgresResultStore(database),
            record_attempts=True,
            max_batch=min(_BATCH_PER_ENGINE * processes, settings.worker_max_batch),
        )
        checks = {
            "worker": ready_when(worker),
            "object_store": objects.ping,
            "database": database.ping,
        }
        app = make_app(
            SERVICE,
            read,
            submit=IngestApi(
                settings.ingest_url, settings.api_key.get_secret_value() if settings.api_key else None
            ),
            images=PostgresImages(database),
            lag=lag,
            terms=Terms(
                engines=processes,
                deadline_seconds=settings.ocr_deadline_seconds,
                waiting_limit=settings.ocr_waiting_limit,
                queue_limit=settings.ocr_queue_limit,
                max_bytes=settings.upload_max_bytes,
            ),
            checks=checks,
        )
        return run_service(app, worker, port=PORT, settings=settings)


if __name__ == "__main__":
    sys.exit(start(serve))
