"""`python -m classifier`: one classifier, wired; `MESH_CLASSIFIER` says which."""

from __future__ import annotations

import sys
from typing import Final

import structlog

from classifier.domain import MICRO_BATCH
from classifier.http import make_app
from classifier.step import Shadow, make_step
from visionmesh.database import Database
from visionmesh.observability import logs
from visionmesh.registry import open_shadow, open_source
from visionmesh.service import ready_when, run_service, start
from visionmesh.settings import Settings
from visionmesh.shadow import open_store
from visionmesh.topics import FEATURES
from visionmesh.worker.loop import Worker

PORTS: Final = {"fast": 8003, "accurate": 8004, "balanced": 8005}

log = structlog.get_logger()


def serve(settings: Settings) -> int:
    name = settings.classifier
    service = f"classifier-{name}"
    logs.configure(service, settings)
    port = PORTS.get(name) if settings.http_port is None else settings.http_port
    if port is None:
        log.error(
            "no_port", classifier=name, hint="set MESH_HTTP_PORT; only fast, balanced and accurate have one"
        )
        return 1
    # One run of the model costs hardly more for hundreds of rows than for one.
    chosen = "worker_max_batch" in settings.model_fields_set
    with (
        open_source(settings, settings.classifier_model or service, kind="classifier") as source,
        open_shadow(settings, "classifier") as shadow,
        Database.from_settings(settings) as database,
        open_store(settings, database, service, shadow) as store,
    ):
        worker = Worker.from_settings(
            service,
            FEATURES,
            make_step(name, source, shadow=None if shadow is None else Shadow(name, shadow)),
            settings,
            store=store,
            max_batch=settings.worker_max_batch if chosen else MICRO_BATCH,
        )
        checks = {
            "worker": ready_when(worker),
            "database": database.ping,
            "model": lambda: source.current().address,
        }
        app = make_app(service, name, source, checks=checks)
        return run_service(app, worker, port=port, settings=settings)


if __name__ == "__main__":
    sys.exit(start(serve))
