"""`reliability`: nothing is lost and nothing is doubled, whatever dies: the whole mesh under uploads while
its processes are killed and its servers go away, and then a look at everything that was to come of it.

Pictures come over HTTP under ids of the client's own, which asks again when a connection breaks or a server
is away. A part of them has QR codes, a few have a text to be read; a device's sensors give readings all the
while. SIGKILL goes to every kind of process in turn, to a replica and at a moment of chance; servers are
killed and restarted in the same way (of the embedded ones, those that keep what they have). The pace follows
what the mesh has not finished. The status is 1 if anything is not as it has to be.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import segno
from PIL import Image, ImageDraw

from benchmarks.figures import figure, percentile
from benchmarks.reliability_checks import Checks, Uploaded, check_everything
from benchmarks.replicas import memory_of
from chaos import rig as chaos_rig
from chaos.rig import Rig, eventually, open_rig
from chaos.strikes import Strikes, spread
from visionmesh.mesh import SERVICES
from visionmesh.stack import StackKind

# Two of what there may be two of, as far as two cores carry them.
SCALE = {
    "ingest-api": 2,
    "feature-extractor": 2,
    "classifier-fast": 2,
    "qr-decoder": 2,
    "ocr-worker": 1,
    "edge-publisher": 1,
    "sensor-sink": 2,
}

# What an outage takes from a server that keeps its data. The cache keeps nothing, and nobody may miss it.
SERVERS: dict[StackKind, tuple[str, ...]] = {
    "native": ("kafka", "s3", "postgres", "cache"),
    "embedded": ("postgres", "cache"),
}

EDGE = {
    "EDGE_DEVICE_ID": "reliability",
    "EDGE_SENSORS": '["tfluna", "mpu6050", "hcsr04"]',
    "EDGE_SIMULATE": "all",
    "EDGE_TFLUNA_HZ": "20",
    "EDGE_MPU6050_HZ": "20",
}

CODES_EVERY = 5
TEXT_EVERY = 200

CLIENTS = 8
# A message per picture and worker that was not worked on yet; beyond this many uploads wait.
MOST_OPEN = 6 * 500
# Answers after which a client may ask again.
RETRYABLE = (429, 503)
_LONGEST_PAUSE_SECONDS = 5.0
_GIVE_UP_SECONDS = 600.0
_HOME_SECONDS = 600.0
_LOOK_SECONDS = 1.0
_TELL_SECONDS = 30.0


def codes_of(number: int) -> tuple[str, ...]:
    """What the QR codes of a picture hold: none, one or two."""
    if number % CODES_EVERY != 1:
        return ()
    return tuple(f"reliability {number}, code {place}" for place in range(1 + number // CODES_EVERY % 2))


def text_of(number: int) -> str | None:
    """What is written in a picture; letters that no font makes look alike."""
    if number % TEXT_EVERY:
        return None
    return f"Page number {100 + number // TEXT_EVERY}\nof the reliability run"


def picture(number: int) -> bytes:
    """A JPEG with the codes or the text of its number, different for each."""
    codes, text = codes_of(number), text_of(number)
    if not codes and text is None:
        return chaos_rig.picture(number)
    sheet = Image.new("L", (420, 190), 240)
    for place, content in enumerate(codes):
        file = io.BytesIO()
        segno.make(content, error="m", micro=False).save(file, kind="png", scale=5)
        sheet.paste(Image.open(file).convert("L"), (10 + 205 * place, 5))
    if text is not None:
        draw = ImageDraw.Draw(sheet)
        for row, line in enumerate(text.splitlines()):
            draw.text((15, 25 + 70 * row), line, fill=0, font_size=36)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=90, comment=str(number))
    return buffer.getvalue()


@dataclass
class Uploads:
    """Clients that upload pictures until each is accepted.

    rate: pictures per second at most. seconds: after which none is begun any more. answers: how often each
    was given, an exception's name among them. repeated: ids that were sent more than once. wrong: answers
    that no upload may have.
    """

    rig: Rig
    count: int
    rate: float
    seconds: float
    accepted: dict[str, Uploaded] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    repeated: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._urls = [replica.url for replica in self.rig.replicas_of("ingest-api")]
        # A moment for the mesh to catch up: set while uploads may go on.
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def run(self) -> None:
        """Returns when every picture was accepted, or given up."""
        began = time.monotonic()
        with httpx.Client(timeout=60) as client, ThreadPoolExecutor(CLIENTS) as clients:

            def one(number: int) -> None:
                time.sleep(max(0.0, began + number / self.rate - time.monotonic()))
                self.may_go_on.wait()
                if time.monotonic() - began < self.seconds:
                    self._upload(client, number)

            list(clients.map(one, range(self.count)))

    def _upload(self, client: httpx.Client, number: int) -> None:
        data = picture(number)
        # Text is asked for by asking for everything.
        form = {"image_id": f"reliability-{number:05}"} | (
            {} if text_of(number) else {"tasks": "classify,qr"}
        )
        until = time.monotonic() + _GIVE_UP_SECONDS
        attempt = 0
        while time.monotonic() < until:
            # As a gateway would: the next replica, when one does not answer.
            url = self._urls[(number + attempt) % len(self._urls)]
            answer = self._try(client, url, form, data, is_first=attempt == 0)
            if answer is None:
                uploaded = Uploaded(hashlib.sha256(data).hexdigest(), codes_of(number), text_of(number))
                with self._lock:
                    self.accepted[form["image_id"]] = uploaded
                return
            attempt += 1
            with self._lock:
                self.repeated.add(form["image_id"])
            time.sleep(answer)
        self._say_wrong(f"{form['image_id']}: not accepted within {_GIVE_UP_SECONDS:.0f} s")

    def _try(
        self, client: httpx.Client, url: str, form: dict[str, str], data: bytes, *, is_first: bool
    ) -> float | None:
        """None when the picture is accepted, else the seconds to wait before it is sent again."""
        try:
            answer = client.post(f"{url}/upload", data=form, files={"file": ("p.jpg", data, "image/jpeg")})
        except httpx.TransportError as error:
            self._count(type(error).__name__)
            return 0.2
        self._count(str(answer.status_code))
        # The second is the answer to a picture that is there, which may only be said to who comes again.
        if answer.status_code == 202 or (answer.status_code == 200 and not is_first):
            return None
        if answer.status_code not in RETRYABLE:
            self._say_wrong(f"{form['image_id']}: {answer.status_code} {answer.text[:200]}")
        return min(float(answer.headers.get("retry-after", 1)), _LONGEST_PAUSE_SECONDS)

    def _count(self, answer: str) -> None:
        with self._lock:
            self.answers[answer] += 1

    def _say_wrong(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what)


@dataclass
class Watch:
    """Looks at the running mesh: holds uploads back while it has too much to do, and sees its memory.

    open_at_most: messages that were not worked on, a picture counting once for each worker. memory: of the
    largest replica of each service, bytes.
    """

    rig: Rig
    uploads: Uploads
    strikes: Strikes
    open_at_most: int = 0
    memory: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def looking(self) -> Iterator[None]:
        over = threading.Event()

        def look() -> None:
            told = time.monotonic()
            while not over.wait(_LOOK_SECONDS):
                waiting = self._look()
                if time.monotonic() - told > _TELL_SECONDS:
                    told = time.monotonic()
                    self._tell(waiting)
                    self.weigh()

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.uploads.may_go_on.set()

    def finished(self) -> int:
        (row,) = self.rig.query("SELECT count(*) FROM task_outcomes WHERE state <> 'running'")
        return int(row[0])

    def expected(self) -> int:
        """Every worker of pictures comes to an end with every picture, if only that it was not asked."""
        return 6 * len(self.uploads.accepted)

    def _look(self) -> int | None:
        """How many messages wait; None, and everything as it was, while the database is away."""
        try:
            waiting = self.expected() - self.finished()
        except Exception:  # whatever psycopg makes of a server that was killed
            return None
        self.open_at_most = max(self.open_at_most, waiting)
        if waiting < MOST_OPEN:
            self.uploads.may_go_on.set()
        else:
            self.uploads.may_go_on.clear()
        return waiting

    def _tell(self, waiting: int | None) -> None:
        print(
            f"reliability: {len(self.uploads.accepted)} accepted, {waiting} open, "
            f"{len(self.strikes.killed)} kills, {len(self.strikes.outages)} restarts of servers",
            flush=True,
        )

    def weigh(self) -> None:
        for replica in self.rig.mesh.replicas:
            try:
                size = memory_of(replica.pid) if replica.pid is not None else 0
            except psutil.Error:
                continue
            name = replica.service.name
            self.memory[name] = max(self.memory.get(name, 0), size)


def run(rig: Rig, kind: StackKind, options: argparse.Namespace, queue: Path) -> bool:
    """Whether everything was as it has to be."""
    chance = random.Random(options.seed)
    uploads = Uploads(
        rig,
        options.pictures,
        rate=options.pictures / (60 * options.minutes),
        seconds=60 * (options.at_most or 4 * options.minutes),
    )
    strikes = Strikes(
        rig,
        kills=spread([service.name for service in SERVICES], options.kills, options.pictures, chance),
        restarts=spread(SERVERS[kind], options.server_restarts, options.pictures, chance),
        uploaded=lambda: len(uploads.accepted),
        chance=chance,
    )
    watch = Watch(rig, uploads, strikes)
    checks = Checks()
    began = time.monotonic()
    with watch.looking():
        strikes.start()
        try:
            uploads.run()
        finally:
            if len(uploads.accepted) < options.pictures:
                strikes.give_up()
            strikes.join()
        seconds = time.monotonic() - began
        checks.add("every blow was dealt", strikes.problems, told(strikes))
        checks.add("every upload was answered 202, or 200 when it came again, or might come again",
                   uploads.wrong, f"{dict(uploads.answers)}")  # fmt: skip
        came_home = time.monotonic()
        checks.holds(
            "everything came home",
            lambda: eventually(lambda: watch.finished() >= watch.expected(), "every outcome", _HOME_SECONDS),
        )
        came_home = time.monotonic() - came_home
        watch.weigh()
    check_everything(
        rig, checks, uploads.accepted, uploads.repeated, strikes.killed,
        queue=queue, ask=options.ask, chance=chance,
    )  # fmt: skip
    figure(f"reliability: pictures uploaded, of {options.pictures}", [len(uploads.accepted)], "")
    figure("reliability: processes killed", [len(strikes.killed)], "")
    figure("reliability: servers killed or restarted", [len(strikes.outages)], "")
    figure("reliability: uploads took", [seconds], "s")
    figure("reliability: from the last upload until all was done", [came_home], "s")
    figure("reliability: messages open at most", [watch.open_at_most], "")
    print_takeovers(strikes)
    for name, size in sorted(watch.memory.items()):
        figure(f"reliability: memory at most, {name}", [size / 2**20], "MiB")
    print(f"reliability: {'everything is as it has to be' if checks.passed else 'FAILED'}", flush=True)
    return checks.passed


def told(strikes: Strikes) -> str:
    """How many blows each kind of process and each server got."""
    kills = Counter(name.rpartition("-")[0] for name in strikes.killed)
    servers = Counter(f"{outage.server} {outage.how}" for outage in strikes.outages)
    return (
        f"{len(strikes.killed)} kills {dict(sorted(kills.items()))}, servers {dict(sorted(servers.items()))}"
    )


def print_takeovers(strikes: Strikes) -> None:
    """Of partitions that another replica took while every server was there all the time."""
    undisturbed = [
        takeover.seconds
        for takeover in strikes.takeovers
        if not any(
            outage.began < takeover.began + takeover.seconds and takeover.began < outage.ended
            for outage in strikes.outages
        )
    ]
    if undisturbed:
        figure("reliability: takeover after a kill (goal <= 8 s)", undisturbed, "s")
        figure("reliability: takeover after a kill, p95", [percentile(undisturbed, 0.95)], "s")


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="mesh bench reliability", description=__doc__)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--kills", type=int, default=9, help="of processes")
    parser.add_argument("--server-restarts", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=1.5, help="for the uploads, at the fastest")
    parser.add_argument("--at-most", type=float, metavar="MINUTES", help="for the uploads; 4 times those")
    parser.add_argument(
        "--ask", type=int, default=2000, help="pictures whose results are asked for over HTTP"
    )
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--stack", choices=["native", "embedded"], default="native")
    parser.add_argument("--directory", type=Path, help="of logs and data, which stay there")
    options = parser.parse_args(list(arguments))
    with TemporaryDirectory(prefix="mesh-bench-") as temporary:
        directory = options.directory or Path(temporary)
        queue = directory / "edge.db"
        settings = EDGE | {"EDGE_QUEUE_PATH": str(queue.absolute())}
        with open_rig(directory, options.stack, scale=SCALE, settings=settings) as rig:
            return 0 if run(rig, options.stack, options, queue) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
