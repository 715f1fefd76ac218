"""`burst`: ten times the usual uploads for a minute, twice, and what that does to memory, lag and clients.

The whole mesh, one replica of each service; no edge device. A process of its own uploads at a steady rate,
whatever the mesh does: a picture whose turn comes while all clients wait is late, and its time runs from its
turn. Every picture asks for labels and QR codes, one in 200 for its text as well. After a burst the usual
rate goes on until no group is further behind than before it.

Watched once a second: lag of every group in messages and seconds, memory (proportional set size, children
included) of every process, pictures in the outbox. At the end everything that was accepted has its
results, and what was announced or published twice is counted.
"""

from __future__ import annotations

import argparse
import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import yaml

from benchmarks.figures import figure, percentile
from benchmarks.ocr_scaling import drawn
from benchmarks.poison import CLASSIFIERS, HOME_SECONDS, TASKS, Client, Ground, photograph, whole_mesh
from benchmarks.replicas import memory_of, unlike_any
from benchmarks.servers import own_process
from visionmesh.errors import Unavailable
from visionmesh.group_lag import GroupLags
from visionmesh.kafka import partition_offsets
from visionmesh.settings import ROOT
from visionmesh.topics import FEATURES, IMAGES

CLIENTS = 64

# A page of text takes seconds.
_ONE_PAGE_IN = 200
_SAMPLE_SECONDS = 1.0

# By what clients are asked to come again; see `visionmesh.http` and `visionmesh.access`.
STATED = frozenset({(429, "rate_limited"), (503, "too_many_uploads")})

# The containers of the servers that a stack starts.
_CONTAINERS = {"s3": "minio", "cache": "redis"}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Upload:
    """One picture that was sent. due, seconds: its turn (UNIX), and from then to the answer.

    status: 0 where there was no answer, whose error is the code then.
    """

    image_id: str
    due: float
    seconds: float
    status: int
    code: str


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment (UNIX seconds). seconds: of groups where it is known. Memory in bytes."""

    at: float
    messages: Mapping[str, int]
    seconds: Mapping[str, float]
    memory: Mapping[str, int]
    outbox: int


@dataclass(frozen=True)
class Burst:
    """UNIX seconds. drained: when no group was further behind than before it."""

    began: float
    ended: float
    drained: float


def tasks_of(number: int) -> tuple[str, ...]:
    return (*TASKS, "ocr") if number % _ONE_PAGE_IN == _ONE_PAGE_IN - 1 else TASKS


def upload_for_ever(url: str, out: Path) -> None:
    """The generator's process: reads rates from standard input, a line each, until that ends."""
    photographs = [photograph(number) for number in range(64)]
    page = drawn(1)
    work: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def one(client: Client, number: int, due: float) -> Upload:
        tasks = tasks_of(number)
        data = unlike_any(page if "ocr" in tasks else photographs[number % len(photographs)])
        try:
            status, code = client.upload(data, f"burst-{number}", tasks)
        except (OSError, ValueError, KeyError) as error:
            status, code = 0, type(error).__name__
        return Upload(f"burst-{number}", due, time.time() - due, status, code)

    def serve() -> None:
        client = Client(url)
        while (turn := work.get()) is not None:
            lines.put(json.dumps(vars(one(client, *turn))))

    rate = float(sys.stdin.readline())

    def listen() -> None:
        nonlocal rate
        for line in sys.stdin:
            rate = float(line)
        rate = 0.0

    clients = [threading.Thread(target=serve, daemon=True) for _ in range(CLIENTS)]
    for thread in (*clients, threading.Thread(target=listen, daemon=True)):
        thread.start()
    number, due = 0, time.time()
    with out.open("w") as file:
        while rate:
            while due > time.time():
                time.sleep(min(0.05, max(0.0, due - time.time())))
            work.put((number, due))
            number += 1
            due += 1 / (rate or 1)
            while not lines.empty():
                file.write(lines.get() + "\n")
        for _ in clients:
            work.put(None)
        for thread in clients:
            thread.join()
        while not lines.empty():
            file.write(lines.get() + "\n")


class Generator:
    """The process that uploads, as its parent sees it."""

    def __init__(self, url: str, out: Path, rate: float) -> None:
        self._out = out
        self._process = own_process(
            "burst", "--upload", url, "--out", str(out), stdin=subprocess.PIPE, text=True
        )
        self.set(rate)

    def set(self, rate: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{rate}\n")
        self._process.stdin.flush()

    def end(self) -> list[Upload]:
        """Everything that was sent, in the order of the answers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait(HOME_SECONDS) != 0:
            raise RuntimeError("the generator failed")
        return [Upload(**json.loads(line)) for line in self._out.read_text().splitlines()]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Watch:
    """Takes samples in a thread of its own."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: list[Sample] = []
        self.missed = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        readers = [(topic.name, group) for topic in (IMAGES, FEATURES) for group in topic.consumers]
        with closing(GroupLags(self._ground.settings, readers)) as lags:
            while not self._stop.wait(_SAMPLE_SECONDS):
                try:
                    self.samples.append(self._look(lags))
                except Unavailable:
                    self.missed += 1

    def _look(self, lags: GroupLags) -> Sample:
        found = lags.read()
        ((outbox,),) = self._ground.query("SELECT count(*) FROM images WHERE published_at IS NULL")
        return Sample(
            time.time(),
            {each.group: each.messages for each in found},
            {each.group: each.seconds for each in found if each.seconds is not None},
            dict(memories(self._ground)),
            int(outbox),
        )


def memories(ground: Ground) -> Iterator[tuple[str, int]]:
    """Bytes of each service and each server, with children. One that has just ended is left out."""
    pids = [(replica.service.name, replica.pid) for replica in ground.mesh.replicas]
    pids += [(server.name, server.pid) for server in ground.stack.servers]
    for name, pid in pids:
        with suppress(psutil.NoSuchProcess):
            if pid is not None:
                yield name, memory_of(pid)


def limits() -> dict[str, int]:
    """What the containers may take at most, in bytes, by the names that `memories` gives."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    found = {}
    for name, service in services.items():
        limit = service.get("deploy", {}).get("resources", {}).get("limits", {}).get("memory")
        if limit is not None:
            found[name] = bytes_of(limit)
    return found | {server: found[name] for server, name in _CONTAINERS.items()}


def bytes_of(text: str) -> int:
    """`512M`, or `${VARIABLE:-2G}`."""
    match = re.fullmatch(r"(?:\$\{\w+:-)?(\d+)([KMG])\}?", text)
    assert match is not None, text
    return int(match[1]) * _UNITS[match[2]]


def drained_at(samples: Sequence[Sample], calm: float, began: float, ended: float) -> float | None:
    """When after `ended` every group was no further behind than at most between `calm` and `began`; None is
    not yet. All in UNIX seconds.
    """
    before = [sample for sample in samples if calm <= sample.at < began]
    usual = {group: max(each.messages[group] for each in before) for group in before[-1].messages}
    for sample in samples:
        if sample.at > ended and all(sample.messages[group] <= usual[group] for group in usual):
            return sample.at
    return None


def run(ground: Ground, options: argparse.Namespace) -> tuple[list[Burst], list[Sample], list[Upload]]:
    out = ground.directory / "uploads.jsonl"
    generator = Generator(ground.url, out, options.rate)
    bursts: list[Burst] = []
    try:
        with Watch(ground) as watch:
            for _ in range(options.bursts):
                time.sleep(options.rest)
                began = time.time()
                generator.set(options.rate * options.times)
                time.sleep(options.seconds)
                generator.set(options.rate)
                ended = time.time()
                calm = bursts[-1].drained if bursts else 0.0
                bursts.append(Burst(began, ended, wait_drained(watch, calm, began, ended)))
                print(f"  burst {len(bursts)} is over and drained", flush=True)
            time.sleep(options.rest)
            uploads = generator.end()
            wait_idle(ground)
            if watch.missed:
                print(f"burst: {watch.missed} looks at the lag had no answer in time")
            return bursts, watch.samples, uploads
    finally:
        generator.kill()


def wait_drained(watch: Watch, calm: float, began: float, ended: float) -> float:
    deadline = time.monotonic() + HOME_SECONDS
    while (drained := drained_at(watch.samples, calm, began, ended)) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"not drained after {HOME_SECONDS:.0f} s: {watch.samples[-1].messages}")
        time.sleep(0.5)
    return drained


def wait_idle(ground: Ground) -> None:
    """Until every group has finished everything."""
    deadline = time.monotonic() + HOME_SECONDS
    for topic in (IMAGES, FEATURES):
        for group in topic.consumers:
            while any(each.lag for each in partition_offsets(ground.settings, topic.name, group)):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{group} has not finished after {HOME_SECONDS:.0f} s")
                time.sleep(0.5)


def tell_uploads(bursts: Sequence[Burst], uploads: Sequence[Upload]) -> bool:
    """Prints what clients saw; whether each was accepted, or refused by a stated limit."""
    times: list[list[Upload]] = []
    for burst in bursts:
        during = [each for each in uploads if burst.began <= each.due < burst.ended]
        times.append(during)
        answers = Counter((each.status, each.code) for each in during)
        told = ", ".join(
            f"{count} x {status} {code}".strip() for (status, code), count in answers.most_common()
        )
        print(f"burst: {len(during)} uploads in {burst.ended - burst.began:.0f} s: {told}", flush=True)
    usual = [each.seconds * 1000 for each in uploads if each.due < bursts[0].began]
    for share in (0.5, 0.99):
        figure(f"burst: upload p{share * 100:.0f}, before", [percentile(usual, share)], "ms")
        taken = [percentile([each.seconds * 1000 for each in during], share) for during in times]
        figure(f"burst: upload p{share * 100:.0f}, in a burst", taken, "ms")
    stalls = [longest_gap([each.due + each.seconds for each in during]) for during in times]
    figure("burst: longest time without an answer", stalls, "s")
    unstated = [each for each in uploads if each.status != 202 and (each.status, each.code) not in STATED]
    refused = sum(each.status != 202 for each in uploads)
    print(
        f"burst: {refused} of {len(uploads)} refused, {len(unstated)} of them by no stated limit", flush=True
    )
    for each in unstated[:10]:
        print(f"  {each}")
    return not unstated


def longest_gap(times: Sequence[float]) -> float:
    """The longest time between one and the next. times: in any order."""
    return max((later - earlier for earlier, later in pairwise(sorted(times))), default=0.0)


def tell_lag(bursts: Sequence[Burst], samples: Sequence[Sample]) -> None:
    after = [[each for each in samples if burst.began <= each.at <= burst.drained] for burst in bursts]
    for group in samples[-1].messages:
        behind = [float(max(each.messages[group] for each in some)) for some in after]
        figure(f"burst: longest lag of {group}", behind, "messages")
        figure(
            f"burst: longest lag of {group}",
            [max((each.seconds.get(group, 0.0) for each in some), default=0.0) for some in after],
            "s",
        )
    drained = [burst.drained - burst.ended for burst in bursts]
    figure("burst: from its end until drained", drained, "s")
    outbox = [float(max(each.outbox for each in some)) for some in after]
    figure("burst: most pictures in the outbox", outbox, "pictures")


def tell_memory(bursts: Sequence[Burst], samples: Sequence[Sample], bounds: Mapping[str, int]) -> bool:
    """Prints the highest level of each process in each burst; whether all stayed within `bounds`."""
    well = True
    ends = [*(burst.began for burst in bursts[1:]), samples[-1].at]
    for name in samples[-1].memory:
        before = highest(samples, name, samples[0].at, bursts[0].began)
        levels = [highest(samples, name, burst.began, end) for burst, end in zip(bursts, ends, strict=True)]
        figure(f"burst: memory of {name}, highest", levels, "MiB")
        further = f"{before:.0f} MiB before; last burst / first {levels[-1] / levels[0]:.3f}"
        if name in bounds:
            further += f"; the container may take {bounds[name] / 2**20:.0f} MiB"
            well = well and max(levels) * 2**20 <= bounds[name]
        print(f"{'':<44} {further}", flush=True)
    return well


def highest(samples: Iterable[Sample], name: str, since: float, until: float) -> float:
    """MiB."""
    return (
        max(each.memory[name] for each in samples if since <= each.at <= until and name in each.memory)
        / 2**20
    )


def tell_results(ground: Ground, uploads: Sequence[Upload]) -> bool:
    """Prints what is missing of what was accepted, and what was done twice."""
    accepted = {each.image_id: int(each.image_id.split("-")[1]) for each in uploads if each.status == 202}
    labelled = {
        image_id
        for (image_id,) in ground.query(
            "SELECT image_id FROM predictions GROUP BY image_id HAVING count(*) = %s", CLASSIFIERS
        )
    }
    done: dict[str, set[str]] = {}
    states: Counter[str] = Counter()
    for image_id, worker, state in ground.query("SELECT image_id, worker, state FROM task_outcomes"):
        states[state] += 1
        if state == "done":
            done.setdefault(image_id, set()).add(worker)
    worker_of = {"classify": "feature-extractor", "qr": "qr-decoder", "ocr": "ocr-worker"}
    missing = [
        image_id
        for image_id, number in accepted.items()
        if image_id not in labelled
        or not {worker_of[task] for task in tasks_of(number)} <= done.get(image_id, set())
    ]
    pages = sum("ocr" in tasks_of(number) for number in accepted.values())
    print(f"burst: {len(accepted) - len(missing)} of {len(accepted)} have all results, {pages} with text")
    for image_id in missing[:10]:
        print(f"  {image_id} lacks some: {sorted(done.get(image_id, ()))}")
    print(f"burst: outcomes by state: {dict(states)}")
    ((pictures,),) = ground.query("SELECT count(*) FROM images")
    print(f"burst: pictures that nobody was told of: {pictures - len(accepted)}")
    twice = {
        topic.name: sum(each.high for each in partition_offsets(ground.settings, topic.name, "nobody"))
        - len(accepted)
        for topic in (IMAGES, FEATURES)
    }
    for name, count in twice.items():
        print(f"burst: {name}: {count} records more than pictures", flush=True)
    return not missing and "failed" not in states and not any(twice.values())


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="mesh bench burst", description=__doc__)
    parser.add_argument("--rate", type=float, default=10, help="pictures a second, usually")
    parser.add_argument("--times", type=float, default=10, help="the usual rate in a burst")
    parser.add_argument("--seconds", type=float, default=60, help="of a burst")
    parser.add_argument("--rest", type=float, default=15, help="seconds of the usual rate around a burst")
    parser.add_argument("--bursts", type=int, default=2)
    parser.add_argument("--stack", choices=("native", "embedded"), default="native")
    parser.add_argument("--upload", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.upload is not None:
        upload_for_ever(options.upload, options.out)
        return 0
    with whole_mesh(options.stack) as ground:
        bursts, samples, uploads = run(ground, options)
        # The embedded servers are others than those in containers.
        bounds = limits() if options.stack == "native" else {}
        verdicts = (
            tell_uploads(bursts, uploads),
            tell_results(ground, uploads),
            tell_memory(bursts, samples, bounds),
        )
        tell_lag(bursts, samples)
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
