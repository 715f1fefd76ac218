"""The models that are deployed: `models.toml`, checksums, and ONNX Runtime sessions.

`models.toml` holds one table per model, named as the model is asked for. Nothing is loaded whose bytes
are not those the table was written for.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnxruntime

TABLE: Final = "models.toml"

Kind = Literal["extractor", "classifier", "consensus", "locator"]


class ModelError(Exception):
    """A model can't be loaded: the deployment is wrong, no message is at fault. Says what to do."""


@dataclass(frozen=True)
class Model:
    """A model in memory, ready to run.

    family: what was learned, for example `random forest`.
    input, output: names of the graph's input and outputs.
    input_shape: of the graph's input; None where any number is taken, as for the batch.
    labels: of a classifier, in the order of its probabilities; empty for an extractor.
    descriptor_count: how many floats an extractor gives or a classifier takes.
    space: the coordinates that an extractor's descriptors are in, named as the `name@version` that gave
        them first: variants of one net share a space.
    extractor: the space of the descriptors that a classifier was trained on.
    sha256: of the file, in hex.
    """

    name: str
    version: str
    kind: Kind
    family: str
    input: str
    output: tuple[str, ...]
    input_shape: tuple[int | None, ...]
    labels: tuple[str, ...]
    descriptor_count: int
    space: str
    extractor: str | None
    sha256: str
    session: onnxruntime.InferenceSession

    @property
    def address(self) -> str:
        """`name@version`, as messages and rows speak of the model."""
        return f"{self.name}@{self.version}"

    def run(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs, in the order of `output`, for a batch."""
        return [np.asarray(found) for found in self.session.run(list(self.output), {self.input: values})]


class ModelStore:
    """The models of one folder, and of a second one where models are that were built on this machine.

    built_models_dir: may be missing, or hold no table.

    Raises `ModelError` when the first folder has no table, when one can't be read, and when both have a model
    of one name that is not the same.
    """

    def __init__(self, models_dir: Path, built_models_dir: Path | None = None) -> None:
        self._path = models_dir / TABLE
        self._tables = _read(self._path)
        self._folders = dict.fromkeys(self._tables, models_dir)
        if built_models_dir is None:
            return
        built = built_models_dir / TABLE
        for name, table in _read(built, needed=False).items():
            if self._tables.setdefault(name, table) != table:
                raise ModelError(
                    f"Both {self._path} and {built} have a model {name!r}, and not the same one; "
                    "remove one of the tables."
                )
            self._folders.setdefault(name, built_models_dir)

    def names(self, kind: Kind | None = None) -> tuple[str, ...]:
        """The names of all models, or of those of one kind, in the order of the tables."""
        return tuple(name for name, table in self._tables.items() if kind in (None, table.get("kind")))

    def describe(self, name: str) -> Mapping[str, Any]:
        """Everything the table says about a model, metrics included. Raises `ModelError`."""
        try:
            return self._tables[name]
        except KeyError:
            known = ", ".join(self._tables) or "none"
            raise ModelError(f"{self._path} has no model {name!r}; it has {known}.") from None

    def load(self, name: str) -> Model:
        """Verifies, loads and tries a model, as `load_model` does; raises `ModelError` also for an unknown
        name and a missing file.
        """
        table = self.describe(name)
        folder = self._folders[name]
        if "file" not in table:
            raise ModelError(f"Model {name!r} in {folder / TABLE} has no 'file'.")
        if table.get("kind") == "locator":
            raise ModelError(f"Model {name!r} is a locator of QR codes; the qr-decoder alone runs it.")
        return load_model(name, table, _content(folder / table["file"]), source=str(folder / table["file"]))


def load_model(
    name: str, table: Mapping[str, Any], content: bytes, *, source: str, version: str | None = None
) -> Model:
    """A model by its table and the bytes of its file.

    source: where the bytes are from, for error messages. version: the number under which a registry has the
    model, which has numbers of its own; the table's when None.

    Raises `ModelError` for bytes the table was not written for, a table without an entry that is needed, a
    graph that does not have the input and outputs that the table promises, and one whose answer to a first
    row is not what the table promises.
    """
    try:
        _verify(content, table["sha256"], source)
        session = _session(content)
        _check_graph(name, session, str(table["input"]), table["output"])
        model = Model(
            name=name,
            version=str(table["version"]) if version is None else version,
            kind=table["kind"],
            family=str(table["family"]),
            input=str(table["input"]),
            output=tuple(table["output"]),
            input_shape=tuple(
                size if isinstance(size, int) else None for size in session.get_inputs()[0].shape
            ),
            labels=tuple(table.get("labels", ())),
            descriptor_count=int(table["descriptor_count"]),
            space=space_of(name, table),
            extractor=table.get("extractor"),
            sha256=table["sha256"],
            session=session,
        )
        _try(model)
    except KeyError as missing:
        raise ModelError(f"The table of model {name!r} has no {missing}.") from None
    except (TypeError, ValueError) as error:
        raise ModelError(f"The table of model {name!r} is not understood: {error}") from error
    return model


def space_of(name: str, table: Mapping[str, Any]) -> str:
    """The space of an extractor's descriptors, by its table: its own unless the table names another."""
    return str(table.get("space", f"{name}@{table['version']}"))


def _read(path: Path, *, needed: bool = True) -> dict[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if not needed:
            return {}
        raise ModelError(f"There is no {path}; set MESH_MODELS_DIR to the folder that has it.") from None
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid TOML: {error}") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"The model file {path} is missing; fetch it again or run `make train`.") from None
    except OSError as error:
        raise ModelError(f"The model file {path} can't be read: {error.strerror}.") from error


def _verify(content: bytes, sha256: str, source: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ModelError(
            f"The model file {source} has sha256 {found}, and its table says {sha256}: the file is damaged "
            "or of another version; fetch it again or run `make train`."
        )


def _session(content: bytes) -> onnxruntime.InferenceSession:
    """One thread per session: replicas are how work is spread, and a container has half a core."""
    # Here, and not above: ingest-api reads tables, and its image has no ONNX Runtime.
    import onnxruntime

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


def _check_graph(
    name: str, session: onnxruntime.InferenceSession, promised: str, outputs: Sequence[str]
) -> None:
    inputs = {node.name: node.shape for node in session.get_inputs()}
    found = {node.name for node in session.get_outputs()}
    if list(inputs) != [promised] or not found.issuperset(outputs):
        raise ModelError(
            f"Model {name!r} takes {list(inputs)} and gives {sorted(found)}; its table says it takes "
            f"{promised} and gives {', '.join(outputs)}."
        )
    shape = inputs[promised]
    if not shape or isinstance(shape[0], int):
        raise ModelError(f"Model {name!r} takes {shape}; the first dimension has to be a batch of any size.")


def _try(model: Model) -> None:
    """One row through the model: what it can't answer at all is found before the first message is."""
    rows: list[tuple[int, ...]]
    if model.kind == "extractor":
        shape = [1, *(size or 1 for size in model.input_shape[1:])]
        values, rows = np.zeros(shape, np.uint8), [(1, model.descriptor_count)]
    else:
        values, rows = np.zeros((1, model.descriptor_count), np.float32), [(1,), (1, len(model.labels))]
    try:
        found = model.run(values)
    # ONNX Runtime's exceptions share no base class of their own.
    except Exception as error:
        raise ModelError(f"Model {model.name!r} does not take {list(values.shape)}: {error}") from error
    shapes = [output.shape for output in found]
    if shapes != rows:
        raise ModelError(
            f"Model {model.name!r} gives {shapes} for one row; by its table it should be {rows} "
            f"({model.descriptor_count} descriptors, {len(model.labels)} labels)."
        )
