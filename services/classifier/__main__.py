"""`python -m classifier`: one classifier, wired; `MESH_CLASSIFIER` says which."""

from __future__ import annotations

import sys
from typing import Final

import structlog

from classifier.domain import Classifier
from classifier.http import make_app
from classifier.step import make_step
from visionmesh.database import Database
from visionmesh.model_store import ModelStore
from visionmesh.observability import logs, metrics
from visionmesh.results import PostgresResultStore
from visionmesh.service import ready_when, run_service, start
from visionmesh.settings import Settings
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
    model = ModelStore(settings.models_dir).load(settings.classifier_model or service)
    metrics.MODEL.info({"name": model.name, "version": model.version, "family": model.family})
    classifier = Classifier(model)
    with Database.from_settings(settings) as database:
        worker = Worker.from_settings(
            service,
            FEATURES,
            make_step(name, classifier),
            settings,
            store=PostgresResultStore(database),
        )
        checks = {"worker": ready_when(worker), "database": database.ping}
        app = make_app(service, name, classifier, checks=checks)
        return run_service(app, worker, port=port, settings=settings)


if __name__ == "__main__":
    sys.exit(start(serve))
