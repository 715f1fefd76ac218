"""Every service against its own OpenAPI: no input makes a server error or an answer that is not told of.

Each runs on a real server and on doubles, ingest-api on the stack's Postgres; once with keys and all that is
behind it, and once without either. MESH_FUZZ_EXAMPLES: how often each operation is called beside the calls at
the edges of its schema.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import numpy as np
import psycopg
import pytest
import schemathesis
import segno
import uvicorn
from fastapi import FastAPI
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import classifier.http
import edge_publisher.http
import feature_extractor.http
import ocr_worker.http
import qr_decoder.http
from edge_doubles import PlayedDevice, forwarding
from edge_publisher.live import Live
from edge_publisher.publisher import KafkaSink
from feature_extractor.domain import prepare_one
from ingest_api.__main__ import compose
from ingest_api.searchable_pdf import searchable_pdf
from ocr_double import CHOICE, page, read_by_double
from ocr_worker.http import Terms
from ocr_worker.load import Tally
from ocr_worker.reading import DOMAIN as OCR_DOMAIN
from ocr_worker.reading import Reader as OcrReader
from openapi_fuzz import fuzzed
from qr_decoder.reader import Reader as QrReader
from qr_decoder.reading import DOMAIN as QR_DOMAIN
from qr_decoder.reading import read_one
from visionmesh.access import Guard
from visionmesh.api_keys import Scope, new_key, write_keys
from visionmesh.database import Database
from visionmesh.deletion import Deletions, PostgresDeletions
from visionmesh.drawing import draw_on
from visionmesh.http import create_app
from visionmesh.http_connection import BoundedConnection
from visionmesh.isolated import Isolated
from visionmesh.model_store import Model, ModelStore
from visionmesh.observability import tracing
from visionmesh.ocr_document import OcrDocument, PageSize, TextLine
from visionmesh.qr_code import Place, QrCode
from visionmesh.registry import FixedSource
from visionmesh.results import (
    FeaturesRow,
    ImageRow,
    Images,
    OcrDocumentRow,
    OutcomeRow,
    PostgresImages,
    PostgresResultStore,
    PredictionRow,
    QrCodesRow,
    ResultStore,
)
from visionmesh.sensors import PostgresSensors, SensorReadingRow, Sensors
from visionmesh.settings import ROOT, Settings
from visionmesh.testing.cache import MemoryCache
from visionmesh.testing.deletion import MemoryDeletions
from visionmesh.testing.faults import Faults
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.testing.object_store import MemoryObjectStore
from visionmesh.testing.results import MemoryImages, MemoryResultStore

EXAMPLES = int(os.environ.get("MESH_FUZZ_EXAMPLES", 5))

MEBIBYTE = 1024 * 1024
MAX_BYTES = MEBIBYTE
PATIENCE_SECONDS = 60.0


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def code() -> bytes:
    file = io.BytesIO()
    segno.make("https://example.org/fuzz", error="m").save(file, kind="png", scale=3)
    return file.getvalue()


JPEG = encoded(Image.linear_gradient("L").resize((64, 48)).convert("RGB"), "JPEG")
FILES = (JPEG, JPEG[:-20], code(), page("hola"), b"", b"%PDF-1.7\n", bytes(MAX_BYTES + 1))

# What a service takes as a file: now and then one that it can work on.
schemathesis.openapi.format("binary", st.sampled_from(FILES) | st.binary(max_size=64))
schemathesis.openapi.media_type("application/octet-stream", st.sampled_from(FILES) | st.binary(max_size=64))


class Server(Faults):
    """Any server behind a service, that can be away."""

    def asked(self) -> None:
        self._answer()


@dataclass
class Api:
    """A service. known: by parameter, values that mean something to it. behind: servers that can be away."""

    app: FastAPI
    known: Mapping[str, Sequence[str]] = field(default_factory=dict)
    behind: Sequence[Faults] = ()


@contextmanager
def classifier_api(_: pytest.FixtureRequest) -> Iterator[Api]:
    source = RegisteredModel("classifier-fast")
    yield Api(
        classifier.http.make_app("classifier-fast", "fast", source, checks={"model": source.asked}),
        behind=[source],
    )


class RegisteredModel(Server):
    """A model of a registry."""

    def __init__(self, name: str) -> None:
        super().__init__("model_store")
        self._source = FixedSource(ModelStore(ROOT / "models").load(name))

    def current(self) -> Model:
        self.asked()
        return self._source.current()


@contextmanager
def extractor_api(_: pytest.FixtureRequest) -> Iterator[Api]:
    store = MemoryObjectStore()
    store.put("raw-images/known.jpg", [JPEG], media_type="image/jpeg")
    source = RegisteredModel("extractor")
    with Isolated(prepare_one, deadline_seconds=10, memory_bytes=512 * MEBIBYTE) as isolated:

        def fetch(minio_path: str) -> bytes:
            return store.get(minio_path, max_bytes=MAX_BYTES)

        def prepare(data: bytes, side: int) -> NDArray[np.uint8]:
            return isolated.call((data, side))

        app = feature_extractor.http.make_app(
            "feature-extractor",
            fetch,
            prepare,
            source,
            MemoryCache(),
            checks={"object_store": store.ping},
            max_bytes=MAX_BYTES,
        )
        yield Api(app, {"minio_path": ["raw-images/known.jpg"], "image_id": ["known"]}, [store, source])


@contextmanager
def qr_api(_: pytest.FixtureRequest) -> Iterator[Api]:
    with Isolated(
        read_one, deadline_seconds=30, memory_bytes=1024 * MEBIBYTE, preload=(QR_DOMAIN,)
    ) as isolated:
        read = QrReader(isolated, Path("/nowhere"), profile="light", budget_ms=500)
        app = qr_decoder.http.make_app(
            "qr-decoder", read, own_profile="light", checks={}, max_bytes=MAX_BYTES, max_budget_ms=500
        )
        yield Api(app, {"profile": ["light", "cascade", "whole,zbar"]})


@contextmanager
def ocr_api(_: pytest.FixtureRequest) -> Iterator[Api]:
    results, intake = MemoryResultStore(), Server("object_store")
    images = MemoryImages(results)
    fill(images, results)
    images.add_image(ImageRow("waiting", "raw-images/x", "aa", 1, "image/png", tasks=("ocr",)))

    def submit(data: bytes, _: tracing.Trace | None) -> str:
        intake.asked()
        return "waiting"

    with Isolated(
        read_by_double, deadline_seconds=10, memory_bytes=1024 * MEBIBYTE, preload=(OCR_DOMAIN,)
    ) as isolated:
        app = ocr_worker.http.make_app(
            "ocr-worker",
            Tally(OcrReader(isolated, CHOICE, processes=1, max_pages=5)),
            submit=submit,
            images=images,
            lag=lambda: 0,
            terms=Terms(1, deadline_seconds=30, waiting_limit=8, queue_limit=100, max_bytes=MAX_BYTES),
            checks={"database": images.pending},
        )
        yield Api(app, {"task_id": ["known", "failed", "waiting"]}, [results, images, intake])


@contextmanager
def edge_api(request: pytest.FixtureRequest) -> Iterator[Api]:
    path: Path = request.getfixturevalue("tmp_path")
    device = Sensor()
    with forwarding(path / "queue", [KafkaSink(MemoryBroker().publisher())]) as forward:
        app = edge_publisher.http.make_app(
            "edge-publisher", "pi-1", lambda: [device], forward, Live(), max_concurrent=10
        )
        yield Api(app, {"sensor": ["tfluna"]}, [device.link])


class Sensor(PlayedDevice):
    """A sensor that can be unplugged."""

    def __init__(self) -> None:
        super().__init__()
        self.link = Server("tfluna")
        self.reads = self._measured

    def _measured(self) -> dict[str, float]:
        self.link.asked()
        return {"distance_cm": 1.5}


@contextmanager
def sink_api(_: pytest.FixtureRequest) -> Iterator[Api]:
    worker = Server("worker")
    yield Api(create_app("sensor-sink", checks={"worker": worker.asked}), behind=[worker])


@contextmanager
def ingest_on_postgres(request: pytest.FixtureRequest) -> Iterator[Api]:
    dsn: str = request.getfixturevalue("postgres_dsn")

    def empty() -> None:
        with psycopg.connect(dsn) as connection:
            tables = connection.execute(
                "SELECT tablename FROM pg_tables"
                " WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
            ).fetchall()
            connection.execute(f"TRUNCATE {', '.join(name for (name,) in tables)}")

    empty()
    with Database(dsn) as database:
        results = PostgresResultStore(database)
        yield ingest(
            PostgresImages(database), results, PostgresSensors(database), PostgresDeletions(database), []
        )
    empty()


@contextmanager
def ingest_on_doubles(_: pytest.FixtureRequest) -> Iterator[Api]:
    results = MemoryResultStore()
    images = MemoryImages(results)
    deletions = MemoryDeletions(images)
    yield ingest(images, results, results.sensors, deletions, [results, images, results.sensors, deletions])


def ingest(
    images: Images,
    results: ResultStore,
    sensors: Sensors,
    deletions: Deletions,
    behind: Sequence[Faults],
) -> Api:
    broker, store = MemoryBroker(), MemoryObjectStore()
    store.put("raw-images/known.png", [page("word")], media_type="image/png")
    fill(images, results)
    app = compose(
        Settings(upload_max_bytes=MAX_BYTES, upload_max_files=3),
        images,
        store,
        broker.publisher(),
        draw_on,
        searchable_pdf,
        images.pending,
        None,
        sensors,
        deletions,
        MemoryCache(),
    )
    known = {
        "image_id": ["known", "plain", "failed"],
        "device_id": ["pi-1"],
        "sensor": ["tfluna"],
        "resolution": ["1s", "10m"],
        "q": ["word", '"word" or -other'],
        "from": ["2026-11-21T13:59:00Z"],
        "to": ["2026-11-21T14:01:00Z"],
    }
    return Api(app, known, [*behind, store])


def fill(images: Images, results: ResultStore) -> None:
    """An image of which everything is known, one that went through no upload, and one that failed."""
    images.add_image(ImageRow("known", "raw-images/known.png", "ab" * 32, 1, "image/png", 300, 120))
    images.add_image(ImageRow("failed", "raw-images/gone.png", "cd" * 32, 1, "image/png"))
    corners = ((0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 9.0))
    read = QrCode(
        "one", b"one", corners, "zxing", "qr", 2, "whole", False, "raw", None, 0.9, 1.0, 1, Place(0, 2, 7)
    )
    line = TextLine("word", corners, 0.9, 1)
    document = OcrDocument("word", (line,), (PageSize(300, 120),), "es+en", "double", {"detect": 0.2})
    labels = ("cat", "dog")
    at = datetime(2026, 11, 21, 14, tzinfo=UTC)
    values = {"distance_cm": 1.5, "valid": True}
    for image_id in ("known", "plain"):
        results.save(
            [
                FeaturesRow(image_id, (0.5, 1.5), "extractor@1"),
                PredictionRow(image_id, "fast", "cat", 0.6, labels, (0.6, 0.4), "forest", "1", 0.25),
                QrCodesRow(image_id, (read, replace(read, sequence=None))),
                OcrDocumentRow(image_id, document),
                *(OutcomeRow(image_id, worker, "done") for worker in ("qr-decoder", "ocr-worker")),
            ]
        )
    results.save(
        [
            OutcomeRow("failed", "qr-decoder", "failed", "corrupt_image: the picture ends too early"),
            OutcomeRow("failed", "ocr-worker", "failed", "corrupt_image: the picture ends too early"),
            *(SensorReadingRow("pi-1", "tfluna", n, at + timedelta(seconds=n), values) for n in range(3)),
        ]
    )


Serve = Callable[[pytest.FixtureRequest], AbstractContextManager[Api]]

WHOLE: dict[str, Serve] = {
    "ingest-api": ingest_on_postgres,
    "feature-extractor": extractor_api,
    "classifier-fast": classifier_api,
    "qr-decoder": qr_api,
    "ocr-worker": ocr_api,
    "edge-publisher": edge_api,
    "sensor-sink": sink_api,
}
DOUBLES = WHOLE | {"ingest-api": ingest_on_doubles}


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The address of a real server of `app`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=BoundedConnection, log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "service",
    [pytest.param(name, marks=pytest.mark.servers) if name == "ingest-api" else name for name in WHOLE],
)
def test_no_input_is_answered_by_what_the_service_does_not_tell_of(
    service: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    text, key = new_key("fuzzer", list(Scope), per_minute=1_000_000)
    file = tmp_path / "api-keys.json"
    write_keys(file, [key])
    with WHOLE[service](request) as api:
        api.app.state.guard = Guard.from_settings(Settings(require_api_keys=True, api_keys_file=file))
        with running(api.app) as url:
            found = fuzzed(url, examples=EXAMPLES, known=api.known, key=text)
    print(f"{service}: {found}")
    assert not found.failures, found.told()
    # What sensor-sink has, it tells without a key to who asks from inside.
    assert found.statuses[401] > 0 or service == "sensor-sink", "nothing was refused"
    assert "HTTPValidationError" not in str(api.app.openapi()), "errors have another shape than FastAPI's"


@pytest.mark.parametrize("service", [name for name in DOUBLES if name != "qr-decoder"])
def test_servers_that_are_away_are_told_as_unavailable(service: str, request: pytest.FixtureRequest) -> None:
    with DOUBLES[service](request) as api, running(api.app) as url:
        for server in api.behind:
            server.available = False
        found = fuzzed(url, examples=EXAMPLES, known=api.known, away=True)
    print(f"{service}: {found}")
    assert not found.failures, found.told()
    assert found.statuses[503] > 0
