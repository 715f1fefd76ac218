"""`POST /predict`: 20 descriptors -> a label, at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Final

from fastapi import FastAPI
from pydantic import BaseModel, Field, FiniteFloat, Strict

from classifier.domain import Classifier, validate
from visionmesh.http import create_app, errors
from visionmesh.observability.health import Check
from visionmesh.registry import ModelSource

_DESCRIPTORS: Final = "What the feature extractor found in a picture, in its order."
_COUNT: Final = "How many they are; checked where it is given."
_MODEL: Final = "Which extractor they are of, as `name@version`; checked where it is given."


class PredictRequest(BaseModel):
    """What the extractor answered and published; its other fields are ignored."""

    # Strict: true and "0.5" would be taken for numbers.
    descriptors: list[Annotated[FiniteFloat, Strict()]] = Field(description=_DESCRIPTORS)
    descriptor_count: Annotated[int, Strict()] | None = Field(default=None, description=_COUNT)
    model: str | None = Field(default=None, description=_MODEL)


class PredictResponse(BaseModel):
    """confidence: the probability of `label`. latency_ms: time in the model."""

    label: str
    confidence: float
    probabilities: dict[str, float]
    classifier: str
    model: str
    model_version: str
    latency_ms: float


def make_app(service: str, name: str, source: ModelSource, *, checks: Mapping[str, Check]) -> FastAPI:
    """The application of the classifier that users know as `name`."""
    app = create_app(service, checks=checks)

    @app.post("/predict", responses=errors(400, 413, 422, 503))
    def predict(request: PredictRequest) -> PredictResponse:
        """The label of a picture by its descriptors."""
        model = source.current()
        values = validate(model, request.descriptors, count=request.descriptor_count, space=request.model)
        started = time.perf_counter()
        (prediction,) = Classifier(model).classify(values[None, :])
        latency_ms = (time.perf_counter() - started) * 1000
        return PredictResponse(
            label=prediction.label,
            confidence=prediction.confidence,
            probabilities=dict(zip(model.labels, prediction.probabilities, strict=True)),
            classifier=name,
            model=model.name,
            model_version=model.version,
            latency_ms=round(latency_ms, 3),
        )

    return app
