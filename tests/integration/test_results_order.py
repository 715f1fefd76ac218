"""Results that are read while they are being written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from visionmesh.database import Database
from visionmesh.qr_code import QrCode
from visionmesh.results import (
    OutcomeRow,
    PostgresImages,
    PostgresResultStore,
    PredictionRow,
    QrCodesRow,
)


class Interrupted(Database):
    """Lets somebody else commit before the n-th statement of a transaction."""

    def __init__(self, dsn: str, before: int, commit: Any) -> None:
        super().__init__(dsn)
        self._before = before
        self._commit = commit

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with super().transaction() as connection:
            yield _Statements(connection, self._before, self._commit)


class _Statements:
    def __init__(self, connection: Any, before: int, commit: Any) -> None:
        self._connection, self._left, self._commit = connection, before, commit

    def execute(self, *arguments: Any) -> Any:
        if self._left == 0:
            self._commit()
        self._left -= 1
        return self._connection.execute(*arguments)


@pytest.mark.parametrize("before", range(5))
def test_who_is_done_has_its_results_whenever_it_was_committed(postgres_dsn: str, before: int) -> None:
    image_id = f"race-{uuid4()}"
    prediction = PredictionRow(image_id, "fast", "cat", 0.9, ("cat", "dog"), (0.9, 0.1), "m", "1", 0.1)
    with Database(postgres_dsn) as writing:
        store = PostgresResultStore(writing)
        store.save([OutcomeRow(image_id, "feature-extractor", "done")])
        code = QrCode(
            "a",
            b"a",
            ((0, 0), (9, 0), (9, 9), (0, 9)),
            "zxing",
            "qr",
            2,
            "whole",
            False,
            "raw",
            None,
            0.9,
            1.0,
        )
        rows = [
            prediction,
            QrCodesRow(image_id, (code,)),
            OutcomeRow(image_id, "classifier-fast", "done"),
            OutcomeRow(image_id, "qr-decoder", "done"),
        ]
        with Interrupted(postgres_dsn, before, lambda: store.save(rows)) as reading:
            found = PostgresImages(reading).results(image_id)
    assert found is not None
    done = {outcome.worker for outcome in found.outcomes}
    assert "classifier-fast" not in done or found.predictions
    assert "qr-decoder" not in done or found.codes
