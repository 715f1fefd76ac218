"""`containers`: what each container of the compose file takes, idle and under load, and what replicas do.

Needs Docker and the images that `docker compose build` made. Memory is what a container holds and can't give
back at once; processor time is the kernel's, and of the load generator, which is outside, nothing is counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
from confluent_kafka import Producer

from benchmarks.end_to_end import Client
from benchmarks.figures import figure
from benchmarks.replicas import unlike_any
from compose_mesh import ROOT, ComposeMesh, compose_mesh, http
from visionmesh.kafka import GroupOffsets
from visionmesh.settings import Settings
from visionmesh.topics import FEATURES, IMAGES, Topic

# The first design's table of the whole system.
SEED_CORES: Final = 3
SEED_BYTES: Final = 4 * 2**30
SEED_RATE: Final = 100
CLASSIFIERS: Final = ("classifier-fast", "classifier-balanced", "classifier-accurate")
_SAMPLE_SECONDS: Final = 3.0
_CLIENTS: Final = 16
_DRAINED_SECONDS: Final = 600.0


@dataclass
class Use:
    """Of one container. cpu_seconds since it started; the others in bytes."""

    cpu_seconds: float
    memory: int
    highest: int


class Engine:
    """Docker's HTTP interface, as far as it tells what containers use."""

    def __init__(self) -> None:
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds="/var/run/docker.sock"), base_url="http://docker", timeout=30
        )

    def use(self, project: str) -> dict[str, Use]:
        """By name without the project's, "classifier-fast-1"; of containers that run."""
        wanted = json.dumps({"label": [f"com.docker.compose.project={project}"]})
        found = {}
        for container in self._http.get("/containers/json", params={"filters": wanted}).json():
            stats = self._http.get(
                f"/containers/{container['Id']}/stats", params={"stream": "false", "one-shot": "true"}
            ).json()
            memory = stats["memory_stats"]
            inactive = memory["stats"].get("total_inactive_file", memory["stats"].get("inactive_file", 0))
            held = memory["usage"] - inactive
            name = container["Names"][0].removeprefix(f"/{project}-")
            found[name] = Use(stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, held, held)
        return found


@contextmanager
def watched(engine: Engine, project: str) -> Iterator[dict[str, Use]]:
    """Fills what it yields, at its end, with processor seconds meanwhile and the highest memory."""
    found: dict[str, Use] = {}
    before = engine.use(project)
    highest = {name: use.memory for name, use in before.items()}
    over = threading.Event()

    def sample() -> None:
        while not over.wait(_SAMPLE_SECONDS):
            for name, use in engine.use(project).items():
                highest[name] = max(highest.get(name, 0), use.memory)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield found
    finally:
        over.set()
        sampler.join()
    for name, use in engine.use(project).items():
        began = before[name].cpu_seconds if name in before else 0.0
        found[name] = Use(use.cpu_seconds - began, use.memory, max(use.memory, highest.get(name, 0)))


def print_use(state: str, used: Mapping[str, Use], seconds: float) -> None:
    for name, use in sorted(used.items()):
        figure(f"containers, {state}: {name}, memory", [use.highest / 2**20], "MiB")
        figure(f"containers, {state}: {name}, processor", [use.cpu_seconds / seconds], "cores")
    together = sum(use.highest for use in used.values())
    figure(f"containers, {state}: all, memory / the seed's 4 GB", [together / SEED_BYTES], "x")
    figure(f"containers, {state}: all, processor", [cpu_seconds(used) / seconds], "cores")


def cpu_seconds(used: Mapping[str, Use]) -> float:
    return sum(use.cpu_seconds for use in used.values())


def uploaded(picture: bytes, rate: float, seconds: float, tasks: str) -> int:
    """How many pictures were accepted, at `rate` a second if the gateway takes as many."""
    began = time.perf_counter()
    local = threading.local()
    count = int(rate * seconds)

    def one(number: int) -> None:
        if not hasattr(local, "client"):
            local.client = Client(http(8001))
        time.sleep(max(0.0, began + number / rate - time.perf_counter()))
        local.client.upload(unlike_any(picture), tasks)

    with ThreadPoolExecutor(_CLIENTS) as clients:
        list(clients.map(one, range(count)))
    return count


def settings(mesh: ComposeMesh) -> Settings:
    return Settings(kafka_bootstrap=f"127.0.0.1:{mesh.values['KAFKA_PORT']}")


def drained(mesh: ComposeMesh, topic: Topic[Any], group: str, *, to: int = 0) -> None:
    """Until no more than `to` messages of the topic wait for this group."""
    deadline = time.monotonic() + _DRAINED_SECONDS
    with closing(GroupOffsets(settings(mesh), topic.name, group)) as offsets:
        while sum(place.lag for place in offsets.read()) > to:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{group} still has messages waiting")
            time.sleep(0.1)


def resources(mesh: ComposeMesh, rate: float, seconds: float, tasks: str) -> None:
    """What each container takes: nobody asking, then `rate` pictures a second until all are done."""
    engine = Engine()
    with watched(engine, mesh.project) as idle:
        time.sleep(seconds / 2)
    print_use("idle", idle, seconds / 2)
    picture = (ROOT / "samples" / "cat.jpg").read_bytes()
    began = time.perf_counter()
    with watched(engine, mesh.project) as used:
        count = uploaded(picture, rate, seconds, tasks)
        sent = time.perf_counter() - began
        # A message is finished when its results are stored. Those who are not to look pass over it at once.
        drained(mesh, IMAGES, "feature-extractor")
        drained(mesh, IMAGES, "qr-decoder")
        for classifier in CLASSIFIERS:
            drained(mesh, FEATURES, classifier)
    taken = time.perf_counter() - began
    state = f"{tasks} at {rate:g}/s"
    print_use(state, used, taken)
    figure(f"containers, {state}: uploads accepted", [count / sent], "img/s")
    figure(f"containers, {state}: pictures done (goal {SEED_RATE})", [count / taken], "img/s")
    # Where the machine can't go at that rate: what it takes idle, and what each picture adds.
    idle_cores = cpu_seconds(idle) / (seconds / 2)
    cores = idle_cores + (cpu_seconds(used) - idle_cores * taken) / count * SEED_RATE
    figure(f"containers, {state}: processor of {SEED_RATE}/s / the seed's 3", [cores / SEED_CORES], "x")


def publish(mesh: ComposeMesh, messages: int, prefix: str) -> None:
    """Descriptors as the extractor publishes them."""
    producer = Producer({"bootstrap.servers": f"127.0.0.1:{mesh.values['KAFKA_PORT']}"})
    for number in range(messages):
        message = {"image_id": f"{prefix}-{number}", "descriptors": [0.1] * 20, "descriptor_count": 20}
        producer.produce(FEATURES.name, json.dumps(message), message["image_id"])
        producer.poll(0)
    producer.flush()


def scaling(mesh: ComposeMesh, messages: int, rounds: int) -> None:
    """Descriptors a second that one, two and four replicas of a classifier work off, the other two away.

    All wait when the replicas start. The first and the last tenth, in which some may be idle, are left out.
    """
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for turn in range(rounds):
        for replicas, found in rates.items():
            mesh.up("--no-recreate", "--no-deps", replicas=dict.fromkeys(CLASSIFIERS, 0))
            publish(mesh, messages, f"scaling-{turn}-{replicas}")
            up = ("up", "--detach", "--no-recreate", "--no-deps", "--scale", f"classifier-fast={replicas}")
            mesh.compose(*up, "classifier-fast")
            drained(mesh, FEATURES, "classifier-fast", to=messages * 9 // 10)
            began = time.perf_counter()
            drained(mesh, FEATURES, "classifier-fast", to=messages // 10)
            found.append(messages * 0.8 / (time.perf_counter() - began))
            drained(mesh, FEATURES, "classifier-fast")
    for replicas, found in rates.items():
        figure(f"containers: classifier-fast x {replicas}", found, "msg/s")
        times = [rate / alone for rate, alone in zip(found, rates[1], strict=True)]
        figure(f"containers: classifier-fast x {replicas} / x 1", times, "x")


def spread(mesh: ComposeMesh) -> None:
    """The partitions of each replica, scaled as the first design does it and some more."""
    replicas = {"classifier-fast": 5, "ocr-worker": 2, "qr-decoder": 2}
    mesh.up("--no-recreate", replicas=replicas)
    for service in replicas:
        print(f"containers: partitions of each {service}: {mesh.members(service)}", flush=True)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="mesh bench containers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of load")
    parser.add_argument("--rate", type=float, default=SEED_RATE, help="pictures a second")
    parser.add_argument("--tasks", nargs="*", default=["classify", "classify,qr"])
    parser.add_argument("--messages", type=int, default=60_000, help="of one round of scaling")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="mesh-bench-") as name, compose_mesh(Path(name)) as mesh:
        mesh.compose("build")
        began = time.perf_counter()
        mesh.up()
        figure("containers: from nothing to ready (goal <= 60)", [time.perf_counter() - began], "s")
        for tasks in options.tasks:
            resources(mesh, options.rate, options.seconds, tasks)
        spread(mesh)
        scaling(mesh, options.messages, options.rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
