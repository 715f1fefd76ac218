"""`mesh doctor`: what is reachable, what is wrong, what to do."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from visionmesh.cli.console import DIRECTORY, Directory, connect, fail, running

if TYPE_CHECKING:
    from visionmesh.compose import ComposeProject, Container
    from visionmesh.settings import Settings

_MIGRATE: Final = (
    "run `docker compose run --rm migrate`, without containers `python -m visionmesh.database migrate`"
)

# What somebody only looks at.
_FOR_PEOPLE: Final = frozenset({"grafana", "kafka-ui"})


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. problem, advice: None when all is well. note: worth knowing, no fault."""

    name: str
    address: str
    problem: str | None = None
    advice: str | None = None
    note: str | None = None


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per finding.")] = False,
    compose: Annotated[
        bool,
        typer.Option("--compose", help="The containers of the compose file, even if `mesh up` runs as well."),
    ] = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Look at the machine, every server and service; the exit status is 1 when anything is wrong."""
    from visionmesh.compose import ComposeError, ComposeProject
    from visionmesh.settings import get_settings

    if not compose:
        connect(directory)
    state = None if compose else running(directory)
    project = ComposeProject()
    try:
        containers = _containers(project, wanted=compose) if state is None else []
        if compose or containers:
            project.connect()
            services = [*_services_in(project, containers)]
        else:
            services = [*_services(state, directory)]
    except ComposeError as error:
        fail(str(error))
    running_containers = Counter(one.service for one in containers if one.state == "running")
    findings = [
        *_prerequisites(directory.resolve(), containers=state is None),
        *_servers(get_settings()),
        _cache(get_settings()),
        *services,
        *_capacity(running_containers if state is None else _replicas(state)),
    ]
    for finding in findings:
        sys.stdout.write((json.dumps(asdict(finding)) if as_json else _for_people(finding)) + "\n")
    if any(finding.problem for finding in findings):
        raise SystemExit(1)


def _prerequisites(directory: Path, *, containers: bool) -> Iterator[Finding]:
    """What the walk-through asks of a machine.

    containers: whether the mesh is to run in these. `mesh up` needs no Docker, and less of the rest.
    """
    from visionmesh.cli.prerequisites import disk, docker, engine, memory

    there = engine() if containers else None
    # A desktop's engine has a machine of its own, whose folders are none of this one.
    folder = there.folder if there is not None and there.folder.exists() else directory
    for found in (docker(), memory(there), disk(folder)):
        if found.lack is None:
            yield Finding(found.name, found.found)
        elif containers:
            yield Finding(found.name, found.found, found.lack, found.advice)
        else:
            yield Finding(found.name, found.found, note=f"{found.lack}; for containers: {found.advice}")


def _servers(settings: Settings) -> Iterator[Finding]:
    from psycopg.conninfo import conninfo_to_dict

    from visionmesh.database import Database
    from visionmesh.kafka import KafkaPublisher
    from visionmesh.object_store import S3ObjectStore

    start = "start it (`mesh up`, or docker compose up) or set {}"
    kafka = _ask(
        "kafka",
        settings.kafka_bootstrap,
        lambda: KafkaPublisher(settings).ping(),
        start.format("MESH_KAFKA_BOOTSTRAP"),
    )
    yield kafka
    if kafka.problem is None:
        yield from _topics(settings)
    yield _ask(
        "object store",
        settings.s3_endpoint,
        lambda: S3ObjectStore.from_settings(settings).ping(),
        start.format("MESH_S3_ENDPOINT, MESH_S3_ACCESS_KEY and MESH_S3_SECRET_KEY"),
    )
    # Only host, port and name: the address has a password.
    parts = conninfo_to_dict(settings.postgres_dsn.get_secret_value())
    where = f"{parts.get('host', '')}:{parts.get('port', '')}/{parts.get('dbname', '')}"
    database = Database.from_settings(settings)
    found = _ask("database", where, database.ping, start.format("MESH_POSTGRES_DSN"))
    yield found
    if found.problem is None:
        yield _ask("schema", where, lambda: _schema(database), _MIGRATE)


def _cache(settings: Settings) -> Finding:
    """The one server that nothing waits for."""
    from urllib.parse import urlsplit

    from visionmesh.cache import ValkeyCache, open_cache
    from visionmesh.errors import Unavailable

    try:
        cache = open_cache(settings)
    except ValueError as error:
        return Finding("cache", "", str(error), "correct MESH_CACHE_URL")
    if settings.cache_url is None or not isinstance(cache, ValkeyCache):
        return Finding("cache", "none", note="set MESH_CACHE_URL to compute no picture twice")
    # Only host and port: the address has a password.
    where = urlsplit(settings.cache_url.get_secret_value()).netloc.rpartition("@")[2]
    try:
        cache.ping()
    except Unavailable as error:
        return Finding("cache", where, note=f"{error.reason}; work goes on without it")
    return Finding("cache", where)


def _topics(settings: Settings) -> Iterator[Finding]:
    """Whether every topic exists, and how much of it waits for each group."""
    from visionmesh.errors import Unavailable
    from visionmesh.kafka import partition_offsets
    from visionmesh.topics import readers

    for topic, group in readers(settings.extra_classifiers):
        try:
            lag = sum(partition.lag for partition in partition_offsets(settings, topic.name, group))
        except Unavailable as error:
            yield Finding(f"topic of {group}", topic.name, error.reason, "`mesh topics create`")
            return
        yield Finding(f"lag of {group}", f"{topic.name}: {lag} waiting")


def _schema(database: Any) -> None:
    with database.transaction() as connection:
        connection.execute("SELECT 1 FROM task_outcomes LIMIT 1")


def _services(state: dict[str, Any] | None, directory: Path) -> Iterator[Finding]:
    from visionmesh.mesh import HOST, SERVICES, why_not_ready

    if state is None:
        replicas = [(service.name, f"http://{HOST}:{service.port}", 0) for service in SERVICES]
    else:
        replicas = [(one["service"], one["url"], one["restarts"]) for one in state["replicas"]]
    for name, url, restarts in replicas:
        problem = why_not_ready(url)
        if problem is not None:
            advice = "start it (`mesh up`)" if state is None else f"read its log in {directory / 'logs'}"
            yield Finding(name, url, problem, advice)
        elif restarts:
            yield Finding(name, f"{url} (restarted {restarts} times)")
        else:
            yield Finding(name, url)


def _services_in(project: ComposeProject, containers: Sequence[Container]) -> Iterator[Finding]:
    """Every service that compose knows, by the health of its containers."""
    there = {service: [one for one in containers if one.service == service] for service in project.services()}
    for service, goes_on in project.services().items():
        # What is over may have been removed; what it made is looked at by itself.
        if goes_on and not there[service]:
            if service in _FOR_PEOPLE:
                yield Finding(service, "no container", note="the mesh works without it")
            else:
                start = f"docker compose up --wait --no-deps --no-recreate {service}"
                yield Finding(service, "no container", "nothing of it runs", f"`{start}`")
        for container in there[service]:
            problem = _why_not_well(project, container, goes_on=goes_on)
            advice = f"read `docker compose logs --tail 50 {service}`"
            if container.state == "exited":
                advice += f"; `docker compose start {service}` starts it again"
            yield Finding(service, container.name, problem, None if problem is None else advice)


def _why_not_well(project: ComposeProject, container: Container, *, goes_on: bool) -> str | None:
    if container.state != "running":
        done = container.state == "exited" and container.exit_status == 0 and not goes_on
        return None if done else f"it is {container.state}, status {container.exit_status}"
    if not goes_on:
        return "it is not done yet"
    if container.health in ("healthy", ""):
        return None
    said = project.why_not_ready(container)
    return f"it is {container.health}" + (f": {said}" if said else "")


def _capacity(replicas: Mapping[str, int]) -> Iterator[Finding]:
    """More replicas than have work."""
    from visionmesh.topics import PARTITIONS

    for service, count in replicas.items():
        if count > PARTITIONS and service != "ingest-api":
            yield Finding(
                f"scale of {service}",
                f"{count} replicas",
                f"only {PARTITIONS} have work: a topic has {PARTITIONS} partitions",
                f"--scale {service}={PARTITIONS} at most",
            )


def _replicas(state: dict[str, Any]) -> Mapping[str, int]:
    return Counter(one["service"] for one in state["replicas"])


def _containers(project: ComposeProject, *, wanted: bool) -> list[Container]:
    """wanted: whether they were asked for. Otherwise there are none where Docker does not answer."""
    from visionmesh.compose import ComposeError

    try:
        return project.containers()
    except ComposeError:
        if wanted:
            raise
        return []


def _for_people(finding: Finding) -> str:
    if finding.note is not None:
        return f"note   {finding.name}: {finding.address}\n       {finding.note}"
    if finding.problem is None:
        return f"well   {finding.name}: {finding.address}"
    return f"WRONG  {finding.name}: {finding.address}\n       {finding.problem}\n       do: {finding.advice}"


def _ask(name: str, address: str, question: Callable[[], None], advice: str) -> Finding:
    from visionmesh.errors import Rejected, Unavailable

    try:
        question()
    except (Unavailable, Rejected) as error:
        return Finding(name, address, error.reason, advice)
    return Finding(name, address)
