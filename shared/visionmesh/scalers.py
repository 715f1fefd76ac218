"""Replicas of the mesh that another process or Docker runs: counted, changed, replaced one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from visionmesh import orders
from visionmesh.autoscale import ScaleError, Scaler
from visionmesh.compose import ComposeError, run_docker
from visionmesh.kafka import GroupOffsets
from visionmesh.mesh import SERVICES, MeshError, Service, check_scale, running
from visionmesh.settings import ROOT, Settings
from visionmesh.topics import readers

# As long as a service may take to end, and what the compose file gives it.
_STOP_SECONDS: Final = 15

_CLASSIFIER: Final = "classifier-"
_STOPPED: Final = frozenset({"created", "exited", "dead"})


class KafkaLags:
    """`Lags` over connections that stay open. Not for two threads at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topics = {group: topic.name for topic, group in readers(settings.extra_classifiers)}
        self._offsets: dict[str, GroupOffsets] = {}
        self._open = ExitStack()

    def lag(self, group: str) -> int:
        if group not in self._offsets:
            offsets = GroupOffsets(self._settings, self._topics[group], group)
            self._offsets[group] = self._open.enter_context(closing(offsets))
        return sum(partition.lag for partition in self._offsets[group].read())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()


class Replicas(Scaler, Protocol):
    """A `Scaler` that also replaces replicas."""

    def restart(self, service: str) -> None:
        """Every replica of a service anew, never fewer of them than before. Raises `ScaleError`."""


class MeshReplicas:
    """`Replicas` of the `mesh up` or `mesh demo` that runs in a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def replicas(self) -> Mapping[str, int]:
        return Counter(one["service"] for one in self._state()["replicas"])

    def scale(self, service: str, replicas: int) -> None:
        self._ask(orders.Scale(service, replicas))

    def restart(self, service: str) -> None:
        self._ask(orders.Restart(service))

    def _ask(self, order: orders.Order) -> None:
        self._state()
        try:
            orders.wait(orders.give(self._directory, order), self._runs)
        except orders.OrderError as error:
            raise ScaleError(str(error)) from error

    def _runs(self) -> bool:
        try:
            self._state()
        except ScaleError:
            return False
        return True

    def _state(self) -> dict[str, Any]:
        state = running(self._directory)
        if state is None:
            raise ScaleError(f"No mesh runs in {self._directory}.")
        return state


@dataclass(frozen=True)
class _Container:
    """is_stopped: it ended, or never began. files: the names of the compose files it was made by."""

    name: str
    is_stopped: bool
    files: tuple[str, ...]


class ComposeReplicas:
    """`Replicas` that are containers of the compose file.

    What COMPOSE_FILE, COMPOSE_PROFILES and `.env` say holds here as well.
    """

    def __init__(self, folder: Path = ROOT, services: Sequence[Service] = SERVICES) -> None:
        """folder: where the compose file is. services: those that may be changed, beside classifiers."""
        self._folder = folder
        self._services = {service.name: service for service in services}

    def replicas(self) -> Mapping[str, int]:
        return Counter(self._compose("ps", "--format", "{{.Service}}"))

    def scale(self, service: str, replicas: int) -> None:
        try:
            check_scale(self._service(service), replicas)
        except MeshError as error:
            raise ScaleError(str(error)) from error
        self._remove_stopped(service)
        self._change(service, replicas)

    def restart(self, service: str) -> None:
        """Each container is replaced by one of the image that is there now: this is also how to upgrade."""
        known = self._service(service)
        if all(container.is_stopped for container in self._containers(service)):
            raise ScaleError(f"No container of {service} runs.")
        if not known.scalable:
            self._compose("up", "--detach", "--wait", "--no-deps", "--force-recreate", service)
            return
        self._remove_stopped(service)
        old = self._containers(service)
        for container in old:
            # One more, and only then one less: the new one is of today's image and settings, and the others
            # are left as they are.
            self._change(service, len(old) + 1)
            self._docker("stop", "-t", str(_STOP_SECONDS), container.name)
            self._docker("rm", container.name)

    def _service(self, name: str) -> Service:
        if name.startswith(_CLASSIFIER):
            return self._services.get(name, Service(name, "classifier", None))
        if name not in self._services:
            raise ScaleError(f"There is no service {name!r}; there are {', '.join(sorted(self._services))}.")
        return self._services[name]

    def _remove_stopped(self, service: str) -> None:
        """Compose would start them instead of new ones, and they are of the image of then."""
        for container in self._containers(service):
            if container.is_stopped:
                self._docker("rm", container.name)

    def _change(self, service: str, replicas: int) -> None:
        """So many containers; as many as before when the further ones do not get healthy, or are not what
        the others are.
        """
        before = self._containers(service)
        try:
            self._up(service, replicas)
            self._check(service, before, replicas)
        except BaseException:
            for container in self._new(service, before):
                self._docker("rm", "--force", container.name)
            raise

    def _check(self, service: str, before: Sequence[_Container], replicas: int) -> None:
        new = self._new(service, before)
        if len(new) < replicas - len(before):
            raise ScaleError(f"Compose has started no new container of {service}.")
        was, now = ({container.files for container in each} for each in (before, new))
        if before and not now <= was:
            raise ScaleError(
                f"{service} was started with {' and '.join(map(_listed, was))}, and compose would go on with "
                f"{' and '.join(map(_listed, now))}; name the first in COMPOSE_FILE."
            )

    def _containers(self, service: str) -> list[_Container]:
        """Those that ended as well, and none of `docker compose run`, which somebody else waits for."""
        names = self._compose("ps", "--all", "--quiet", service)
        if not names:
            return []
        found = []
        for one in json.loads(self._run("inspect", *names)):
            labels = one["Config"]["Labels"]
            if labels.get("com.docker.compose.oneoff") == "True":
                continue
            files = labels.get("com.docker.compose.project.config_files", "").split(",")
            found.append(
                _Container(
                    one["Id"], one["State"]["Status"] in _STOPPED, tuple(Path(file).name for file in files)
                )
            )
        return found

    def _new(self, service: str, before: Sequence[_Container]) -> list[_Container]:
        there = {container.name for container in before}
        return [container for container in self._containers(service) if container.name not in there]

    def _up(self, service: str, replicas: int) -> None:
        self._compose(
            "up", "--detach", "--wait", "--no-deps", "--no-recreate",
            "--scale", f"{service}={replicas}", service,
        )  # fmt: skip

    def _compose(self, *arguments: str) -> list[str]:
        return self._docker("compose", *arguments)

    def _docker(self, *arguments: str) -> list[str]:
        return self._run(*arguments).split()

    def _run(self, *arguments: str) -> str:
        try:
            return run_docker(self._folder, *arguments)
        except ComposeError as error:
            raise ScaleError(str(error)) from error


def _listed(files: Sequence[str]) -> str:
    return ":".join(files)
