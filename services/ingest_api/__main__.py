"""`python -m ingest_api`: the service on port 8001."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Final

import structlog
from fastapi import FastAPI

from ingest_api.annotated import Draw, annotated_routes
from ingest_api.deletion import deletion_routes
from ingest_api.http import result_routes, upload_routes
from ingest_api.intake import Intake
from ingest_api.outbox import Announcer, Outbox
from ingest_api.search import search_routes
from ingest_api.searchable_pdf import searchable_pdf
from ingest_api.sensors import sensor_routes
from ingest_api.text import MakePdf, text_routes
from visionmesh.cache import Cache, NoCache, open_cache
from visionmesh.consensus import Fitted
from visionmesh.database import Database
from visionmesh.deletion import Deletions, Eraser, PostgresDeletions, RetentionKeeper
from visionmesh.drawing import draw_on
from visionmesh.errors import Unavailable
from visionmesh.group_lag import GroupLags, LagExporter
from visionmesh.http import create_app
from visionmesh.isolated import Isolated
from visionmesh.kafka import KafkaPublisher
from visionmesh.model_store import ModelError, ModelStore
from visionmesh.object_store import ObjectStore, S3ObjectStore
from visionmesh.observability import metrics
from visionmesh.observability.health import Check
from visionmesh.observability.logs import configure
from visionmesh.results import Images, PostgresImages
from visionmesh.sensors import PostgresSensors, Sensors
from visionmesh.service import run_service, start
from visionmesh.settings import Settings
from visionmesh.topics import classifiers, readers
from visionmesh.turn import Turn

log = structlog.get_logger()

SERVICE: Final = "ingest-api"
PORT: Final = 8001

# Within the shutdown budget of the process: what is not acknowledged by then stays in the outbox.
_OUTBOX_STOP_SECONDS: Final = 3.0

# From the end of a record's wait in the producer to its report, at the latest.
_REPORT_SECONDS: Final = 10.0

# Laying text over 200 pages takes a tenth of this.
_PDF_SECONDS: Final = 60.0


def compose(
    settings: Settings,
    images: Images,
    store: ObjectStore,
    publisher: Announcer,
    draw: Draw,
    make_pdf: MakePdf,
    database_check: Check,
    fitted: Fitted | None = None,
    sensors: Sensors | None = None,
    deletions: Deletions | None = None,
    cache: Cache | None = None,
) -> FastAPI:
    """The application over its clients. fitted: the weights of the consensus. sensors, deletions: None for no
    routes. cache: where feature-extractor keeps what it knows of pictures.
    """
    metrics.from_zero(metrics.UPLOADS, metrics.UPLOAD_OUTCOMES)
    overdue_seconds = settings.kafka_message_timeout_ms / 1000 + _REPORT_SECONDS
    outbox = Outbox(images, store, publisher, overdue_seconds=overdue_seconds)
    eraser = None if deletions is None else Eraser(deletions, store, cache or NoCache())
    days = settings.image_retention_days or None
    keeper = None if eraser is None else RetentionKeeper(eraser, retention_days=days)
    intake = Intake(
        images, store, outbox, bucket=settings.s3_upload_bucket, max_bytes=settings.upload_max_bytes
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # A store that is away is none of the start's business: `/ready` and uploads make up for it.
        with suppress(Unavailable):
            store.ensure_buckets()
        outbox.start()
        if keeper is not None:
            keeper.start()
        yield
        if keeper is not None:
            keeper.stop()
        intake.close()
        outbox.stop(_OUTBOX_STOP_SECONDS)

    app = create_app(
        SERVICE,
        checks={
            "database": database_check,
            # A fresh server has no buckets yet.
            "object_store": store.ensure_buckets,
            # Only told: uploads are taken while Kafka is away, so no balancer should turn them away.
            "outbox": outbox.status,
        },
        # An upload is counted while it streams.
        max_body_bytes=None,
        lifespan=lifespan,
    )
    app.include_router(upload_routes(intake, max_files=settings.upload_max_files))
    awaited = classifiers(settings.extra_classifiers)
    app.include_router(result_routes(images, store, classifiers=awaited, fitted=fitted))
    app.include_router(search_routes(images))
    # One for both: the container has room for one child that runs into its ceiling.
    turn = Turn()
    app.include_router(text_routes(images, store, make_pdf, turn, max_bytes=settings.upload_max_bytes))
    app.include_router(annotated_routes(images, store, draw, turn, max_bytes=settings.upload_max_bytes))
    if eraser is not None:
        app.include_router(deletion_routes(eraser))
    if sensors is not None:
        app.include_router(sensor_routes(sensors))
    return app


def fitted_consensus(settings: Settings) -> Fitted | None:
    """The weights of the consensus in `models.toml`, None when there are none that can be used.

    Uploads and results do not depend on them, so that a damaged table stops neither.
    """
    try:
        models = ModelStore(settings.models_dir, settings.built_models_dir)
        for name in models.names("consensus"):
            return Fitted.from_table(models.describe(name))
    except (ModelError, ValueError) as error:
        log.warning("consensus_not_calibrated", error=str(error))
    return None


def serve(settings: Settings) -> int:
    configure(SERVICE, settings)
    fitted = fitted_consensus(settings)
    # Their children are started by the first drawing and the first PDF that somebody asks for.
    isolated = Isolated(
        draw_on,
        deadline_seconds=settings.isolated_deadline_seconds,
        memory_bytes=settings.isolated_memory_bytes,
    )
    pdfs = Isolated(
        searchable_pdf, deadline_seconds=_PDF_SECONDS, memory_bytes=settings.isolated_memory_bytes
    )
    groups = [(topic.name, group) for topic, group in readers(settings.extra_classifiers)]
    with (
        Database.from_settings(settings) as database,
        closing(isolated),
        closing(pdfs),
        LagExporter(lambda: GroupLags(settings, groups)),
    ):
        app = compose(
            settings,
            PostgresImages(database),
            S3ObjectStore.from_settings(settings),
            KafkaPublisher(settings),
            isolated.call,
            pdfs.call,
            database.ping,
            fitted,
            PostgresSensors(database),
            PostgresDeletions(database),
            open_cache(settings),
        )
        return run_service(app, None, port=PORT, settings=settings)


if __name__ == "__main__":
    sys.exit(start(serve))
