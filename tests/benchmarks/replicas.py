"""Single services of the mesh as processes, what they are fed with, their metrics and memory."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

from visionmesh.mesh import STOP_SECONDS, Replica, Service, why_not_ready
from visionmesh.stack.ports import free_port

READY_SECONDS = 300.0


@contextmanager
def started(
    services: Sequence[Service],
    directory: Path,
    environment: Mapping[str, str],
    on_start: Callable[[Replica], None] = lambda _: None,
) -> Iterator[list[Replica]]:
    """One replica of each service, ready; logs go to `directory`.

    on_start: called with each as soon as its process is there, before it has done anything to speak of.
    """
    inherited = {**os.environ, **environment}
    replicas = []
    try:
        for service in services:
            replica = Replica(service, 1, free_port(), directory / f"{service.name}.log")
            replicas.append(replica)
            replica.start(inherited)
            on_start(replica)
        deadline = time.monotonic() + READY_SECONDS
        for replica in replicas:
            while (why := why_not_ready(replica.url)) is not None:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{replica.name}: {why}\n{replica.last_lines()}")
                time.sleep(0.1)
        yield replicas
    finally:
        for replica in replicas:
            replica.ask_to_stop()
        for replica in replicas:
            replica.stop(STOP_SECONDS)


@dataclass(frozen=True)
class Distribution:
    """A histogram of Prometheus. buckets: upper bound and how many lie at or below it, ascending."""

    total: float
    count: float
    buckets: tuple[tuple[float, float], ...]

    @property
    def mean(self) -> float:
        return self.total / self.count

    def quantile(self, share: float) -> float:
        """What `share` (0 to 1) lie below, with the values of a bucket taken to be spread evenly.

        Prometheus's `histogram_quantile`; beyond the last finite bound it is that bound.
        """
        rank = share * self.count
        low, below = 0.0, 0.0
        for bound, upto in self.buckets:
            if bound == float("inf"):
                break
            if upto >= rank and upto > below:
                return low + (bound - low) * (rank - below) / (upto - below)
            low, below = bound, upto
        return low


def distribution(text: str, name: str) -> Distribution:
    """The histogram `name` in what `/metrics` answered, which has one series of it."""
    (family,) = (each for each in text_string_to_metric_families(text) if each.name == name)
    values = {sample.name: sample.value for sample in family.samples}
    buckets = [
        (float(sample.labels["le"]), sample.value) for sample in family.samples if "le" in sample.labels
    ]
    return Distribution(values[f"{name}_sum"], values[f"{name}_count"], tuple(sorted(buckets)))


def metrics_of(url: str) -> str:
    """What the service at `url` answers to `/metrics`."""
    with urlopen(f"{url}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def memory_of(pid: int | None) -> int:
    """Bytes of a process and its children: proportional set size, which counts a shared page once."""
    process = psutil.Process(pid)
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue  # a child that has just been replaced
    return total


def unlike_any(picture: bytes) -> bytes:
    """The same JPEG under another digest, so that no cache knows it; decoders ignore what follows its end."""
    return picture + uuid.uuid4().bytes
