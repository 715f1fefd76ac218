"""What a training run tells MLflow: parameters, metrics, artifacts, and the models as registered versions.

Nothing at all unless `MLFLOW_TRACKING_URI` is set.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from training.tables import toml

EXPERIMENT: Final = "visionmesh"

# What services name in a `models:/` address, and what stands ready to become that.
CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"

_MAX_PARAMETER_CHARACTERS: Final = 6000


def record(
    tables: Mapping[str, Mapping[str, Any]],
    folder: Path,
    *,
    parameters: Mapping[str, Any],
    artifacts: Sequence[Path] = (),
) -> None:
    """One run, with a registered version for each table that has a file.

    tables: those of models.toml, by name. folder: where their files lie. artifacts: files and folders that
    are kept with the run, for example the report and its plots.

    A version is a folder with the file and its table as `model.toml`; that is what services load. Each gets
    the alias `challenger`, and `champion` as well when the model has none yet: whoever promotes a model is a
    person.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return
    # Here, and not above: training works without it, and importing it takes seconds.
    import mlflow

    client = mlflow.MlflowClient()
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run() as run:
        mlflow.log_params({key: str(value)[:_MAX_PARAMETER_CHARACTERS] for key, value in parameters.items()})
        mlflow.log_metrics(dict(_metrics(tables)))
        for path in artifacts:
            (mlflow.log_artifacts if path.is_dir() else mlflow.log_artifact)(
                str(path), *([path.name] if path.is_dir() else [])
            )
        for name, table in tables.items():
            with tempfile.TemporaryDirectory() as version:
                _write_version(name, table, folder, Path(version))
                mlflow.log_artifacts(version, f"models/{name}")
            if "file" in table:
                _register(client, name, f"{run.info.artifact_uri}/models/{name}", run.info.run_id)


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
