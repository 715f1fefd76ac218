"""`python -m sensor_sink`: the sink, wired."""

from __future__ import annotations

import sys
from typing import Final

from sensor_sink.retention import Keeper
from sensor_sink.step import make_step
from visionmesh.database import Database
from visionmesh.http import create_app
from visionmesh.observability import logs
from visionmesh.results import PostgresResultStore
from visionmesh.sensors import PostgresSensors
from visionmesh.service import ready_when, run_service, start
from visionmesh.settings import Settings
from visionmesh.topics import SENSORS
from visionmesh.worker.loop import Worker

SERVICE: Final = "sensor-sink"
PORT: Final = 8007

# A second of a device at full rate. A row is small, and one statement writes hundreds as fast as one.
_BATCH: Final = 512


def serve(settings: Settings) -> int:
    logs.configure(SERVICE, settings)
    chosen = "worker_max_batch" in settings.model_fields_set
    with Database.from_settings(settings) as database:
        keeper = Keeper(PostgresSensors(database), retention_days=settings.sensor_retention_days or None)
        worker = Worker.from_settings(
            SERVICE,
            SENSORS,
            make_step(),
            settings,
            store=PostgresResultStore(database),
            max_batch=settings.worker_max_batch if chosen else _BATCH,
        )
        app = create_app(SERVICE, checks={"worker": ready_when(worker), "database": database.ping})
        keeper.start()
        try:
            return run_service(app, worker, port=PORT, settings=settings)
        finally:
            keeper.stop()


if __name__ == "__main__":
    sys.exit(start(serve))
