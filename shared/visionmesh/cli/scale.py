"""`mesh scale`, `mesh restart` and `mesh autoscale`: more replicas, fewer, new ones."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from visionmesh.cli.console import DIRECTORY, Compose, Directory, complain, connect, fail

if TYPE_CHECKING:
    from visionmesh.autoscale import Policy
    from visionmesh.scalers import Replicas

_USAGE_STATUS: Final = 2


def scale(
    wanted: Annotated[list[str], typer.Argument(metavar="SERVICE=N...", help="e.g. classifier-fast=3")],
    compose: Compose = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Start or end replicas of services of the mesh that runs, and wait until they are ready."""
    from visionmesh.autoscale import ScaleError

    replicas = _replicas(compose, directory)
    for text in wanted:
        service, _, count = text.partition("=")
        if not service or not count.isdecimal():
            _misunderstood(text, "classifier-fast=3")
        try:
            replicas.scale(service, int(count))
        except ScaleError as error:
            fail(str(error))
        complain(f"{service}: {count} replicas")


def restart(
    services: Annotated[list[str], typer.Argument(metavar="SERVICE...")],
    compose: Compose = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Replace every replica of services, one after the other, so that work goes on meanwhile.

    With --compose the new containers are of the image that is there now: this is how to upgrade.
    """
    from visionmesh.autoscale import ScaleError

    replicas = _replicas(compose, directory)
    for service in services:
        try:
            replicas.restart(service)
        except ScaleError as error:
            fail(f"{service}: {error}\nWhat was not replaced goes on as it was.")
        complain(f"{service}: every replica is new")


def autoscale(
    wanted: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SERVICE=MIN:MAX[:LAG]...]",
            help="e.g. ocr-worker=1:4:5, where each replica may have 5 messages waiting; every worker that "
            "runs, between 1 and --maximum, when none is named.",
        ),
    ] = None,
    maximum: Annotated[int, typer.Option(min=1, help="Most replicas of those that are not named.")] = 4,
    cool_down: Annotated[
        float, typer.Option(min=0, help="Seconds for which fewer must have been enough.")
    ] = 120.0,
    settle: Annotated[float, typer.Option(min=0, help="Seconds between two changes that add some.")] = 10.0,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    compose: Compose = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Follow each group's lag with replicas between a minimum and a maximum; Ctrl-C or SIGTERM ends it.

    Never more than partitions, beyond which none has work. What it changed stays when it ends.
    """
    connect(directory, compose=compose)
    from visionmesh.autoscale import Autoscaler
    from visionmesh.scalers import KafkaLags
    from visionmesh.settings import get_settings

    groups = _groups()
    policies = {
        name: _policy(name, bounds, settle, cool_down)
        for name, bounds in _bounds(wanted or [f"{group}=1:{maximum}" for group in groups], groups).items()
    }
    replicas = _replicas(compose, directory)
    # SIGINT too: shells have what they start in the background ignore it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with KafkaLags(get_settings()) as lags:
        autoscaler = Autoscaler(policies, lags, replicas, complain)
        try:
            while True:
                autoscaler.look(time.monotonic())
                time.sleep(every)
        except KeyboardInterrupt:
            complain("ended; the replicas stay as they are")


def _groups() -> tuple[str, ...]:
    from visionmesh.settings import get_settings
    from visionmesh.topics import readers

    return tuple(group for _, group in readers(get_settings().extra_classifiers))


def _bounds(texts: list[str], groups: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """`["ocr-worker=1:4:5"]` → minimum, maximum and, where it is said, the lag of each replica."""
    found = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        parts = numbers.split(":")
        if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts):
            _misunderstood(text, "classifier-fast=1:4")
        if name not in groups:
            fail(f"No group is called {name!r}; there are {', '.join(groups)}.", _USAGE_STATUS)
        found[name] = tuple(map(int, parts))
    return found


def _policy(name: str, bounds: tuple[int, ...], settle: float, cool_down: float) -> Policy:
    from visionmesh.autoscale import CLASSIFIER_LAG_PER_REPLICA, LAG_PER_REPLICA, Policy

    minimum, maximum, *lag = bounds
    usual = LAG_PER_REPLICA.get(name, CLASSIFIER_LAG_PER_REPLICA)
    try:
        return Policy(minimum, maximum, lag[0] if lag else usual, settle, cool_down)
    except ValueError as error:
        fail(f"{name}: {error}.", _USAGE_STATUS)


def _replicas(compose: bool, directory: Path) -> Replicas:
    from visionmesh.scalers import ComposeReplicas, MeshReplicas

    return ComposeReplicas() if compose else MeshReplicas(directory.resolve())


def _misunderstood(text: str, example: str) -> NoReturn:
    fail(f"{text!r} is not understood; write for example {example}.", _USAGE_STATUS)
