"""`mesh models`: those of models.toml, those of the registry, and which one a service is to use."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from visionmesh.cli.build import build
from visionmesh.cli.compare import compare
from visionmesh.cli.console import fail, print_table
from visionmesh.cli.export_qrdet import export_qrdet

if TYPE_CHECKING:
    from visionmesh.mlflow import Mlflow

app = typer.Typer(help="Models: list, show, promote, compare, build, export.", no_args_is_help=True)
app.command("compare")(compare)
app.command("build")(build)
app.command("export-qrdet")(export_qrdet)

_CHAMPION: Final = "champion"

AsJson = Annotated[bool, typer.Option("--json", help="One JSON line per model.")]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the models of models.toml, those built here and, where MLFLOW_TRACKING_URI is set, MLflow's."""
    from rich.table import Column, Table

    with _sentences():
        rows = _deployed()
    registered, fault = _from_mlflow(_registered)
    rows += registered
    if as_json:
        sys.stdout.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table = Table(
            Column("model", no_wrap=True), "version", "kind", "family", "top-1", Column("from", no_wrap=True)
        )
        for row in rows:
            top1 = "" if row["top1"] is None else f"{row['top1']:.2%}"
            table.add_row(row["model"], row["version"], row["kind"], row["family"], top1, row["from"])
        print_table(table)
    if fault is not None:
        fail(fault)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A name of models.toml, or of a registered model.")],
    as_json: AsJson = False,
) -> None:
    """Print all that is known of a model: its table, and its versions in MLflow."""
    with _sentences():
        table = _tables().get(name)
    versions, fault = _from_mlflow(lambda mlflow: _versions(mlflow, name))
    if table is None and fault is not None:
        fail(fault)
    if table is None and not versions:
        fail(f"There is no model {name!r}; `mesh models list` shows those there are.")
    if as_json:
        sys.stdout.write(json.dumps({"model": name, "table": table, "versions": versions}) + "\n")
    else:
        _print(table or {}, versions)
    if fault is not None:
        fail(fault)


@app.command("promote")
def promote(
    name: Annotated[str, typer.Argument(help="A registered model.")],
    version: Annotated[str, typer.Argument(help="One of its versions.")],
    alias: Annotated[str, typer.Option(help="What services name in models:/NAME@ALIAS.")] = _CHAMPION,
) -> None:
    """Let an alias name this version: services that use the alias take it within seconds."""
    with _sentences():
        mlflow = _mlflow()
        if mlflow is None:
            fail("Set MLFLOW_TRACKING_URI to the address of the MLflow server.")
        mlflow.promote(name, version, alias)
    sys.stdout.write(f"models:/{name}@{alias} is version {version} from now on\n")


@contextmanager
def _sentences() -> Iterator[None]:
    """What is wrong with the folder or with MLflow in one sentence: nothing that `mesh up` would mend."""
    from visionmesh.errors import Unavailable
    from visionmesh.model_store import ModelError

    try:
        yield
    except Unavailable as error:
        fail(error.reason)
    except ModelError as error:
        fail(str(error))


def _from_mlflow(
    ask: Callable[[Mlflow], list[dict[str, Any]]],
) -> tuple[list[dict[str, Any]], str | None]:
    """What MLflow has, nothing where none is used; and why that is not known, when it can't be asked."""
    from visionmesh.errors import Unavailable
    from visionmesh.model_store import ModelError

    try:
        mlflow = _mlflow()
        return ([] if mlflow is None else ask(mlflow)), None
    except Unavailable as error:
        return [], error.reason
    except ModelError as error:
        return [], str(error)


def _tables() -> Mapping[str, Mapping[str, Any]]:
    from visionmesh.model_store import ModelStore
    from visionmesh.settings import get_settings

    settings = get_settings()
    store = ModelStore(settings.models_dir, settings.built_models_dir)
    return {name: store.describe(name) for name in store.names()}


def _shipped() -> tuple[str, ...]:
    """The names of the models that came with the mesh."""
    from visionmesh.model_store import ModelStore
    from visionmesh.settings import get_settings

    return ModelStore(get_settings().models_dir).names()


def _mlflow() -> Mlflow | None:
    from visionmesh.mlflow import Mlflow
    from visionmesh.settings import get_settings

    settings = get_settings()
    return None if settings.mlflow_tracking_uri is None else Mlflow.from_settings(settings)


def _deployed() -> list[dict[str, Any]]:
    shipped = _shipped()
    return [
        {
            "model": name,
            "version": str(table.get("version", "")),
            "kind": table.get("kind", ""),
            "family": table.get("family", ""),
            "top1": table.get("metrics", {}).get("top1"),
            "from": "models.toml" if name in shipped else "built here",
        }
        for name, table in _tables().items()
    ]


def _registered(mlflow: Mlflow) -> list[dict[str, Any]]:
    """One row per version; what it is stands in its own table, which only who loads it reads."""
    return [
        {
            "model": name,
            "version": version.version,
            "kind": "",
            "family": "",
            "top1": None,
            "from": " ".join(["MLflow", *(f"@{alias}" for alias in version.aliases)]),
        }
        for name in mlflow.models()
        for version in mlflow.versions(name)
    ]


def _versions(mlflow: Mlflow, name: str) -> list[dict[str, Any]]:
    if name not in mlflow.models():
        return []
    return [
        {
            "version": each.version,
            "aliases": list(each.aliases),
            "created_at": each.created_at.isoformat(timespec="seconds"),
            "run_id": each.run_id,
        }
        for each in mlflow.versions(name)
    ]


def _print(table: Mapping[str, Any], versions: Iterable[Mapping[str, Any]]) -> None:
    for key, value in table.items():
        for label, each in _lines(key, value):
            sys.stdout.write(f"{label}: {each}\n")
    for version in versions:
        aliases = " ".join(f"@{alias}" for alias in version["aliases"]) or "without an alias"
        run = f", run {version['run_id']}" if version["run_id"] else ""
        sys.stdout.write(
            f"version {version['version']} in MLflow: {aliases}, of {version['created_at']}{run}\n"
        )


def _lines(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        inner = cast(dict[str, Any], value)
        return [(f"{key}.{name}", str(each)) for name, each in inner.items()]
    return [(key, ", ".join(map(str, value)) if isinstance(value, list) else str(value))]
