"""Replicas of the mesh that another process or Docker runs: counted, changed, replaced one by one."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from visionmesh import orders
from visionmesh.autoscale import ScaleError, Scaler
from visionmesh.compose import ComposeError, run_docker
from visionmesh.kafka import GroupOffsets
from visionmesh.mesh import running_file
from visionmesh.settings import ROOT, Settings
from visionmesh.topics import readers

# As long as a service may take to end, and what the compose file gives it.
_STOP_SECONDS: Final = 15


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
        try:
            state: dict[str, Any] = json.loads(running_file(self._directory).read_text())
            os.kill(state["pid"], 0)
        except (OSError, ValueError, KeyError) as error:
            raise ScaleError(f"No mesh runs in {self._directory}.") from error
        return state


class ComposeReplicas:
    """`Replicas` that are containers of the compose file.

    What COMPOSE_FILE, COMPOSE_PROFILES and `.env` say holds here as well.
    """

    def __init__(self, folder: Path = ROOT) -> None:
        """folder: where the compose file is."""
        self._folder = folder

    def replicas(self) -> Mapping[str, int]:
        return Counter(self._compose("ps", "--format", "{{.Service}}"))

    def scale(self, service: str, replicas: int) -> None:
        self._up(service, replicas)

    def restart(self, service: str) -> None:
        """Each container is replaced by one of the image that is there now: this is also how to upgrade."""
        old = self._compose("ps", "--quiet", service)
        if not old:
            raise ScaleError(f"No container of {service} runs.")
        for container in old:
            # One more, and only then one less: the new one is of today's image and settings, and the others
            # are left as they are.
            self._add(service)
            self._docker("stop", "-t", str(_STOP_SECONDS), container)
            self._docker("rm", container)

    def _add(self, service: str) -> None:
        """One container more; none when it does not get healthy."""
        there = set(self._compose("ps", "--quiet", service))
        try:
            self._up(service, len(there) + 1)
        except ScaleError:
            for container in set(self._compose("ps", "--all", "--quiet", service)) - there:
                self._docker("rm", "--force", container)
            raise

    def _up(self, service: str, replicas: int) -> None:
        self._compose(
            "up", "--detach", "--wait", "--no-deps", "--no-recreate",
            "--scale", f"{service}={replicas}", service,
        )  # fmt: skip

    def _compose(self, *arguments: str) -> list[str]:
        return self._docker("compose", *arguments)

    def _docker(self, *arguments: str) -> list[str]:
        try:
            return run_docker(self._folder, *arguments).split()
        except ComposeError as error:
            raise ScaleError(str(error)) from error
