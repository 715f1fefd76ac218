"""`poison`: what messages that can never work cost their neighbours, and whether a replay brings them home.

The whole mesh, one replica of each service; no edge device. Pictures come in at a steady rate, well below
what the mesh can do, through `POST /upload`. In every second round one message in a hundred is published
beside them that cannot be worked on, of each kind in turn. Clean and poisoned rounds follow one another as
A B B A. A neighbour's time runs from the start of its upload to when its last prediction (or its QR
result) was written, by Postgres's clock, which is that of this machine.

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
HOME_SECONDS = 300.0

_CLIENTS = 8
# The server gives up a connection that nobody used for 5 s.
_IDLE_SECONDS = 2.0
_ONE_IN = 100
_WARM_SECONDS = 5.0


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
    Kind("PNG with a wrong byte", "corrupt_image"),
    Kind("decompression bomb", "too_many_pixels"),
    Kind("not JSON", "invalid_message", IMAGES.consumers, mendable=False),
    Kind("path with ..", "bad_path", mendable=False),
    Kind("digest of another picture", None, mendable=False),
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
    if kind.name == "PNG with a wrong byte":
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


@dataclass(frozen=True)
class Times:
    """Of the neighbours in one round: milliseconds to the third prediction, and to the QR result."""

    labels: list[float]
    codes: list[float]


class Load:
    """Rounds of one stream, and the poison that was put into it."""

    def __init__(self, ground: Ground, rate: float, seconds: float, seed: int) -> None:
        self._ground = ground
        self._rate = rate
        self._seconds = seconds
        self._random = random.Random(seed)
        self._rounds = 0
        self._local = threading.local()
        self._store = S3ObjectStore.from_settings(ground.settings)
        bootstrap = ground.settings.kafka_bootstrap
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "log_level": 3})
        self._bomb = bomb()
        # Drawing a picture takes longer than taking it in.
        self._photographs = [photograph(number) for number in range(64)]
        self.poison: dict[str, Kind] = {}

    def round(self, *, poisoned: bool, seconds: float | None = None) -> Times:
        """Sends its messages, each when it is due, and waits until all neighbours are home."""
        self._rounds += 1
        count = int(self._rate * (seconds or self._seconds))
        slots = dict(self._prepare(count)) if poisoned else {}
        sent: dict[str, float] = {}
        began = time.time()
        with ThreadPoolExecutor(_CLIENTS) as clients:
            waiting = []
            for number in range(count):
                time.sleep(max(0.0, began + number / self._rate - time.time()))
                if number in slots:
                    image_id = slots[number]
                    value = message(self.poison[image_id], image_id)
                    self._producer.produce(IMAGES.name, value, image_id)
                    self._producer.poll(0)
                else:
                    image_id = f"good-{self._rounds}-{number}"
                    sent[image_id] = time.time()
                    waiting.append(clients.submit(self._upload, number, image_id))
            for upload in waiting:
                upload.result()
        assert self._producer.flush(30) == 0
        return self._times(sent)

    def _prepare(self, count: int) -> Iterator[tuple[int, str]]:
        """Where in the round its poison comes, and under which ids."""
        for block in range(0, count - _ONE_IN + 1, _ONE_IN):
            kind = KINDS[len(self.poison) % len(KINDS)]
            image_id = f"poison-{self._rounds}-{block}"
            self.poison[image_id] = kind
            data = spoilt(kind, self._bomb)
            if data is not None:
                self.put(image_id, data)
            yield block + self._random.randrange(_ONE_IN), image_id

    def put(self, image_id: str, data: bytes) -> None:
        self._store.put(f"raw-images/poison/{image_id}.jpg", [data], media_type="image/jpeg")

    def _upload(self, number: int, image_id: str) -> None:
        if not hasattr(self._local, "client"):
            self._local.client = Client(self._ground.url)
        data = unlike_any(self._photographs[number % len(self._photographs)])
        status, code = self._local.client.upload(data, image_id, TASKS)
        assert status == 202, f"{image_id}: {status} {code}"

    def _times(self, sent: Mapping[str, float]) -> Times:
        wait_home(self._ground, f"good-{self._rounds}-%", len(sent))
        labels = self._ground.query(
            "SELECT image_id, extract(epoch FROM max(created_at))::float8 FROM predictions "
            "WHERE image_id LIKE %s GROUP BY image_id",
            f"good-{self._rounds}-%",
        )
        codes = self._ground.query(
            "SELECT image_id, extract(epoch FROM finished_at)::float8 FROM task_outcomes "
            "WHERE image_id LIKE %s AND worker = 'qr-decoder'",
            f"good-{self._rounds}-%",
        )
        return Times(
            [(at - sent[image_id]) * 1000 for image_id, at in labels],
            [(at - sent[image_id]) * 1000 for image_id, at in codes],
        )


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


def measure(load: Load, pairs: int) -> None:
    """Prints the neighbours' times of both kinds of rounds, and their ratios pair by pair."""
    clean: list[Times] = []
    poisoned: list[Times] = []
    for pair in range(pairs):
        for with_poison in (False, True) if pair % 2 == 0 else (True, False):
            (poisoned if with_poison else clean).append(load.round(poisoned=with_poison))
        for name in ("labels", "codes"):
            print(
                f"  pair {pair + 1}: {name}, p99 {_p99(clean[-1], name):.0f} ms clean, "
                f"{_p99(poisoned[-1], name):.0f} ms poisoned",
                flush=True,
            )
    for name in ("labels", "codes"):
        for kind, rounds in (("clean", clean), ("poisoned", poisoned)):
            for share in (0.5, 0.99):
                values = [percentile(getattr(each, name), share) for each in rounds]
                figure(f"poison: upload to {name}, {kind}, p{share * 100:.0f}", values, "ms")
        ratio(
            f"poison: {name}, p99 poisoned / clean",
            [_p99(each, name) for each in poisoned],
            [_p99(each, name) for each in clean],
            "<= 1.2",
        )
        together = [
            percentile([value for each in rounds for value in getattr(each, name)], 0.99)
            for rounds in (poisoned, clean)
        ]
        figure(f"poison: {name}, the same of all rounds together", [together[0] / together[1]], "x")
        if pairs > 1:
            # What the machine does to two rounds that are alike.
            same = [_p99(b, name) / _p99(a, name) for a, b in pairwise(clean)]
            figure(f"poison: {name}, p99 clean / the clean before", same, "x")


def _p99(times: Times, name: str) -> float:
    return percentile(getattr(times, name), 0.99)


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
    print(f"poison: digest of another picture: {served} of {len(borne)} have their results", flush=True)
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
    parser.add_argument("--pairs", type=int, default=5, help="of a clean and a poisoned round")
    parser.add_argument("--seconds", type=float, default=30, help="of one round")
    parser.add_argument("--rate", type=float, default=25, help="messages a second")
    parser.add_argument("--stack", choices=("native", "embedded"), default="native")
    parser.add_argument("--seed", type=int, default=1, help="of the places of the poison")
    options = parser.parse_args(arguments)
    with whole_mesh(options.stack) as ground:
        load = Load(ground, options.rate, options.seconds, options.seed)
        load.round(poisoned=False, seconds=_WARM_SECONDS)
        measure(load, options.pairs)
        as_expected = check_letters(ground, load.poison)
        came_home = replay(ground, load)
    return 0 if as_expected and came_home else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
