"""`python -m feature_extractor`: the feature extractor, wired."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_extractor.domain import Extractor, prepare_one
from feature_extractor.http import make_app
from feature_extractor.models import SERVICE, current_extractor
from feature_extractor.step import make_step
from visionmesh.cache import open_cache
from visionmesh.database import Database
from visionmesh.errors import Unavailable
from visionmesh.isolated import Isolated
from visionmesh.object_store import S3ObjectStore
from visionmesh.observability import logs
from visionmesh.registry import open_shadow, open_source
from visionmesh.service import ready_when, run_service, start
from visionmesh.settings import Settings
from visionmesh.shadow import open_store
from visionmesh.topics import IMAGES
from visionmesh.worker.loop import Worker

PORT: Final = 8006


def serve(settings: Settings) -> int:
    logs.configure(SERVICE, settings)
    objects = S3ObjectStore.from_settings(settings)
    fetch = partial(objects.get, max_bytes=settings.upload_max_bytes)
    cache = open_cache(settings)
    with (
        open_source(settings, settings.extractor_model, kind="extractor") as source,
        open_shadow(settings, "extractor") as shadow,
        Database.from_settings(settings) as database,
        open_store(settings, database, SERVICE, shadow) as store,
        Isolated(
            prepare_one,
            deadline_seconds=settings.isolated_deadline_seconds,
            memory_bytes=settings.isolated_memory_bytes,
        ) as isolated,
    ):
        # A model that takes no pictures is told at once, and not by every message.
        with suppress(Unavailable):
            Extractor(source.current())

        def prepare(data: bytes, side: int) -> NDArray[np.uint8]:
            return isolated.call((data, side))

        worker = Worker.from_settings(
            SERVICE,
            IMAGES,
            make_step(fetch, prepare, source, cache, shadow=shadow),
            settings,
            store=store,
            record_attempts=True,
        )
        checks = {
            "worker": ready_when(worker),
            "object_store": objects.ping,
            "database": database.ping,
            "model": lambda: current_extractor(source).model.address,
        }
        app = make_app(
            SERVICE, fetch, prepare, source, cache, checks=checks, max_bytes=settings.upload_max_bytes
        )
        return run_service(app, worker, port=PORT, settings=settings)


if __name__ == "__main__":
    sys.exit(start(serve))
