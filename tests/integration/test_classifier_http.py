from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

import small_models
from classifier.http import make_app
from visionmesh.errors import Unavailable
from visionmesh.model_store import Model, ModelStore, load_model
from visionmesh.registry import FixedSource
from visionmesh.settings import ROOT

MEBIBYTE = 1024 * 1024
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module", params=["fast", "balanced", "accurate"])
def client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    name = request.param
    source = FixedSource(ModelStore(ROOT / "models").load(f"classifier-{name}"))
    app = make_app(f"classifier-{name}", name, source, checks={})
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_predict(client: TestClient) -> None:
    response = client.post("/predict", json={"descriptors": [0.1, 0.2, 0.3, -0.4] * 5})
    assert response.status_code == 200, response.text
    body = response.json()
    assert set(body) == {
        "label", "confidence", "probabilities", "classifier", "model", "model_version", "latency_ms",
    }  # fmt: skip
    assert len(body["probabilities"]) == 10
    assert sum(body["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert body["probabilities"][body["label"]] == body["confidence"] == max(body["probabilities"].values())
    assert body["latency_ms"] >= 0
    health = client.get("/health").json()
    assert health["service"] == f"classifier-{body['classifier']}"


def test_takes_what_the_extractor_says(client: TestClient) -> None:
    message = {"image_id": "test-123", "descriptors": [0.0] * 20, "descriptor_count": 20}
    assert client.post("/predict", json=message).status_code == 200


def test_descriptors_that_say_whose_they_are(client: TestClient) -> None:
    space = ModelStore(ROOT / "models").load("extractor").space
    message = {"image_id": "test-123", "descriptors": [0.0] * 20, "descriptor_count": 20, "model": space}
    assert client.post("/predict", json=message).status_code == 200


@pytest.mark.parametrize("width", [10, 50])
def test_a_model_of_another_width(width: int) -> None:
    model = load_model("wide", *small_models.classifier(width=width), source="the test")
    with TestClient(make_app("classifier-wide", "wide", FixedSource(model), checks={})) as client:
        assert client.post("/predict", json={"descriptors": [0.5] * width}).json()["label"] == "cat"
        refused = client.post("/predict", json={"descriptors": [0.5] * 20})
        assert (refused.status_code, refused.json()["code"]) == (422, "wrong_descriptor_count")


class Registered:
    """A source whose model comes and changes."""

    def __init__(self) -> None:
        self.model: Model | None = None

    def current(self) -> Model:
        if self.model is None:
            raise Unavailable("model_store", "MLflow is away")
        return self.model


def test_the_model_of_this_moment_answers() -> None:
    source = Registered()
    checks = {"model": lambda: source.current().address}
    with TestClient(make_app("classifier-fast", "fast", source, checks=checks)) as client:
        away = client.post("/predict", json={"descriptors": [0.5] * 20})
        assert (away.status_code, away.json()["code"]) == (503, "model_store_unavailable")
        assert "retry-after" in away.headers
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert "MLflow is away" in ready.text
        for version, label in (("1", "cat"), ("2", "dog")):
            table, content = small_models.classifier(favourite=label)
            source.model = load_model("fast", table, content, source="the test", version=version)
            found = client.post("/predict", json={"descriptors": [0.5] * 20}).json()
            assert (found["label"], found["model_version"]) == (label, version)


def test_whole_numbers_are_numbers(client: TestClient) -> None:
    assert client.post("/predict", json={"descriptors": [0, 1, -1, 2] * 5}).status_code == 200


def body_of(*numbers: str) -> bytes:
    return f'{{"descriptors": [{", ".join(numbers)}]}}'.encode()


def with_fields(number: str, count: int, fields: str) -> bytes:
    return f'{{"descriptors": [{", ".join([number] * count)}], {fields}}}'.encode()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid_request"),
        (b"this is a text file", 400, "invalid_json"),
        (b'{"descriptors": [0.1, 0.2', 400, "invalid_json"),
        # The seed's own line, which leaves the other numbers to the reader.
        (b'{"descriptors": [0.1, 0.2, 0.3, ..., 0.2]}', 400, "invalid_json"),
        (b"{}", 422, "invalid_request"),
        (b'{"descriptors": "0.1"}', 422, "invalid_request"),
        (b'{"descriptors": [[0.1]]}', 422, "invalid_request"),
        (body_of(), 422, "wrong_descriptor_count"),
        (body_of(*["0.1"] * 19), 422, "wrong_descriptor_count"),
        (body_of(*["0.1"] * 21), 422, "wrong_descriptor_count"),
        (body_of(*["0.1"] * 19, "NaN"), 422, "not_finite"),
        (body_of(*["0.1"] * 19, "Infinity"), 422, "not_finite"),
        (body_of(*["0.1"] * 19, "1e39"), 422, "not_finite"),
        (body_of(*["0.1"] * 19, "true"), 422, "invalid_request"),
        (body_of(*["0.1"] * 19, '"0.5"'), 422, "invalid_request"),
        (body_of(*["0.1"] * 19, "null"), 422, "invalid_request"),
        (body_of(*["0.1"] * 50), 422, "wrong_descriptor_count"),
        (with_fields("0.1", 20, '"descriptor_count": 19'), 422, "wrong_descriptor_count"),
        (with_fields("0.1", 20, '"descriptor_count": "20"'), 422, "invalid_request"),
        (with_fields("0.1", 20, '"model": "other@1.0.0"'), 422, "wrong_extractor"),
        (with_fields("0.1", 20, '"model": 7'), 422, "invalid_request"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"1" * (100 * MEBIBYTE), 413, "body_too_large"),
    ],
)
def test_bad_bodies(client: TestClient, body: bytes, status: int, code: str) -> None:
    response: Any = client.post("/predict", content=body, headers=JSON)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "code"}
    assert response.json()["code"] == code
    assert response.json()["error"]
