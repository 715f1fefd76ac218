"""`ocr`: character error rate, seconds and memory of readers of text, on receipts and on pages.

Ours, rapidocr as it comes, PaddleOCR on Paddle and on ONNX Runtime with the same weights (where there is an
environment for it, `make .venv-paddleocr/installed`), and Tesseract (Debian: tesseract-ocr and
tesseract-ocr-spa). Every reader is a process of its own with as many threads; all of them get the same
picture one after another, in one run. Receipts are compared without regard to case, since their true text is
in capitals; pages with it.

Two rates: of the whole text in the order in which the reader gives it, and `by line`, of each true line
beside what was read inside of it. `held out` are the odd ones of the receipts: settings were chosen on the
even ones. Seconds are of CPU time (`--wall`: of the clock), from the decoded picture to the text; those of
Tesseract have its start and the decoding too, since it is a program. Ctrl-C ends the receipts, or the pages,
and tells what was measured by then.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.figures import figure
from benchmarks.ocr_scores import Box, Errors, Line, in_order, matched, receipt
from visionmesh.settings import ROOT

# Beside the checkout, as the machines that develop it have it.
DATA = ROOT.parent / "shared" / "data" / "ocr"
PEERS = Path(__file__).parent / "peers"
PADDLEOCR = ROOT / ".venv-paddleocr" / "bin" / "python"

OURS, RAPIDOCR, PADDLE, ONNXRUNTIME, TESSERACT = (
    "ours",
    "rapidocr",
    "PaddleOCR, Paddle",
    "PaddleOCR, onnxruntime",
    "Tesseract",
)

# Columns of Tesseract's table (`tesseract ... tsv`), and the level of a word.
LEVEL, LEFT, TOP, WIDTH, HEIGHT, TEXT = 0, 6, 7, 8, 9, 11
WORD = "5"

NONE = Errors(0, 0)


@dataclass
class Answer:
    """What a reader made of a picture."""

    lines: list[Line]
    seconds: float
    cpu_seconds: float
    peak_bytes: int


Reader = Callable[[Path], Answer]


@dataclass
class Tally:
    """What a reader did on the pictures of one kind."""

    order: Errors = NONE
    lines: Errors = NONE
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def add(self, answer: Answer, order: Errors, lines: Errors, wall: bool) -> None:
        self.order += order
        self.lines += lines
        self.seconds.append(answer.seconds if wall else answer.cpu_seconds)
        self.peak_bytes = max(self.peak_bytes, answer.peak_bytes)


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="mesh bench ocr", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with sroie/ and pages/")
    parser.add_argument("--paddleocr", type=Path, default=PADDLEOCR, help="the Python that has PaddleOCR")
    parser.add_argument(
        "--readers", default="", help="only these, with commas between them: ours, rapidocr, ..."
    )
    parser.add_argument("--limit", type=int, default=0, help="receipts; all when 0")
    parser.add_argument("--threads", type=int, default=1, help="threads of each reader")
    parser.add_argument("--wall", action="store_true", help="time by the clock")
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        print(f"ocr: {options.data} is not there; name a folder with --data")
        return 1
    with ExitStack() as stack:
        readers = _readers(options, stack)
        receipts = sorted((options.data / "sroie").glob("*.jpg"))
        _receipts(receipts[: options.limit or None], readers, options.wall)
        pages = [path for path in sorted((options.data / "pages").iterdir()) if path.suffix != ".txt"]
        _pages(pages, readers, options.wall)
    return 0


def _receipts(paths: Sequence[Path], readers: dict[str, Reader], wall: bool) -> None:
    every = {name: Tally() for name in readers}
    held_out = {name: Tally() for name in readers}
    for number, (path, answers) in enumerate(_answers(paths, readers)):
        true = [Line(line.text.upper(), line.box) for line in receipt(path.with_suffix(".csv"))]
        for name, answer in answers.items():
            read = [Line(line.text.upper(), line.box) for line in answer.lines]
            order = in_order([line.text for line in true], [line.text for line in read])
            for tally in (every, held_out)[: 1 + number % 2]:
                tally[name].add(answer, order, matched(true, read), wall)
    if not next(iter(every.values())).seconds:
        return
    for name, tally in every.items():
        _report(f"receipts, {name}", tally)
        if name != OURS and OURS in every:
            ours = every[OURS]
            figure(f"receipts, ours to {name}: errors", [ours.order.rate / tally.order.rate], "x")
            figure(f"receipts, ours to {name}: errors by line", [ours.lines.rate / tally.lines.rate], "x")
            faster = [theirs / mine for mine, theirs in zip(ours.seconds, tally.seconds, strict=True)]
            figure(f"receipts, ours to {name}: speed", [mean(tally.seconds) / mean(ours.seconds)], "x")
            figure(f"receipts, ours to {name}: speed, median", [median(faster)], "x")
    for name, tally in held_out.items():
        if tally.seconds:
            figure(f"receipts held out, {name}: errors", [100 * tally.order.rate], "%")
            figure(f"receipts held out, {name}: errors by line", [100 * tally.lines.rate], "%")


def _answers(paths: Sequence[Path], readers: dict[str, Reader]) -> Iterator[tuple[Path, dict[str, Answer]]]:
    """What every reader made of a picture, of one after the other, until all are done or Ctrl-C."""
    for number, path in enumerate(paths):
        try:
            answers = {name: reader(path) for name, reader in readers.items()}
        except KeyboardInterrupt:
            print(f"ocr: stopped after {number} of {len(paths)}")
            return
        yield path, answers


def _pages(paths: Sequence[Path], readers: dict[str, Reader], wall: bool) -> None:
    tallies = {name: Tally() for name in readers}
    for path, answers in _answers(paths, readers):
        true = _true_text(path)
        for name, answer in answers.items():
            errors = in_order([true], [line.text for line in answer.lines])
            tallies[name].add(answer, errors, errors, wall)
            figure(f"{path.name}, {name}: errors", [100 * errors.rate], "%")
    for name, tally in tallies.items():
        if tally.seconds:
            _report(f"pages, {name}", tally)


def _true_text(path: Path) -> str:
    """The text beside a page, or of the page that it was made from by turning it (`name-rotated-180.png`)."""
    own = path.with_suffix(".txt")
    return (own if own.exists() else own.with_name(own.stem.split("-rotated")[0] + ".txt")).read_text("utf-8")


def _report(name: str, tally: Tally) -> None:
    figure(f"{name}: errors", [100 * tally.order.rate], "%")
    if tally.lines != tally.order:
        figure(f"{name}: errors by line", [100 * tally.lines.rate], "%")
    figure(f"{name}: seconds", [mean(tally.seconds)], "s")
    figure(f"{name}: memory", [tally.peak_bytes / 2**20], "MB")


def _readers(options: argparse.Namespace, stack: ExitStack) -> dict[str, Reader]:
    """All readers that can run here, or those of them that are wanted."""
    wanted = {name for name in options.readers.split(",") if name}
    script = str(PEERS / "ocr_reader.py")
    own = [sys.executable, script]
    paddleocr = [str(options.paddleocr), script]
    readers: dict[str, Reader] = {}
    for name, kind in ((OURS, "ours"), (RAPIDOCR, "rapidocr")):
        if not wanted or name in wanted:
            readers[name] = _process([*own, kind, str(options.threads)], stack)
    if not options.paddleocr.is_file():
        print(f"ocr: {options.paddleocr} is not there, so PaddleOCR is left out")
    elif not wanted or wanted & {PADDLE, ONNXRUNTIME, "paddle", "onnxruntime"}:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        _build_paddle_models(options.paddleocr, folder)
        for name, kind in ((PADDLE, "paddle"), (ONNXRUNTIME, "onnxruntime")):
            if not wanted or wanted & {name, kind}:
                readers[name] = _process([*paddleocr, kind, str(options.threads), folder], stack)
    if shutil.which("tesseract") is None:
        print("ocr: there is no tesseract, so it is left out (Debian: tesseract-ocr tesseract-ocr-spa)")
    elif not wanted or wanted & {TESSERACT, "tesseract"}:
        readers[TESSERACT] = lambda path: _tesseract(path, options.threads)
    return readers


def _build_paddle_models(python: Path, folder: str) -> None:
    spec = importlib.util.find_spec("rapidocr")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    models = Path(spec.submodule_search_locations[0]) / "models"
    networks = [str(models / f"PP-OCRv6_{kind}_small.onnx") for kind in ("det", "rec")]
    subprocess.run(
        [str(python), str(PEERS / "build_paddle_models.py"), *networks, folder],
        check=True,
        stderr=subprocess.DEVNULL,
    )


def _process(command: list[str], stack: ExitStack) -> Reader:
    """A reader that is a process which stays: `peers/ocr_reader.py`."""
    path = os.pathsep.join((str(ROOT / "shared"), str(ROOT / "services")))
    process = stack.enter_context(
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # Ctrl-C is for the benchmark.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    )
    stack.callback(process.kill)

    def read(path: Path) -> Answer:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        told: dict[str, Any] = json.loads(process.stdout.readline())
        return Answer(
            [Line(line["text"], Box.around(line["polygon"])) for line in told["lines"]],
            told["seconds"],
            told["cpu_seconds"],
            told["peak_bytes"],
        )

    return read


def _tesseract(path: Path, threads: int) -> Answer:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    # As it finds out by itself how a page is laid out and turned.
    answer = subprocess.run(
        ["tesseract", str(path), "-", "-l", "spa+eng", "--psm", "1", "tsv"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_THREAD_LIMIT": str(threads)},
    )
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = (row.split("\t") for row in answer.stdout.splitlines()[1:])
    words = [row for row in rows if row[LEVEL] == WORD and row[TEXT].strip()]
    return Answer(
        [Line(row[TEXT], _box(row)) for row in words],
        seconds,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        after.ru_maxrss * 1024,
    )


def _box(row: Sequence[str]) -> Box:
    left, top, width, height = (float(row[column]) for column in (LEFT, TOP, WIDTH, HEIGHT))
    return Box(left, top, left + width, top + height)
