"""`ocr-soak`: whether engines mix up documents, and whether they grow: the real engine, in children as the
service has it, without servers.

300 different documents are read alone, one after the other. Then some callers have them read at once, over
and over, until all pages are done: every answer must be the one that the document had when it was alone.
Memory is that of this process and of its children, pages that they share counted once (PSS). No engine is
replaced, as the service would do after a number of pages. `at first` is the median over the first 500 pages,
when every document has been there, `at last` that over the last 500.
"""

from __future__ import annotations

import argparse
import io
import random
import string
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from threading import Lock

import psutil
from PIL import Image, ImageDraw

from benchmarks.figures import figure
from ocr_worker.reading import DOMAIN, Answer, Asked, EngineChoice, Reader, read_one
from visionmesh.isolated import Isolated
from visionmesh.ocr_document import OcrDocument

DOCUMENTS = 300
WINDOW = 500
LOOK_EVERY = 50

MEBIBYTE = 1024 * 1024

# A machine that is busy with other things is slow, and that is no failure here.
PATIENCE_SECONDS = 600.0
ENGINE_BYTES = 4096 * MEBIBYTE


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="mesh bench ocr-soak", description=__doc__)
    parser.add_argument("--pages", type=int, default=5000, help="500 or more")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--language", default="es+en")
    options = parser.parse_args(list(arguments))
    documents = [drawn(number) for number in range(DOCUMENTS)]
    with Isolated(
        read_one,
        deadline_seconds=PATIENCE_SECONDS,
        memory_bytes=ENGINE_BYTES,
        processes=options.engines,
        calls_per_child=options.pages + 2 * DOCUMENTS,
        preload=(DOMAIN,),
    ) as isolated:
        read = reader(isolated, options.language, options.engines)
        alone = [read(document) for document in documents]
        figure("ocr-soak: documents with a text of their own", [len({each.text for each in alone})], "")
        mixed_up, memory = soak(read, documents, alone, options.pages, options.callers)
    figure(f"ocr-soak: {options.callers} callers, answers of {options.pages} not their own", [mixed_up], "")
    window = WINDOW // LOOK_EVERY
    first, last = median(memory[:window]), median(memory[-window:])
    figure("ocr-soak: memory at first", [first], "MiB")
    figure("ocr-soak: memory at last", [last], "MiB")
    figure("ocr-soak: memory at most", [max(memory)], "MiB")
    figure("ocr-soak: memory, last / first", [last / first], "x")
    return 1 if mixed_up else 0


def reader(isolated: Isolated[Asked, Answer], language: str, engines: int) -> Reader:
    choice = EngineChoice("rapidocr", language, threads=1)
    return Reader(isolated, choice, processes=engines, max_pages=1)


def soak(
    read: Callable[[bytes], OcrDocument],
    documents: Sequence[bytes],
    alone: Sequence[OcrDocument],
    pages: int,
    callers: int,
) -> tuple[int, list[float]]:
    """How many answers were not those of the document when it was alone, and MiB after every 50 pages."""
    lock = Lock()
    done = 0
    memory: list[float] = []

    def is_another(number: int) -> bool:
        nonlocal done
        document = read(documents[number % len(documents)])
        with lock:
            done += 1
            if done % LOOK_EVERY == 0:
                memory.append(held(psutil.Process()))
                print(f"ocr-soak: {done} pages, {memory[-1]:.0f} MiB", flush=True)
        expected = alone[number % len(documents)]
        return (document.text, document.lines) != (expected.text, expected.lines)

    with ThreadPoolExecutor(callers) as threads:
        return sum(threads.map(is_another, range(pages))), memory


def held(process: psutil.Process) -> float:
    """MiB of it and its children; pages that they share are counted once."""
    return sum(
        each.memory_full_info().pss / MEBIBYTE for each in (process, *process.children(recursive=True))
    )


def drawn(number: int) -> bytes:
    """A slip of one to three lines, different for each number."""
    chance = random.Random(number)
    rows = chance.randint(1, 3)
    page = Image.new("RGB", (chance.randint(200, 420), 20 + 34 * rows), "white")
    draw = ImageDraw.Draw(page)
    for row in range(rows):
        words = (
            "".join(chance.choices(string.ascii_lowercase + string.digits, k=chance.randint(3, 7)))
            for _ in range(page.width // 110)
        )
        draw.text((10, 10 + 34 * row), " ".join(words), fill="black", font_size=22)
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()
