"""Where a service gets its model: a name in `models.toml`, or an MLflow address that may change meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from visionmesh.model_store import Kind, Model, ModelError, ModelStore
from visionmesh.observability import metrics
from visionmesh.settings import Settings

SCHEME: Final = "models:/"


class ModelSource(Protocol):
    """Gives the model that is to be used now."""

    def current(self) -> Model:
        """The model; asked once per batch, so that one model answers all of a batch. Cheap, from any thread.

        Raises `Unavailable("model_store", …)` as long as none could be had from the registry.
        """


@contextmanager
def open_source(
    settings: Settings, address: str, *, kind: Kind | None = None, shadow: bool = False
) -> Iterator[ModelSource]:
    """The source of the model that `address` names: a name in models.toml, `models:/name@alias` or
    `models:/name/3`.

    kind: what the model has to be, if that matters. shadow: whether another model answers, so that this one
    is not what the metrics name.

    Raises `ModelError` for a model of models.toml that can't be loaded or is of another kind, and for an
    address that can't be understood.
    """
    if address.startswith(SCHEME):
        raise ModelError(f"{address}: MLflow addresses are not understood yet; name a model of models.toml.")
    model = ModelStore(settings.models_dir, settings.built_models_dir).load(address)
    if kind is not None and model.kind != kind:
        raise ModelError(f"{model.address} is of kind {model.kind}, and one of kind {kind} is needed here.")
    if not shadow:
        metrics.MODEL.info({"name": model.name, "version": model.version, "family": model.family})
    yield _Fixed(model)


class _Fixed:
    """A model that stays the same for as long as the process lives."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def current(self) -> Model:
        return self._model
