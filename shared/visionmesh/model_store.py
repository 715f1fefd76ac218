"""The models that are deployed: `models.toml`, checksums, and ONNX Runtime sessions.

`models.toml` holds one table per model, named as the model is asked for. Nothing is loaded whose bytes
are not those the table was written for.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

TABLE: Final = "models.toml"

Kind = Literal["extractor", "classifier"]


class ModelError(Exception):
    """A model can't be loaded: the deployment is wrong, no message is at fault. Says what to do."""


@dataclass(frozen=True)
class Model:
    """A model in memory, ready to run.

    family: what was learned, for example `random forest`.
    input, output: names of the graph's input and outputs.
    labels: of a classifier, in the order of its probabilities; empty for an extractor.
    descriptor_count: how many floats an extractor gives or a classifier takes.
    extractor: `name@version` of the extractor whose descriptors a classifier was trained on.
    """

    name: str
    version: str
    kind: Kind
    family: str
    input: str
    output: tuple[str, ...]
    labels: tuple[str, ...]
    descriptor_count: int
    extractor: str | None
    session: onnxruntime.InferenceSession

    @property
    def address(self) -> str:
        """`name@version`, as messages and rows speak of the model."""
        return f"{self.name}@{self.version}"

    def run(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs, in the order of `output`, for a batch."""
        return [np.asarray(found) for found in self.session.run(list(self.output), {self.input: values})]


class ModelStore:
    """The models of one folder.

    Raises `ModelError` when the folder has no readable table.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tables = _read(directory / TABLE)

    def names(self, kind: Kind | None = None) -> tuple[str, ...]:
        """The names of all models, or of those of one kind, in the order of the table."""
        return tuple(name for name, table in self._tables.items() if kind in (None, table.get("kind")))

    def describe(self, name: str) -> Mapping[str, Any]:
        """Everything the table says about a model, metrics included. Raises `ModelError`."""
        try:
            return self._tables[name]
        except KeyError:
            known = ", ".join(self._tables) or "none"
            raise ModelError(f"{self._directory / TABLE} has no model {name!r}; it has {known}.") from None

    def load(self, name: str) -> Model:
        """Verifies and loads a model.

        Raises `ModelError` for an unknown name, a missing or altered file, and a graph that does not have
        the input and outputs that the table promises.
        """
        table = self.describe(name)
        try:
            model = Model(
                name=name,
                version=str(table["version"]),
                kind=table["kind"],
                family=str(table["family"]),
                input=str(table["input"]),
                output=tuple(table["output"]),
                labels=tuple(table.get("labels", ())),
                descriptor_count=int(table["descriptor_count"]),
                extractor=table.get("extractor"),
                session=_session(_verified(self._directory / table["file"], table["sha256"])),
            )
        except KeyError as missing:
            raise ModelError(f"Model {name!r} in {self._directory / TABLE} has no {missing}.") from None
        _check_graph(model)
        return model


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ModelError(f"There is no {path}; set MESH_MODELS_DIR to the folder that has it.") from None
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{path} is not valid TOML: {error}") from error


def _verified(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"The model file {path} is missing; fetch it again or run `make train`.") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ModelError(
            f"The model file {path} has sha256 {found}, and {TABLE} says {sha256}: the file is damaged or of "
            "another version; fetch it again or run `make train`."
        )
    return content


def _session(content: bytes) -> onnxruntime.InferenceSession:
    """One thread per session: replicas are how work is spread, and a container has half a core."""
    # Since 1.31 the wheels report to their maker unless told not to; a self-hosted mesh tells nobody.
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # The arena keeps the memory of the largest batch it ever saw.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions share no base class of their own.
    except Exception as error:
        raise ModelError(f"ONNX Runtime {onnxruntime.__version__} can't load the model: {error}") from error


def _check_graph(model: Model) -> None:
    inputs = [node.name for node in model.session.get_inputs()]
    outputs = {node.name for node in model.session.get_outputs()}
    if inputs != [model.input] or not outputs.issuperset(model.output):
        raise ModelError(
            f"Model {model.name!r} takes {inputs} and gives {sorted(outputs)}; {TABLE} says it takes "
            f"{model.input} and gives {', '.join(model.output)}."
        )
