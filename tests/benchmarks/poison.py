"""`poison`: what messages that can never work cost their neighbours, and whether a replay brings them home.

The whole mesh, one replica of each service; no edge device. Pictures come in at a steady rate, well below
what the mesh can do, through `POST /upload`. The stream goes on without a break and is counted in blocks of
100 messages, clean and poisoned as A B B A: in a poisoned one, one message is published beside the others
that cannot be worked on, of each kind in turn. So what the machine does in a minute it does to both. A
neighbour's time runs from the start of its upload to when its last prediction (or its QR result) was
written, by Postgres's clock, which is that of this machine.

Afterwards: every group has one dead letter for each poisoned message that is its business and none besides;
what can be put right in the object store is, `mesh dlq replay` is run, and every picture has its results.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psycopg
from confluent_kafka import Producer
from PIL import Image

from benchmarks.figures import figure, percentile, ratio
from benchmarks.replicas import unlike_any
from benchmarks.servers import prepared
from chaos.rig import held
from visionmesh.mesh import Mesh
from visionmesh.object_store import S3ObjectStore
from visionmesh.settings import ROOT, Settings
from visionmesh.stack import Stack, StackKind, open_stack
from visionmesh.topics import IMAGES
from visionmesh.worker.dead_letters import DeadLetter, read_dead_letters

# Of each message, poisoned or not; reading text takes a hundred times as long as all else.
TASKS = ("classify", "qr")
WORKERS = ("feature-extractor", "qr-decoder")
CLASSIFIERS = 3

# How long everything may take to come home. No measurement: a hang must end.
HOME_SECONDS = 600.0

_CLIENTS = 8
# The server gives up a connection that nobody used for 5 s.
_IDLE_SECONDS = 2.0
# Of which one is poison, where any is.
_BLOCK = 100
_DRAWS = 1000


@dataclass(frozen=True)
class Kind:
    """One way in which a message is wrong.

    code: of its dead letters; None for what the mesh bears. readers: the groups that find it wrong.
    mendable: whether another object at its path puts it right.
    """

    name: str
    code: str | None
    readers: tuple[str, ...] = WORKERS
    mendable: bool = True


KINDS = (
    Kind("object missing", "object_not_found"),
    Kind("JPEG cut off", "truncated_image"),
    Kind("PNG, a wrong byte", "corrupt_image"),
    Kind("decompression bomb", "too_many_pixels"),
    Kind("not JSON", "invalid_message", IMAGES.consumers, mendable=False),
    Kind("path with ..", "bad_path", mendable=False),
    Kind("digest of another", None, mendable=False),
)


def photograph(number: int) -> bytes:
    """A JPEG of 320 x 240, unlike any other; every second one shows a QR code."""
    noise = np.random.default_rng(number).integers(0, 255, (12, 16, 3), np.uint8)
    picture = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
    if number % 2:
        with Image.open(ROOT / "samples" / "qr.png") as code:
            picture.paste(code.convert("RGB"), (60, 20))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return unlike_any(buffer.getvalue())


def bomb() -> bytes:
    """A PNG of a few kilobytes that announces 400 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def spoilt(kind: Kind, bombs: bytes) -> bytes | None:
    """What lies at the path of such a message; None is nothing."""
    good = photograph(1)
    if kind.name == "object missing":
        return None
    if kind.name == "JPEG cut off":
        return good[: len(good) // 2]
    if kind.name == "PNG, a wrong byte":
        png = bytearray((ROOT / "samples" / "qr.png").read_bytes())
        png[20] ^= 0xFF
        return bytes(png)
    return bombs if kind.name == "decompression bomb" else good


def message(kind: Kind, image_id: str) -> bytes:
    path = f"raw-images/poison/{image_id}.jpg"
    if kind.name == "not JSON":
        return b"image " + image_id.encode() + b" is at " + path.encode()
    value: dict[str, Any] = {"image_id": image_id, "minio_path": path, "tasks": TASKS}
    if kind.name == "path with ..":
        value["minio_path"] = f"raw-images/../secrets/{image_id}.jpg"
    if kind.code is None:
        value["sha256"] = f"{random.Random(image_id).getrandbits(256):064x}"
    return json.dumps(value).encode()


class Client:
    """One keep-alive connection to ingest-api; the standard library's, for the generator shares the cores."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._used = 0.0

    def upload(self, data: bytes, image_id: str, tasks: Sequence[str]) -> tuple[int, str]:
        """The status, and the code of what is no picture taken in."""
        boundary = "visionmesh-bench-7f3a"
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="p.jpg"\r\n'
            f"Content-Type: image/jpeg\r\n\r\n".encode()
            + data
            + f"\r\n--{boundary}--\r\n".encode()
        )
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        if time.monotonic() - self._used > _IDLE_SECONDS:
            self._connection.close()
        try:
            path = f"/upload?image_id={image_id}&tasks={','.join(tasks)}"
            self._connection.request("POST", path, body, headers)
            response = self._connection.getresponse()
            return response.status, str(json.loads(response.read()).get("code", ""))
        except BaseException:
            # What is left of the answer is not the next one's.
            self._connection.close()
            raise
        finally:
            self._used = time.monotonic()


@dataclass(frozen=True)
class Ground:
    """A running mesh, and the ways to it that a benchmark takes."""

    directory: Path
    stack: Stack
    mesh: Mesh
    settings: Settings

    @property
    def url(self) -> str:
        return self.mesh.url_of("ingest-api")

    def query(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.stack.endpoints.postgres_dsn) as connection:
            return connection.execute(statement, arguments).fetchall()


@contextmanager
def whole_mesh(kind: StackKind) -> Iterator[Ground]:
    """One replica of each service that has to do with pictures, on a stack of its own."""
    with (
        TemporaryDirectory(prefix="mesh-bench-") as name,
        open_stack(kind, Path(name) / "stack") as stack,
        held(Path(name)),
    ):
        settings = prepared(stack.endpoints, make_topics=kind == "native")
        mesh = Mesh(Path(name), ports="free", scale={"edge-publisher": 0, "sensor-sink": 0})
        with mesh.started(stack.endpoints.environment()):
            mesh.wait_until_ready(300)
            stop = threading.Event()
            keeper = threading.Thread(target=mesh.keep, args=(stop.is_set,))
            keeper.start()
            try:
                yield Ground(Path(name), stack, mesh, settings)
            finally:
                stop.set()
                keeper.join()


@dataclass
class Block:
    """100 messages. Of the neighbours: milliseconds to the third prediction, and to the QR result.

    poison: the kind of its one poisoned message, None in a clean block. behind: of `labels` and `codes`, the
    slowest neighbour that was sent within a second from the poison on; 0 for a clean block.
    """

    poison: Kind | None
    labels: list[float]
    codes: list[float]
    behind: dict[str, float]

    def of(self, name: str) -> list[float]:
        found: list[float] = getattr(self, name)
        return found


class Load:
    """Streams of messages, and the poison that was put into them."""

    def __init__(self, ground: Ground, rate: float, seed: int) -> None:
        self._ground = ground
        self._rate = rate
        self._random = random.Random(seed)
        self._streams = 0
        self._local = threading.local()
        self._store = S3ObjectStore.from_settings(ground.settings)
        bootstrap = ground.settings.kafka_bootstrap
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "log_level": 3})
        self._bomb = bomb()
        # Drawing a picture takes longer than taking it in.
        self._photographs = [photograph(number) for number in range(64)]
        self.poison: dict[str, Kind] = {}

    def stream(self, poisoned: Sequence[bool]) -> list[Block]:
        """Sends a block for each of `poisoned`, every message when it is due, and waits until all neighbours
        are home.
        """
        self._streams += 1
        slots = dict(self._prepare(poisoned))
        sent: dict[int, float] = {}
        began = time.time()
        with ThreadPoolExecutor(_CLIENTS) as clients:
            waiting = []
            for number in range(_BLOCK * len(poisoned)):
                time.sleep(max(0.0, began + number / self._rate - time.time()))
                sent[number] = time.time()
                if number in slots:
                    image_id = slots[number]
                    value = message(self.poison[image_id], image_id)
                    self._producer.produce(IMAGES.name, value, image_id)
                    self._producer.poll(0)
                else:
                    waiting.append(clients.submit(self._upload, number))
            for upload in waiting:
                upload.result()
        assert self._producer.flush(30) == 0
        wait_home(self._ground, f"good-{self._streams}-%", len(waiting))
        return self._blocks(len(poisoned), sent, slots)

    def _prepare(self, poisoned: Sequence[bool]) -> Iterator[tuple[int, str]]:
        """Where in the stream its poison comes, and under which ids."""
        for block in (number for number, chosen in enumerate(poisoned) if chosen):
            kind = KINDS[len(self.poison) % len(KINDS)]
            image_id = f"poison-{self._streams}-{block}"
            self.poison[image_id] = kind
            data = spoilt(kind, self._bomb)
            if data is not None:
                self.put(image_id, data)
            # Not so late that its neighbours are those of the next block.
            yield block * _BLOCK + self._random.randrange(_BLOCK // 2), image_id

    def close(self) -> None:
        """Before the servers are, of whose end the client would go on speaking."""
        del self._producer

    def put(self, image_id: str, data: bytes) -> None:
        self._store.put(f"raw-images/poison/{image_id}.jpg", [data], media_type="image/jpeg")

    def _upload(self, number: int) -> None:
        if not hasattr(self._local, "client"):
            self._local.client = Client(self._ground.url)
        image_id = f"good-{self._streams}-{number}"
        data = unlike_any(self._photographs[number % len(self._photographs)])
        status, code = self._local.client.upload(data, image_id, TASKS)
        assert status == 202, f"{image_id}: {status} {code}"

    def _blocks(self, count: int, sent: Mapping[int, float], slots: Mapping[int, str]) -> list[Block]:
        kinds = {number // _BLOCK: self.poison[image_id] for number, image_id in slots.items()}
        times = {number // _BLOCK: sent[number] for number in slots}
        blocks = [Block(kinds.get(number), [], [], {"labels": 0.0, "codes": 0.0}) for number in range(count)]
        statements = {
            "labels": "SELECT image_id, extract(epoch FROM max(created_at))::float8 FROM predictions "
            "WHERE image_id LIKE %s GROUP BY image_id",
            "codes": "SELECT image_id, extract(epoch FROM finished_at)::float8 FROM task_outcomes "
            "WHERE image_id LIKE %s AND worker = 'qr-decoder'",
        }
        for name, statement in statements.items():
            for image_id, at in self._ground.query(statement, f"good-{self._streams}-%"):
                number = int(image_id.rpartition("-")[2])
                index = number // _BLOCK
                taken = (at - sent[number]) * 1000
                blocks[index].of(name).append(taken)
                # One that was sent shortly before may be in the same batch.
                if index in times and -0.1 < sent[number] - times[index] < 1:
                    blocks[index].behind[name] = max(blocks[index].behind[name], taken)
        return blocks


def home(ground: Ground, like: str) -> int:
    """Pictures that have all predictions and their QR result."""
    ((found,),) = ground.query(
        "SELECT count(*) FROM task_outcomes JOIN (SELECT image_id FROM predictions WHERE image_id LIKE %s "
        "GROUP BY image_id HAVING count(*) = %s) AS labelled USING (image_id) "
        "WHERE worker = 'qr-decoder' AND state = 'done'",
        like,
        CLASSIFIERS,
    )
    return int(found)


def wait_home(ground: Ground, like: str, count: int) -> None:
    deadline = time.monotonic() + HOME_SECONDS
    while (found := home(ground, like)) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{found} of {count} pictures are home after {HOME_SECONDS:.0f} s: {like}")
        time.sleep(0.25)


def measure(load: Load, pairs: int, rounds: int) -> None:
    """Prints the neighbours' times of both kinds of blocks, and the ratios of their p99."""
    order = [poisoned for pair in range(pairs) for poisoned in ((False, True), (True, False))[pair % 2]]
    blocks = load.stream(order)
    clean = [block for block in blocks if block.poison is None]
    poisoned = [block for block in blocks if block.poison is not None]
    for name in ("labels", "codes"):
        for kind, some in (("clean", clean), ("poisoned", poisoned)):
            for share in (0.5, 0.99):
                values = [percentile(_together(each, name), share) for each in _shared_out(some, rounds)]
                figure(f"poison: upload to {name}, {kind}, p{share * 100:.0f}", values, "ms")
        ratio(
            f"poison: {name}, p99 poisoned / clean",
            [_p99(some, name) for some in _shared_out(poisoned, rounds)],
            [_p99(some, name) for some in _shared_out(clean, rounds)],
            "<= 1.2",
        )
        tell_spread(name, clean, poisoned)
        for kind_ in KINDS:
            behind = [block.behind[name] for block in poisoned if block.poison is kind_]
            if behind:
                figure(f"poison: {name}, slowest with {kind_.name}", behind, "ms")


def tell_spread(name: str, clean: Sequence[Block], poisoned: Sequence[Block]) -> None:
    """Prints the ratio of all blocks with its bootstrap interval, and what chance makes of clean ones alone.

    Pairs of neighbouring blocks are drawn again, with replacement (Efron, 1979); the clean blocks are parted
    in two at random.
    """
    chance = random.Random(1)
    pairs = list(zip(clean, poisoned, strict=True))
    ratios, alike = [], []
    for _ in range(_DRAWS):
        drawn = chance.choices(pairs, k=len(pairs))
        ratios.append(_p99([pair[1] for pair in drawn], name) / _p99([pair[0] for pair in drawn], name))
        mixed = chance.sample(clean, len(clean))
        half = len(mixed) // 2
        if half:
            alike.append(_p99(mixed[:half], name) / _p99(mixed[half:], name))
    found = _p99(poisoned, name) / _p99(clean, name)
    print(
        f"poison: {name}, all {len(pairs)} pairs: {found:.3f} x; 90 % of draws lie between "
        f"{percentile(ratios, 0.05):.3f} and {percentile(ratios, 0.95):.3f}"
    )
    if alike:
        print(
            f"poison: {name}, halves of the clean blocks: 90 % lie between {percentile(alike, 0.05):.3f} and "
            f"{percentile(alike, 0.95):.3f}",
            flush=True,
        )


def _shared_out(blocks: Sequence[Block], rounds: int) -> list[Sequence[Block]]:
    """As many consecutive parts as there are rounds, of which none is empty."""
    rounds = min(rounds, len(blocks))
    ends = [len(blocks) * number // rounds for number in range(rounds + 1)]
    return [blocks[begin:end] for begin, end in pairwise(ends)]


def _together(blocks: Sequence[Block], name: str) -> list[float]:
    return [taken for block in blocks for taken in block.of(name)]


def _p99(blocks: Sequence[Block], name: str) -> float:
    return percentile(_together(blocks, name), 0.99)


def letters(ground: Ground, group: str) -> list[DeadLetter]:
    """Those that were not sent home yet."""
    topic = IMAGES.dead_letters(group)
    return [letter for letter in read_dead_letters(ground.settings, topic) if not letter.replayed]


def check_letters(ground: Ground, poison: Mapping[str, Kind]) -> bool:
    """Whether every group has a dead letter for each message that is its business, and none besides."""
    well = True
    for group in IMAGES.consumers:
        expected = sorted(
            (image_id, kind.code)
            for image_id, kind in poison.items()
            if kind.code is not None and group in kind.readers
        )
        deadline = time.monotonic() + HOME_SECONDS
        while len(found := _named(letters(ground, group))) < len(expected) and time.monotonic() < deadline:
            time.sleep(0.5)
        well = well and found == expected
        print(f"poison: dead letters of {group}: {len(found)} of {len(expected)}", flush=True)
        for name in sorted(set(found) ^ set(expected)):
            print(f"  {name}: {'missing' if name in expected else 'not expected'}")
    borne = [image_id for image_id, kind in poison.items() if kind.code is None]
    served = sum(home(ground, image_id) for image_id in borne)
    print(f"poison: digest of another: {served} of {len(borne)} have their results", flush=True)
    return well and served == len(borne)


def _named(found: Sequence[DeadLetter]) -> list[tuple[str, str | None]]:
    return sorted(((each.key or b"").decode(), each.headers.get("x-error-code")) for each in found)


def replay(ground: Ground, load: Load) -> bool:
    """Puts right what can be, sends all dead letters home, and says what became of them."""
    mended = [image_id for image_id, kind in load.poison.items() if kind.mendable]
    hopeless = {image_id: kind for image_id, kind in load.poison.items() if kind.code and not kind.mendable}
    for number, image_id in enumerate(mended):
        load.put(image_id, photograph(number))
    began = time.monotonic()
    for group in IMAGES.consumers:
        topic = IMAGES.dead_letters(group)
        if not letters(ground, group):
            continue
        command = [sys.executable, "-m", "visionmesh.cli", "dlq", "replay", topic, "--yes"]
        said = subprocess.run(
            [*command, "--directory", str(ground.directory)], check=True, capture_output=True, text=True
        ).stdout
        print(f"poison: mesh dlq replay {topic}: {said.strip()}", flush=True)
    deadline = time.monotonic() + HOME_SECONDS
    while (found := sum(home(ground, image_id) for image_id in mended)) < len(mended):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    print(f"poison: home after the fix: {found} of {len(mended)}", flush=True)
    figure("poison: from the replay to the last result", [time.monotonic() - began], "s")
    well = found == len(mended)
    for group in IMAGES.consumers:
        expected = {image_id for image_id, kind in hopeless.items() if group in kind.readers}
        while not expected <= {image_id for image_id, _ in _named(letters(ground, group))}:
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        again = _named(letters(ground, group))
        codes = dict(Counter(code for _, code in again))
        print(f"poison: {group}: {len(expected)} can't be mended and are dead letters again: {codes}")
        well = well and {image_id for image_id, _ in again} == expected
    return well


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="mesh bench poison", description=__doc__)
    parser.add_argument("--pairs", type=int, default=35, help="of a clean and a poisoned block")
    parser.add_argument("--rounds", type=int, default=5, help="that the pairs are shared out to, for spread")
    parser.add_argument("--rate", type=float, default=20, help="messages a second")
    parser.add_argument("--stack", choices=("native", "embedded"), default="native")
    parser.add_argument("--seed", type=int, default=1, help="of the places of the poison")
    options = parser.parse_args(arguments)
    with whole_mesh(options.stack) as ground:
        load = Load(ground, options.rate, options.seed)
        load.stream([False])
        measure(load, options.pairs, options.rounds)
        as_expected = check_letters(ground, load.poison)
        came_home = replay(ground, load)
        load.close()
    return 0 if as_expected and came_home else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
