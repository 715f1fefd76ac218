"""What a training run tells MLflow: parameters, metrics, artifacts, and the models as registered versions.

Nothing at all unless `MLFLOW_TRACKING_URI` is set. What MLflow could not be told stays in `unrecorded.json`
beside the models, and `python -m training.tracking` tells it later.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from training.tables import toml

EXPERIMENT: Final = "visionmesh"
UNRECORDED: Final = "unrecorded.json"

# What services name in a `models:/` address, and what stands ready to become that.
CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"

_SERVER: Final = "MLFLOW_TRACKING_URI"
_RETRIES: Final = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"

_MAX_PARAMETER_CHARACTERS: Final = 6000

_PASSWORD: Final = re.compile(r"(?<=//)[^/\s]*@")


class TrackingError(Exception):
    """MLflow can't be told of the models; one line that says why and what to do."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.tracking", description="Tells MLflow of models that it was not told of."
    )
    parser.add_argument("--models", type=Path, default=Path(__file__).parents[1], help="folder of the models")
    folder = parser.parse_args().models
    if not os.environ.get(_SERVER):
        raise SystemExit(f"Set {_SERVER} to the address of the MLflow server.")
    if not (folder / UNRECORDED).exists():
        raise SystemExit(f"There is no {folder / UNRECORDED}: no training left models that MLflow has not.")
    try:
        _record_left(folder)
    except TrackingError as error:
        raise SystemExit(str(error)) from error


def check() -> None:
    """Asks MLflow for something, if one is named: that it can't be had is better known before hours of
    training. Raises `TrackingError`.
    """
    if os.environ.get(_SERVER):
        hint = f"Start it, or unset {_SERVER}."
        with (
            _mlflow("Nothing was trained, because MLflow can't be told of it", hint) as mlflow,
            _asked_once(),
        ):
            mlflow.MlflowClient().get_experiment_by_name(EXPERIMENT)


def record(
    names: Sequence[str],
    folder: Path,
    *,
    parameters: Mapping[str, Any],
    artifacts: Sequence[str] = (),
) -> None:
    """One run, with a registered version for each model that has a file.

    names: of the tables in the models.toml of `folder`. artifacts: files and folders in it that are kept with
    the run, for example the report and its plots.

    A version is a folder with the file and its table as `model.toml`; that is what services load. Each gets
    the alias `challenger`, and `champion` as well when the model has none yet: whoever promotes a model is a
    person.

    Raises `TrackingError` when MLflow does not take all of it, after the minutes for which its client tries.
    """
    left = folder / UNRECORDED
    if not os.environ.get(_SERVER):
        # The models that it speaks of are no more.
        left.unlink(missing_ok=True)
        return
    said = {key: str(value)[:_MAX_PARAMETER_CHARACTERS] for key, value in parameters.items()}
    content = {"models": list(names), "parameters": said, "artifacts": list(artifacts)}
    left.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _record_left(folder)


def _record_left(folder: Path) -> None:
    left = json.loads((folder / UNRECORDED).read_text(encoding="utf-8"))
    found = tomllib.loads((folder / "models.toml").read_text(encoding="utf-8"))
    tables = {name: found[name] for name in left["models"]}
    again = shlex.join([sys.executable, "-m", "training.tracking", "--models", str(folder.resolve())])
    hint = f"This tells it later: PYTHONPATH={shlex.quote(str(Path(__file__).parents[1]))} {again}"
    with _mlflow(f"The models are written to {folder}, and MLflow does not have them", hint) as mlflow:
        _record(mlflow, tables, folder, left["parameters"], left["artifacts"])
    (folder / UNRECORDED).unlink()


def _record(
    mlflow: Any,
    tables: Mapping[str, Mapping[str, Any]],
    folder: Path,
    parameters: Mapping[str, str],
    artifacts: Sequence[str],
) -> None:
    client = mlflow.MlflowClient()
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run() as run:
        mlflow.log_params(parameters)
        mlflow.log_metrics(dict(_metrics(tables)))
        for artifact in artifacts:
            if (folder / artifact).is_dir():
                mlflow.log_artifacts(str(folder / artifact), artifact)
            else:
                mlflow.log_artifact(str(folder / artifact))
        for name, table in tables.items():
            with tempfile.TemporaryDirectory() as version:
                _write_version(name, table, folder, Path(version))
                mlflow.log_artifacts(version, f"models/{name}")
            if "file" in table:
                _register(client, name, f"{run.info.artifact_uri}/models/{name}", run.info.run_id)


@contextmanager
def _mlflow(fault: str, hint: str) -> Iterator[Any]:
    """The library. Whatever keeps it from its server is a `TrackingError` with `fault`, reason and `hint`."""
    try:
        # Here, and not above: training works without it, and importing it takes seconds.
        import mlflow
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise TrackingError(f"{fault}: {error}. {hint}") from error
    try:
        yield mlflow
    # What goes wrong between two machines is an OSError, those of `requests` included.
    except (MlflowException, OSError) as error:
        reason = _PASSWORD.sub("", " ".join(str(error).split()))
        raise TrackingError(f"{fault}: {reason}. {hint}") from error


@contextmanager
def _asked_once() -> Iterator[None]:
    """Inside, MLflow's client gives up at once: it goes on for four minutes otherwise."""
    usual = os.environ.get(_RETRIES)
    os.environ[_RETRIES] = "0"
    try:
        yield
    finally:
        del os.environ[_RETRIES]
        if usual is not None:
            os.environ[_RETRIES] = usual


def _write_version(name: str, table: Mapping[str, Any], folder: Path, version: Path) -> None:
    written = dict(table)
    if table["kind"] == "extractor":
        # In the registry its version is another number, and classifiers know the space by this one.
        written.setdefault("space", f"{name}@{table['version']}")
    (version / "model.toml").write_text(toml(written), encoding="utf-8")
    if "file" in table:
        shutil.copy(folder / table["file"], version)


def _metrics(tables: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for name, table in tables.items():
        for metric, value in table.get("metrics", {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield f"{name}.{metric}", float(value)


def _register(client: Any, name: str, source: str, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        aliases = client.create_registered_model(name).aliases
    version = client.create_model_version(name, source, run_id=run_id).version
    client.set_registered_model_alias(name, CHALLENGER, version)
    if CHAMPION not in aliases:
        client.set_registered_model_alias(name, CHAMPION, version)


if __name__ == "__main__":
    main()
