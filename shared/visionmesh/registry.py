"""Where a service gets its model: a name in `models.toml`, or an MLflow address that is looked up again and
again, so that whoever moves an alias there changes the model of a service that runs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Event, Thread
from typing import Final, Protocol

import structlog

from visionmesh.errors import Unavailable
from visionmesh.mlflow import SCHEME, Address, Mlflow
from visionmesh.model_store import Kind, Model, ModelError, ModelStore
from visionmesh.observability import metrics
from visionmesh.settings import Settings

log = structlog.get_logger()

# A service that has no model yet asks sooner than one that has: most outages are a restart.
_FIRST_SECONDS: Final = 0.5

# What a new version has to have in common with the one it takes the place of: with anything else, messages
# that are under way would be refused, or answered in terms that their readers do not expect.
_COMMON: Final[dict[Kind, tuple[str, ...]]] = {
    "extractor": ("descriptor_count", "space", "input_shape"),
    "classifier": ("descriptor_count", "labels", "extractor"),
    "consensus": (),
    "locator": (),
}


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

    An MLflow address is looked up every `settings.model_refresh_seconds`. When it names another version, that
    one is downloaded, verified and tried beside the old one, which answers meanwhile, and goes on answering
    when the new one is at fault or MLflow is away. A service may start while MLflow is away: it has no model
    then, and is not ready, until MLflow is back.

    kind: what the model has to be, if that matters. shadow: whether another model answers, so that this one
    is not what the metrics name.

    Raises `ModelError` for a model of models.toml that can't be loaded or is of another kind, and for an
    address that can't be understood.
    """
    if not address.startswith(SCHEME):
        model = load(settings, address, kind=kind)
        if not shadow:
            _announce(model)
        metrics.from_zero(metrics.MODEL_REFUSALS, [model.name])
        yield FixedSource(model)
        return
    source = _Registered(Mlflow.from_settings(settings), Address.parse(address), kind, shadow)
    # Once before anything else, so that a service which finds its model is ready from its first moment.
    source.look()
    stop = Event()
    Thread(
        target=source.follow, args=(stop, settings.model_refresh_seconds), name="registry", daemon=True
    ).start()
    try:
        yield source
    finally:
        # Not waited for: it may hang in a download.
        stop.set()


def load(settings: Settings, address: str, *, kind: Kind | None = None) -> Model:
    """The model that `address` names now, for a process that does not stay to follow it.

    Raises `ModelError` as `open_source` does, and also for a version that is at fault; `Unavailable` when
    MLflow is away or has no such model.
    """
    if address.startswith(SCHEME):
        mlflow, asked = Mlflow.from_settings(settings), Address.parse(address)
        model = mlflow.load(asked.name, mlflow.resolve(asked))
    else:
        model = ModelStore(settings.models_dir, settings.built_models_dir).load(address)
    _check_kind(model, kind)
    return model


def check_address(settings: Settings, address: str, kind: Kind) -> None:
    """Raises `ModelError` for an address that `open_source` can make nothing of: a name that models.toml does
    not have or that is of another kind, and one of MLflow without a server to ask. Loads nothing.
    """
    if address.startswith(SCHEME):
        Mlflow.from_settings(settings)
        Address.parse(address)
        return
    names = ModelStore(settings.models_dir, settings.built_models_dir).names(kind)
    if address not in names:
        known = ", ".join(names) or "none"
        raise ModelError(f"There is no {kind} {address!r} in models.toml; there are {known}.")


@contextmanager
def open_shadow(settings: Settings, kind: Kind) -> Iterator[ModelSource | None]:
    """The source of the model in shadow, None when `settings.shadow_model` names none.

    One that can't be opened is logged, and the service starts without it: its own model is well.
    """
    with ExitStack() as stack:
        source = None
        if settings.shadow_model is not None:
            try:
                opened = open_source(settings, settings.shadow_model, kind=kind, shadow=True)
                source = stack.enter_context(opened)
            except ModelError as error:
                log.error("no_shadow", model=settings.shadow_model, reason=str(error))
        yield source


class FixedSource:
    """A model that stays the same for as long as the process lives."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def current(self) -> Model:
        return self._model


class _Registered:
    """The model that an address of MLflow names. `look` and `follow` belong to one thread at a time."""

    def __init__(self, mlflow: Mlflow, address: Address, kind: Kind | None, shadow: bool) -> None:
        self._mlflow = mlflow
        self._address = address
        self._kind = kind
        self._shadow = shadow
        self._model: Model | None = None
        # Why there is no model, and what was last said in the log of an outage.
        self._reason = f"{address} was not looked up yet"
        self._away: str | None = None
        # The version that was found to be at fault, so that it is not downloaded every time, and its fault.
        self._refused: str | None = None
        self._fault = ""
        metrics.from_zero(metrics.MODEL_REFUSALS, [address.name])

    def current(self) -> Model:
        model = self._model
        if model is None:
            raise Unavailable("model_store", self._reason)
        return model

    def follow(self, stop: Event, refresh_seconds: float) -> None:
        """Looks again and again until `stop`."""
        pause = min(_FIRST_SECONDS, refresh_seconds)
        while not stop.wait(random.uniform(pause / 2, pause) if self._model is None else refresh_seconds):
            try:
                self.look()
            # A bug must not end the only thread that would ever find another version.
            except Exception:
                log.exception("registry_failed", model=str(self._address))
            pause = min(2 * pause, refresh_seconds)

    def look(self) -> None:
        """Takes the version that the address names now, if it is another one and nothing is wrong with it."""
        try:
            version = self._mlflow.resolve(self._address)
            if self._model is not None and version == self._model.version:
                self._refused = None
            elif version == self._refused:
                # An outage may have been the reason meanwhile.
                self._reason = self._fault
            else:
                self._take(version)
        except Unavailable as error:
            self._reason = error.reason
            if self._away != error.reason:
                self._away = error.reason
                log.warning("registry_unavailable", model=str(self._address), reason=error.reason)
            return
        if self._away is not None:
            self._away = None
            log.info("registry_available", model=str(self._address))

    def _take(self, version: str) -> None:
        old = self._model
        try:
            new = self._mlflow.load(self._address.name, version)
            _check_kind(new, self._kind)
            if old is not None:
                _check_successor(old, new)
        except ModelError as error:
            self._refused = version
            self._reason = self._fault = str(error)
            metrics.MODEL_REFUSALS.labels(self._address.name).inc()
            log.error("model_refused", model=str(self._address), version=version, reason=str(error))
            return
        self._refused = None
        self._model = new
        if not self._shadow:
            _announce(new)
        log.info(
            "model_taken", model=str(self._address), version=version, instead_of=old.version if old else None
        )


def _announce(model: Model) -> None:
    metrics.announce_model(model.name, model.version, model.family)


def _check_kind(model: Model, kind: Kind | None) -> None:
    if kind is not None and model.kind != kind:
        raise ModelError(f"{model.address} is of kind {model.kind}, and one of kind {kind} is needed here.")


def _check_successor(old: Model, new: Model) -> None:
    _check_kind(new, old.kind)
    for name in _COMMON[old.kind]:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            raise ModelError(
                f"{new.address} can't take the place of {old.address} in a service that runs: its {name} is "
                f"{after}, not {before}. A service that is started again takes it."
            )
