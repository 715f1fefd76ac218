"""What a model in shadow finds, stored beside the answers in a real Postgres."""

from __future__ import annotations

import time
from uuid import uuid4

import psycopg

from visionmesh.database import Database
from visionmesh.registry import FixedSource
from visionmesh.results import PredictionRow, ShadowPredictionRow
from visionmesh.settings import Settings
from visionmesh.shadow import open_store

DEADLINE = 30.0


def test_an_answer_does_not_wait_for_a_locked_table_of_shadows(postgres_dsn: str) -> None:
    settings = Settings(postgres_dsn=postgres_dsn, postgres_pool_size=1)  # type: ignore[arg-type]
    image_id = str(uuid4())
    answer = (image_id, "fast", "cat", 0.75, ("cat", "dog"), (0.75, 0.25), "model", "1", 2.0)
    asked = "SELECT count(*) FROM {} WHERE image_id = %s"
    with (
        psycopg.connect(postgres_dsn) as other,
        psycopg.connect(postgres_dsn, autocommit=True) as reader,
        Database.from_settings(settings) as database,
        open_store(settings, database, "classifier-fast", FixedSource(None)) as store,  # type: ignore[arg-type]
    ):

        def stored(table: str) -> object:
            return reader.execute(asked.format(table), (image_id,)).fetchone()  # type: ignore[arg-type]

        other.execute("LOCK TABLE shadow_predictions IN EXCLUSIVE MODE")
        for _ in range(2):
            store.save([PredictionRow(*answer), ShadowPredictionRow(*answer)])
        assert stored("predictions") == (1,)
        assert stored("shadow_predictions") == (0,)
        other.rollback()
        deadline = time.monotonic() + DEADLINE
        while stored("shadow_predictions") != (1,):
            assert time.monotonic() < deadline
            time.sleep(0.01)
