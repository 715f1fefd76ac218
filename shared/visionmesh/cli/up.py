"""`mesh up` and `mesh demo`: the servers, the services, and a first few pictures."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from visionmesh.cli.console import DIRECTORY, Directory, api_key_headers, complain, fail, print_table
from visionmesh.settings import ROOT

if TYPE_CHECKING:
    from visionmesh.mesh import Mesh, Service
    from visionmesh.model_store import Kind

SAMPLES: Final = ROOT / "samples"

_READY_SECONDS: Final = 120.0
_RESULT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.005


class StackName(StrEnum):
    """Which servers stand behind the services."""

    embedded = "embedded"
    native = "native"


class PortsName(StrEnum):
    """Whether the first replica of a service owns its published port."""

    seed = "seed"
    free = "free"


Stack = Annotated[StackName, typer.Option(help="embedded: Python packages only; native: the real servers.")]
Scale = Annotated[list[str], typer.Option(help="Replicas of a service, e.g. classifier-fast=3; repeatable.")]
Classifiers = Annotated[
    list[str],
    typer.Option(
        "--classifier",
        metavar="NAME=MODEL[:PORT]",
        help="A further classifier, or another model for fast, balanced or accurate; repeatable. MODEL: a "
        "name in models.toml, or an MLflow address.",
    ),
]
Shadows = Annotated[
    list[str],
    typer.Option(
        "--shadow",
        metavar="SERVICE=MODEL",
        help="A model in shadow of a classifier or of feature-extractor, whose answers are stored apart; "
        "repeatable.",
    ),
]
PortsOption = Annotated[PortsName, typer.Option(help="free: none of the published ports, for a second mesh.")]


@dataclass(frozen=True)
class Plan:
    """What a command line asks for. camera_uploads: whether the simulated camera's pictures are uploaded."""

    stack: StackName
    scale: list[str]
    classifiers: list[str]
    shadows: list[str]
    directory: Path
    ports: PortsName
    camera_uploads: bool = False


def up(
    stack: Stack = StackName.embedded,
    scale: Scale = [],  # noqa: B006 - how typer wants the default of a repeatable option
    classifiers: Classifiers = [],  # noqa: B006
    shadows: Shadows = [],  # noqa: B006
    directory: Directory = DIRECTORY,
    ports: PortsOption = PortsName.seed,
) -> None:
    """Start the servers and every service; Ctrl-C stops them all."""
    plan = Plan(stack, scale, classifiers, shadows, directory, ports)
    with _until_signalled() as stopped, _mesh(plan, stopped) as mesh:
        if not stopped():
            _print_addresses(mesh)
            mesh.keep(stopped)
        complain("stopping")


def demo(
    once: Annotated[bool, typer.Option("--once", help="End when every sample has its results.")] = False,
    stack: Stack = StackName.embedded,
    scale: Scale = [],  # noqa: B006 - as above
    classifiers: Classifiers = [],  # noqa: B006
    shadows: Shadows = [],  # noqa: B006
    directory: Directory = DIRECTORY,
    ports: PortsOption = PortsName.seed,
) -> None:
    """Start the mesh, classify the sample pictures, read their QR codes, read its sensors, and stay up."""
    samples = sorted(path for path in SAMPLES.iterdir() if path.suffix in {".jpg", ".png"})
    plan = Plan(stack, scale, classifiers, shadows, directory, ports, camera_uploads=not once)
    with _until_signalled() as stopped, _mesh(plan, stopped) as mesh:
        complete = _show_samples(mesh, samples, stopped)
        _show_sensors(mesh, stopped)
        if not once and not stopped():
            _print_addresses(mesh)
            mesh.keep(stopped)
        complain("stopping")
    if once and not complete:
        fail("Not every picture got all its results.")


@contextmanager
def _until_signalled() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM came; a second signal changes nothing."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _mesh(plan: Plan, stopped: Callable[[], bool]) -> Iterator[Mesh]:
    """Everything up and ready; everything down at the end."""
    from visionmesh import database, kafka, object_store
    from visionmesh.access import Guard
    from visionmesh.api_keys import KeysError
    from visionmesh.mesh import HOST, Mesh, MeshError, extra_classifiers, hold, parse_scale, parse_services
    from visionmesh.model_store import ModelError
    from visionmesh.settings import get_settings
    from visionmesh.stack import StackError, open_stack
    from visionmesh.topics import TOPICS, dead_letter_topics

    directory = plan.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        services = parse_services(plan.classifiers, plan.shadows)
        # Before each service refuses to start by itself, again and again. They listen on loopback.
        Guard.from_settings(get_settings().model_copy(update={"http_host": HOST}))
        _check_models(services)
        _check_spaces(services)
        replicas = parse_scale(plan.scale, services)
        extra = extra_classifiers(services)
        hold(directory)
        if plan.stack is StackName.native:
            from visionmesh.stack.prepare import prepare_native

            prepare_native(complain)
        # Made before the servers start: a port that is taken is known at once.
        mesh = Mesh(directory, services=services, scale=replicas, ports=plan.ports.value, report=complain)
        complain(f"starting the {plan.stack.value} servers")
        topics = [*(topic.name for topic in TOPICS), *dead_letter_topics(extra)]
        with open_stack(plan.stack.value, directory / plan.stack.value, topics=topics) as servers:
            environment = servers.endpoints.environment()
            if extra:
                environment = {**environment, "MESH_EXTRA_CLASSIFIERS": json.dumps(extra)}
            if plan.camera_uploads and "EDGE_UPLOAD_URL" not in os.environ:
                environment = {**environment, "EDGE_UPLOAD_URL": mesh.url_of("ingest-api")}
            # What this process does below, it does with the settings its children get.
            os.environ.update(environment)
            get_settings.cache_clear()
            settings = get_settings()
            database.migrate(settings.postgres_dsn.get_secret_value())
            if plan.stack is StackName.native:
                kafka.create_topics(settings)
            object_store.prepare(object_store.S3ObjectStore.from_settings(settings), settings)
            complain("starting the services")
            with mesh.started(environment):
                mesh.wait_until_ready(_READY_SECONDS, stopped)
                yield mesh
    except (KeysError, MeshError, ModelError, StackError) as error:
        fail(str(error))


def _check_models(services: Sequence[Service]) -> None:
    """Says which models of the command line can't be had, before each service says so in a log of its own.

    Raises `MeshError` for one that is to answer; without its shadow a service works.
    """
    from visionmesh.mesh import MeshError

    for service in services:
        kind: Kind = "classifier" if service.package == "classifier" else "extractor"
        if fault := _fault_of(service.environment.get("MESH_SHADOW_MODEL"), kind):
            complain(f"{service.name} works without a shadow: {fault}")
        if fault := _fault_of(service.environment.get("MESH_CLASSIFIER_MODEL"), kind):
            raise MeshError(f"{service.name} has no model: {fault}")


def _check_spaces(services: Sequence[Service]) -> None:
    """Raises `MeshError` for a classifier that would refuse whatever the extractor gives, as far as
    models.toml tells: what MLflow has is known when it is loaded.
    """
    from visionmesh.mesh import MeshError
    from visionmesh.model_store import ModelStore, space_of
    from visionmesh.settings import get_settings

    settings = get_settings()
    models = ModelStore(settings.models_dir, settings.built_models_dir)
    if settings.extractor_model not in models.names("extractor"):
        return
    space = space_of(settings.extractor_model, models.describe(settings.extractor_model))
    for service in services:
        model = service.environment.get("MESH_CLASSIFIER_MODEL", settings.classifier_model or service.name)
        if service.package != "classifier" or model not in models.names("classifier"):
            continue
        trained = models.describe(model).get("extractor", space)
        if trained != space:
            raise MeshError(
                f"{service.name} would refuse every picture: {model} was trained on descriptors of "
                f"{trained}, and {settings.extractor_model} gives those of {space}. Name a model that was "
                f"trained on these: --classifier {service.environment['MESH_CLASSIFIER']}=MODEL."
            )


def _fault_of(address: str | None, kind: Kind) -> str | None:
    from visionmesh.model_store import ModelError
    from visionmesh.registry import check_address
    from visionmesh.settings import get_settings

    try:
        if address is not None:
            check_address(get_settings(), address, kind)
    except ModelError as error:
        return str(error)
    return None


def _print_addresses(mesh: Mesh) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("service", "address", title="visionmesh is up; Ctrl-C stops it")
    for replica in mesh.replicas:
        table.add_row(replica.name, replica.url)
    print_table(table)
    console = Console()
    console.print(f"Logs: {mesh.replicas[0].log.parent}", soft_wrap=True, highlight=False)
    url = mesh.url_of("ingest-api")
    console.print(f'Try: curl -F "file=@samples/cat.jpg" {url}/upload', soft_wrap=True, highlight=False)
    edge = mesh.url_of("edge-publisher")
    console.print(f"     curl {edge}/imx477/sensor; curl {url}/sensors", soft_wrap=True, highlight=False)


def _show_samples(mesh: Mesh, samples: list[Path], stopped: Callable[[], bool]) -> bool:
    """Uploads every sample, waits, prints the table; whether every result arrived."""
    import httpx
    from rich.table import Table
    from rich.text import Text

    names = [
        replica.service.environment["MESH_CLASSIFIER"]
        for replica in mesh.replicas
        if replica.number == 1 and replica.service.package == "classifier"
    ]
    table = Table("picture", *names, "agreed", "QR codes", "upload to labels")
    complete = True
    with httpx.Client(base_url=mesh.url_of("ingest-api"), headers=api_key_headers(), timeout=10) as client:
        for sample in samples:
            if stopped():
                break
            began = time.perf_counter()
            answer = client.post("/upload", files={"file": (sample.name, sample.read_bytes())})
            if answer.status_code != 202:
                table.add_row(sample.name, *["-"] * (len(names) + 2), f"refused: {answer.text}")
                complete = False
                continue
            found = _result(client, answer.json()["image_id"], mesh, stopped)
            took = time.perf_counter() - began
            codes = _codes(client, answer.json()["image_id"], mesh, stopped)
            labels = {item["classifier"]: item for item in found["predictions"]}
            labelled = found["status"] == "done" and set(names) <= set(labels)
            complete = complete and labelled and codes is not None
            cells = [
                f"{answer['label']} {answer['confidence']:.0%}" if answer else "-"
                for answer in (*map(labels.get, names), found["consensus"])
            ]
            end = f"{took * 1000:.0f} ms" if found["status"] == "done" else (found["error"] or "no result")
            shown = "no result" if codes is None else "\n".join(code["content"] for code in codes) or "-"
            table.add_row(sample.name, *cells, Text(shown), end)
    print_table(table)
    return complete and not stopped()


def _codes(
    client: Any, image_id: str, mesh: Mesh, stopped: Callable[[], bool]
) -> list[dict[str, Any]] | None:
    """The QR codes of a picture; None when nobody has looked for any in time."""
    deadline = time.monotonic() + _RESULT_SECONDS
    while not stopped() and time.monotonic() < deadline:
        found: dict[str, Any] = client.get(f"/results/{image_id}").json()
        ended = {one["worker"] for one in found.get("outcomes", ()) if one["state"] in ("done", "skipped")}
        if "qr-decoder" in ended:
            return list(found["qr_codes"])
        mesh.tend()
        time.sleep(_POLL_SECONDS)
    return None


def _show_sensors(mesh: Mesh, stopped: Callable[[], bool]) -> None:
    """Prints what Postgres has of every sensor last, as soon as it has something of each."""
    import httpx
    from rich.table import Table

    with httpx.Client(timeout=10) as client:
        device = client.get(f"{mesh.url_of('edge-publisher')}/sensors").json()
        deadline = time.monotonic() + _RESULT_SECONDS
        while True:
            stored = client.get(f"{mesh.url_of('ingest-api')}/sensors").json()["sensors"]
            found = [one for one in stored if one["device_id"] == device["device_id"]]
            if len(found) >= len(device["sensors"]) or stopped() or time.monotonic() > deadline:
                break
            mesh.tend()
            time.sleep(_POLL_SECONDS)
    sources = {one["sensor"]: one["source"] for one in device["sensors"]}
    table = Table("sensor", "on", "readings", "the latest")
    for one in found:
        values = ", ".join(f"{name} {value}" for name, value in one["values"].items() if value is not None)
        table.add_row(one["sensor"], sources.get(one["sensor"], "-"), str(one["seq"]), values)
    print_table(table)


def _result(client: Any, image_id: str, mesh: Mesh, stopped: Callable[[], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + _RESULT_SECONDS
    while True:
        found: dict[str, Any] = client.get(f"/predictions/{image_id}").json()
        if found["status"] != "processing" or stopped() or time.monotonic() > deadline:
            return found
        mesh.tend()
        time.sleep(_POLL_SECONDS)
