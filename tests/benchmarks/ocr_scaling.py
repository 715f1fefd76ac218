"""`ocr-scaling`: pages per minute by every way of scaling ocr-worker, in one run; all but the queue
take turns.

Some callers send one page after the other to `POST /ocr`: of a worker with one engine (they take turns, as at
a semaphore), of one with two engines, of two workers with one engine each (the callers' pages go to them in
turn), and of a worker that asks PaddleX's server, when `--paddlex` says where that listens. Then the same
pages go through the queue to the two workers. Every engine has one thread.

The pages are drawn, unless `--pictures` names a folder of them.
"""

from __future__ import annotations

import argparse
import io
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
from PIL import Image, ImageDraw

from benchmarks.figures import figure, ratio
from benchmarks.ocr_soak import held
from benchmarks.replicas import started
from visionmesh.database import migrate
from visionmesh.mesh import Replica, Service
from visionmesh.object_store import S3ObjectStore
from visionmesh.settings import Settings
from visionmesh.stack import open_stack

PATIENCE_SECONDS = 600.0


def main(arguments: Sequence[str]) -> int:
    """`mesh bench ocr-scaling`."""
    parser = argparse.ArgumentParser(prog="mesh bench ocr-scaling", description=__doc__)
    parser.add_argument("--pages", type=int, default=24, help="of each way and round")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=Path, help="a folder of pictures, instead of drawn pages")
    parser.add_argument("--paddlex", help="the address of a server of PaddleX")
    options = parser.parse_args(list(arguments))
    pages = pages_of(options.pictures, options.pages)
    with ExitStack() as exits:
        directory = Path(exits.enter_context(TemporaryDirectory(prefix="mesh-bench-")))
        stack = exits.enter_context(open_stack("embedded", directory / "stack"))
        migrate(stack.endpoints.postgres_dsn)
        S3ObjectStore.from_settings(
            Settings(
                s3_endpoint=stack.endpoints.s3_endpoint,
                s3_access_key=stack.endpoints.s3_access_key,  # type: ignore[arg-type]
                s3_secret_key=stack.endpoints.s3_secret_key,  # type: ignore[arg-type]
            )
        ).ensure_buckets()
        environment = dict(stack.endpoints.environment())
        services = [Service("ingest-api", "ingest_api", None)]
        (ingest,) = exits.enter_context(started(services, directory, environment))
        # A machine that is busy with other things is slow, and that is no failure here.
        patient = {"MESH_OCR_PAGE_SECONDS": "600", "MESH_OCR_DEADLINE_SECONDS": "600"}
        environment |= {"MESH_INGEST_URL": ingest.url, "MESH_OCR_THREADS": "1", **patient}
        ways = workers(options.paddlex)
        found = exits.enter_context(started(list(ways), directory, environment))
        replicas = dict(zip((service.name for service in ways), found, strict=True))
        measure(replicas, pages, options.callers, options.rounds)
    return 0


def workers(paddlex: str | None) -> list[Service]:
    """The workers that are measured, by the names of the ways."""
    found = [
        Service("one engine", "ocr_worker", None),
        Service("second container", "ocr_worker", None),
        Service("two engines", "ocr_worker", None, {"MESH_OCR_PROCESSES": "2"}),
    ]
    if paddlex is not None:
        settings = {"MESH_OCR_ENGINE": "paddlex", "MESH_OCR_PADDLEX_URL": paddlex}
        found.append(Service("PaddleX", "ocr_worker", None, settings))
    return found


def measure(replicas: dict[str, Replica], pages: Sequence[bytes], callers: int, rounds: int) -> None:
    ways: dict[str, list[Replica]] = {
        "one engine, callers take turns": [replicas["one engine"]],
        "two engines in one worker": [replicas["two engines"]],
        "two workers": [replicas["one engine"], replicas["second container"]],
    }
    if "PaddleX" in replicas:
        ways["PaddleX's server"] = [replicas["PaddleX"]]
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(1, rounds + 1):
        for name, asked in ways.items():
            rates[name].append(at_once(asked, pages, callers))
            print(f"ocr-scaling: round {number}, {name}: {rates[name][-1]:.3g} pages/min", flush=True)
    memory = {name: sum(map(memory_of, asked)) for name, asked in ways.items()}
    # One group reads the queue: it is left to the two workers.
    for name in ("two engines", "PaddleX"):
        if name in replicas:
            replicas[name].ask_to_stop()
            replicas[name].stop(30)
    for _ in range(rounds):
        rates["the queue, two workers"].append(queued(ways["two workers"], pages))
    for name, found in rates.items():
        figure(f"ocr-scaling: {name}", found, "pages/min")
    for name, mebibytes in memory.items():
        figure(f"ocr-scaling: memory, {name}", [mebibytes], "MiB")
    alone = rates["one engine, callers take turns"]
    for name in ("two engines in one worker", "two workers"):
        ratio(f"ocr-scaling: {name} / one", rates[name], alone, "told, not set: cores decide")


def at_once(replicas: Sequence[Replica], pages: Sequence[bytes], callers: int) -> float:
    """Pages per minute by `POST /ocr`."""

    def call(numbered: tuple[int, bytes]) -> None:
        number, page = numbered
        answer = httpx.post(
            f"{replicas[number % len(replicas)].url}/ocr", content=page, timeout=PATIENCE_SECONDS
        )
        assert answer.status_code == 200, answer.text

    return rate(len(pages), lambda: list(ThreadPoolExecutor(callers).map(call, enumerate(pages))))


def queued(replicas: Sequence[Replica], pages: Sequence[bytes]) -> float:
    """Pages per minute from the first `POST /process` to the last result."""

    def through() -> None:
        with httpx.Client(timeout=PATIENCE_SECONDS, base_url=replicas[0].url) as client:
            tasks = [client.post("/process", content=page).json()["task_id"] for page in pages]
            for task in tasks:
                while "result" not in (found := client.get(f"/result/{task}").json()):
                    assert found["status"] == "processing", found
                    time.sleep(0.1)

    return rate(len(pages), through)


def rate(pages: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 60 * pages / (time.perf_counter() - began)


def memory_of(replica: Replica) -> float:
    """MiB of the worker and all of its children."""
    return held(psutil.Process(replica.pid))


def pages_of(folder: Path | None, count: int) -> list[bytes]:
    if folder is None:
        return [drawn(number) for number in range(count)]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [file.read_bytes() for file in files[:count]]


def drawn(number: int) -> bytes:
    """A page of 15 lines, different for each number."""
    words = random.Random(number)
    page = Image.new("RGB", (1000, 740), "white")
    draw = ImageDraw.Draw(page)
    for row in range(15):
        text = " ".join(
            "".join(words.choices("abcdefghijklmnopqrstuvwxyz", k=words.randint(3, 9))) for _ in range(6)
        )
        draw.text((60, 50 + 44 * row), text, fill="black", font_size=24)
    file = io.BytesIO()
    page.save(file, "PNG", compress_level=1)
    return file.getvalue()
