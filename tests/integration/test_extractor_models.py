"""The extractor with models of other sizes and with one in shadow, on a real decoder and a real Postgres."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from uuid import uuid4

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

import small_models
from feature_extractor.domain import prepare_one
from feature_extractor.http import make_app
from feature_extractor.models import Prepare
from feature_extractor.step import make_step
from visionmesh.cache import Cache, NoCache, ValkeyCache
from visionmesh.contracts import ImageFeatures, ImageUploaded
from visionmesh.database import Database
from visionmesh.isolated import Isolated
from visionmesh.registry import open_shadow, open_source
from visionmesh.results import PostgresResultStore
from visionmesh.settings import Settings
from visionmesh.stack import Stack
from visionmesh.worker.step import Done

MEBIBYTE = 1024 * 1024
WIDTH = 50


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (30, 40, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480)).save(file, "JPEG")
    return file.getvalue()


OBJECTS = {f"raw-images/{number}.jpg": jpeg(number) for number in range(3)}


@pytest.fixture(scope="module")
def prepare() -> Iterator[Prepare]:
    with Isolated(prepare_one, deadline_seconds=10, memory_bytes=512 * MEBIBYTE) as isolated:

        def call(data: bytes, side: int) -> NDArray[np.uint8]:
            return isolated.call((data, side))

        yield call


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    large = small_models.extractor(side=224, width=WIDTH)
    return small_models.write_models(tmp_path_factory.mktemp("built"), {"large": large})


@pytest.fixture
def database(postgres_dsn: str) -> Iterator[Database]:
    settings = Settings(postgres_dsn=postgres_dsn)  # type: ignore[arg-type]
    with Database.from_settings(settings) as database:
        yield database


@pytest.fixture(params=["no cache", pytest.param("valkey", marks=pytest.mark.servers)])
def cache(request: pytest.FixtureRequest) -> Cache:
    if request.param == "no cache":
        return NoCache()
    stack: Stack = request.getfixturevalue("session_stack")
    return ValkeyCache(f"{stack.endpoints.cache_url}?socket_timeout=10&socket_connect_timeout=10")


@pytest.mark.parametrize(
    ("shown", "shadow", "width"), [("large", "extractor", WIDTH), ("extractor", "large", 20)]
)
def test_a_shadow_of_another_size_is_stored_apart_and_never_published(
    prepare: Prepare, built: Path, database: Database, cache: Cache, shown: str, shadow: str, width: int
) -> None:
    settings = Settings(built_models_dir=built, extractor_model=shown, shadow_model=shadow)
    messages = [ImageUploaded(str(uuid4()), path) for path in OBJECTS]
    store = PostgresResultStore(database)
    with (
        open_source(settings, settings.extractor_model, kind="extractor") as source,
        open_shadow(settings, "extractor") as second,
    ):
        assert second is not None
        step = make_step(OBJECTS.__getitem__, prepare, source, cache, shadow=second)
        for _ in range(2):
            for verdict in step(messages):
                assert isinstance(verdict, Done)
                store.save(verdict.rows)
                (published,) = (cast(ImageFeatures, one.value) for one in verdict.messages)
                assert published.descriptor_count == len(published.descriptors) == width
                assert published.model == source.current().space
        addresses = source.current().address, second.current().address
    with database.transaction() as connection:
        for table, address in zip(("image_features", "shadow_features"), addresses, strict=True):
            counted = f"SELECT count(*), count(DISTINCT image_id), min(model), max(model) FROM {table}"
            ids = [message.image_id for message in messages]
            found = connection.execute(f"{counted} WHERE image_id = ANY(%s)", [ids]).fetchone()  # type: ignore[arg-type]
            assert found == (len(OBJECTS), len(OBJECTS), address, address)


def test_extract_takes_the_size_of_the_model(prepare: Prepare, built: Path) -> None:
    settings = Settings(built_models_dir=built, extractor_model="large")
    with open_source(settings, settings.extractor_model, kind="extractor") as source:
        app = make_app(
            "feature-extractor",
            OBJECTS.__getitem__,
            prepare,
            source,
            NoCache(),
            checks={},
            max_bytes=MEBIBYTE,
        )
        with TestClient(app) as client:
            answer = client.post("/extract", content=OBJECTS["raw-images/0.jpg"])
    assert answer.status_code == 200, answer.text
    assert answer.json()["descriptor_count"] == len(answer.json()["descriptors"]) == WIDTH
