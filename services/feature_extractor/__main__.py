"""`python -m feature_extractor`: the feature extractor, wired."""

from __future__ import annotations

import sys
from functools import partial
from typing import Final

from feature_extractor.domain import Extractor, prepare
from feature_extractor.http import make_app
from feature_extractor.step import make_step
from visionmesh.database import Database
from visionmesh.isolated import Isolated
from visionmesh.model_store import ModelStore
from visionmesh.object_store import S3ObjectStore
from visionmesh.observability import logs, metrics
from visionmesh.results import PostgresResultStore
from visionmesh.service import ready_when, run_service, start
from visionmesh.settings import Settings
from visionmesh.topics import IMAGES
from visionmesh.worker.loop import Worker

SERVICE: Final = "feature-extractor"
PORT: Final = 8006


def serve(settings: Settings) -> int:
    logs.configure(SERVICE, settings)
    model = ModelStore(settings.models_dir).load(settings.extractor_model)
    metrics.MODEL.info({"name": model.name, "version": model.version, "family": model.family})
    extractor = Extractor(model)
    objects = S3ObjectStore.from_settings(settings)
    fetch = partial(objects.get, max_bytes=settings.upload_max_bytes)
    with (
        Database.from_settings(settings) as database,
        Isolated(
            prepare,
            deadline_seconds=settings.isolated_deadline_seconds,
            memory_bytes=settings.isolated_memory_bytes,
        ) as isolated,
    ):
        worker = Worker.from_settings(
            SERVICE,
            IMAGES,
            make_step(fetch, isolated.call, extractor),
            settings,
            store=PostgresResultStore(database),
            record_attempts=True,
        )
        checks = {"worker": ready_when(worker), "object_store": objects.ping, "database": database.ping}
        app = make_app(
            SERVICE, fetch, isolated.call, extractor, checks=checks, max_bytes=settings.upload_max_bytes
        )
        return run_service(app, worker, port=PORT, settings=settings)


if __name__ == "__main__":
    sys.exit(start(serve))
