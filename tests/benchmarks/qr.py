"""`qr`: codes read and milliseconds, per condition, of the cascade, its levels, and other readers.

Parts, each of which can be left out (`--parts`):

* `pictures`: the BoofCV and zxing pictures of a folder (`--data`). A code counts as found when a reader names
  a place whose middle lies in the true outline; contents are compared where they are known. The zxing
  pictures are turned by 0, 90, 180 and 270 degrees.
* `false`: the false-positive folders and photographs, in which nothing should be read.
* `levels`: what each level of the default profile adds to those before it and costs, and what each level
  reads alone (`--alone`).
* `scenes`: the seed's table of conditions and scenarios on pictures made by `qr_scenes`.
* `memory`: of a process of each reader, loaded and at most while it reads the largest pictures.
* `service`: the qr-decoder itself on an embedded stack, asked over HTTP (see `qr_service`).

All readers see the same picture one after the other. Milliseconds are of CPU time on one thread, from the
decoded RGB picture to the contents: a shared machine does not change them as it does those of the clock
(`--wall` tells these).

A whole run takes hours. With `--json FILE` what is measured is appended to that file and not measured again,
and with `--seconds N` a run ends after so long: the same command, repeated until it says that all is done,
makes the whole. `--report` only prints what the file holds, and `--markdown docs/qr.md` puts it in there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import qr_readers, qr_report, qr_scenes
from benchmarks.qr_readers import Found, Reader
from benchmarks.qr_report import Journal, OutOfTimeError, Record
from qr_decoder.domain import LEVELS, Locator, levels_of
from qr_decoder.domain.locator import load
from visionmesh import images
from visionmesh.settings import ROOT, get_settings

# Beside the checkout, as the machines that develop it have it.
DATA = ROOT.parent / "shared" / "data" / "qr"
QRDET = ROOT.parent / "shared" / "data" / "models" / "qrdet-n-sim-q.onnx"

ENDINGS = frozenset((".jpg", ".png", ".webp"))

# EXIF orientation 6: stored lying on its side. The true outlines are in the pixels as stored.
ORIENTATION, TURNED_RIGHT = 0x0112, 6

CORES = os.sched_getaffinity(0)

# What is not measured unless it is named.
UNUSUAL = frozenset(("cascade with QRDet-n", "QRDet-n as QReader"))


@dataclass
class Case:
    """A picture and what is in it. quads: true outlines. texts: contents where they are known."""

    name: str
    load: Callable[[], NDArray[np.uint8]]
    quads: Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]
    texts: list[str] | None = None


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="mesh bench qr", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with boofcv/ and zxing/")
    parser.add_argument("--photos", type=Path, help="photographs; by default photos/ beside the folder")
    parser.add_argument("--qrdet", type=Path, default=QRDET, help="the nano file of QRDet, when there is one")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--readers", default="", help="only these, with commas between them")
    parser.add_argument("--alone", action="store_true", help="also every level alone")
    parser.add_argument("--limit", type=int, default=0, help="pictures of each condition; all when 0")
    parser.add_argument("--scenes", type=int, default=40, help="scenes of each condition and scenario")
    parser.add_argument("--wall", action="store_true", help="tell times by the clock")
    parser.add_argument("--misses", action="store_true", help="name what the cascade misses")
    parser.add_argument("--json", type=Path, help="a file that keeps what was measured, from run to run")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long; needs --json")
    parser.add_argument("--report", action="store_true", help="measure nothing, print what the file holds")
    parser.add_argument("--markdown", type=Path, help="a page whose tables are replaced by these figures")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        print(f"qr: there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
        return 2
    if not options.report and parts not in (["scenes"], ["service"]) and not options.data.is_dir():
        print(f"qr: {options.data} is not there; name a folder with --data")
        return 1
    journal = Journal(options.json, options.seconds)
    done = True
    if not options.report:
        os.sched_setaffinity(0, {max(CORES)})
        cv2.setNumThreads(1)
        known = _readers(options.qrdet)
        wanted = [name for name in options.readers.split(",") if name]
        readers = _Readers(known, wanted or _usual(known))
        try:
            for part in parts:
                PARTS[part](options, journal, readers)
        except OutOfTimeError:
            done = False
    qr_report.text(journal.records, wall=options.wall, misses=options.misses)
    if options.markdown:
        qr_report.put(qr_report.markdown(journal.records, wall=options.wall), options.markdown)
    print("qr: all is done" if done else "qr: there is more to measure: the same command goes on")
    return 0


def _readers(qrdet: Path) -> dict[str, Callable[[], Reader]]:
    """How to make all readers that can run here; in this order they are told."""
    locators = _locators()
    known: dict[str, Callable[[], Reader]] = {
        "cascade": lambda: qr_readers.ours("cascade", locators),
        "light": lambda: qr_readers.ours("light"),
        "ultralight": lambda: qr_readers.ours("ultralight"),
    }
    for size in locators:
        known[f"locator-{size}"] = partial(qr_readers.ours, f"locator-{size}", locators)
    if {"s", "m"} <= locators.keys():
        known["hybrid"] = lambda: qr_readers.ours("hybrid", locators)
    known |= {
        "zxing-cpp": lambda: qr_readers.zxing,
        "pyzbar": lambda: qr_readers.zbar,
        "OpenCV": lambda: qr_readers.opencv,
        **qr_readers.qreaders(qrdet, get_settings().qr_reader_weights),
    }
    if qrdet.is_file():
        known["QRDet-n as QReader"] = lambda: qr_readers.like_qreader(qrdet)
        known["QRDet-n, our decoding"] = lambda: qr_readers.ours("locator-n", {"n": load("n", qrdet)})
        known["cascade with QRDet-n"] = lambda: qr_readers.ours("cascade", {"n": load("n", qrdet)})
    return known


def _usual(known: Iterable[str]) -> list[str]:
    usual = [name for name in known if name not in UNUSUAL]
    if not any(name.startswith("QReader") for name in usual):
        usual += [name for name in known if name == "QRDet-n as QReader"]
    return usual


class _Readers:
    """The readers that are wanted, each made when it is first asked. Raises SystemExit for one unknown."""

    def __init__(self, known: dict[str, Callable[[], Reader]], wanted: list[str]) -> None:
        if unknown := [name for name in wanted if name not in known]:
            raise SystemExit(f"qr: there is no reader {unknown[0]!r} here; there are {', '.join(known)}")
        self.names = wanted
        self._known = known
        self._made: dict[str, Reader] = {}

    def __getitem__(self, name: str) -> Reader:
        if name not in self._made:
            self._made[name] = self._known[name]()
        return self._made[name]


def _locators() -> dict[str, Locator]:
    from qr_decoder.domain import locators_in

    return locators_in(get_settings().models_dir)


# Pictures.


def _pictures(options: argparse.Namespace, journal: Journal, readers: _Readers) -> None:
    for condition, cases in _conditions(options.data):
        for case in islice(cases, options.limit or None):
            missing = journal.missing("pictures", condition, case.name, readers.names)
            if missing:
                picture = case.load()
                for name in missing:
                    record = _measured(readers[name], picture, case)
                    journal.add(Record("pictures", condition, case.name, name, **record))


def _conditions(data: Path) -> Iterator[tuple[str, Iterable[Case]]]:
    for folder in sorted((data / "boofcv" / "detection").glob("*/")):
        yield f"boofcv {folder.name}", [_detection(file) for file in _files(folder)]
    decoding = data / "boofcv" / "decoding"
    if decoding.is_dir():
        yield "boofcv decoding", [_decoding(file) for file in _files(decoding)]
    for folder in sorted((data / "zxing").glob("*qrcode-*/")):
        files = [file for file in _files(folder) if file.with_suffix(".txt").exists()]
        for turns in range(4):
            if files:
                yield f"zxing {folder.name} {90 * turns}", [_decoding(file, turns) for file in files]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)


def _detection(file: Path) -> Case:
    return Case(file.name, lambda: images.decode(file.read_bytes()), lambda picture: _outlines(file, picture))


def _outlines(file: Path, picture: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    from PIL import Image

    lines = [line for line in file.with_suffix(".txt").read_text().splitlines() if line and line[0] != "#"]
    numbers = " ".join(line for line in lines if line != "SETS").split()
    quads = np.array(numbers, np.float32).reshape(-1, 4, 2)
    with Image.open(file) as image:
        turned = image.getexif().get(ORIENTATION) == TURNED_RIGHT
    if turned:
        quads = np.stack([picture.shape[1] - 1 - quads[..., 1], quads[..., 0]], axis=-1)
    return list(quads)


def _decoding(file: Path, turns: int = 0) -> Case:
    """A picture with one code of known content; wherever it is found, it is that one."""
    text = file.with_suffix(".txt").read_text(encoding="utf-8", errors="replace")

    def turned() -> NDArray[np.uint8]:
        return np.ascontiguousarray(np.rot90(images.decode(file.read_bytes()), -turns))

    def whole(picture: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        height, width = picture.shape[:2]
        return [np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)]

    return Case(file.name, turned, whole, [text])


def _measured(reader: Reader, picture: NDArray[np.uint8], case: Case) -> dict[str, float]:
    found, times = _timed(reader, picture)
    quads = case.quads(picture)
    texts = [_plain(text) for text, _ in found]
    true = case.texts or []
    return {
        "codes": len(quads),
        "found": _hits(quads, found),
        "texts": len(true),
        "right": sum(_plain(text) in texts for text in true),
        **times,
    }


def _timed(reader: Reader, picture: NDArray[np.uint8]) -> tuple[Found, dict[str, float]]:
    cpu, wall = qr_readers.cpu(), qr_readers.wall()
    found = reader(picture)
    return found, {"cpu": 1000 * (qr_readers.cpu() - cpu), "wall": 1000 * (qr_readers.wall() - wall)}


def _plain(text: str) -> str:
    """Without what the truth files lost: carriage returns, and space at the end."""
    return text.replace("\r", "").rstrip()


def _hits(quads: list[NDArray[np.float32]], found: Found) -> int:
    """How many outlines have a found code's middle in them."""
    middles = [corners.mean(axis=0) for _, corners in found if len(corners)]
    return sum(
        any(
            cv2.pointPolygonTest(quad.reshape(-1, 1, 2), tuple(map(float, middle)), False) >= 0
            for middle in middles
        )
        for quad in quads
    )


def _false(options: argparse.Namespace, journal: Journal, readers: _Readers) -> None:
    """Pictures without codes; and photographs, which may hold some: of those, what nobody else confirms."""
    for folder in sorted((options.data / "zxing").glob("falsepos*/")):
        for file in islice(_files(folder), options.limit or None):
            _false_readings("without codes", file, [], journal, readers)
    photos = options.photos or options.data.parent / "photos"
    peers = (qr_readers.zxing, qr_readers.zbar, qr_readers.opencv)
    for file in islice(_files(photos) if photos.is_dir() else [], options.limit or None):
        if journal.missing("false", "photographs", file.name, readers.names):
            picture = images.decode(file.read_bytes())
            confirmed = [text for peer in peers for text, _ in peer(picture)]
            _false_readings("photographs", file, confirmed, journal, readers)


def _false_readings(
    condition: str, file: Path, confirmed: list[str], journal: Journal, readers: _Readers
) -> None:
    missing = journal.missing("false", condition, file.name, readers.names)
    picture = images.decode(file.read_bytes()) if missing else None
    for name in missing:
        assert picture is not None
        found, times = _timed(readers[name], picture)
        false = len({text for text, _ in found} - set(confirmed))
        journal.add(Record("false", condition, file.name, name, false=false, **times))


# Levels.


def _levels(options: argparse.Namespace, journal: Journal, _: _Readers) -> None:
    """The profile cut off after each of its levels, and each level alone, on all pictures."""
    locators = _locators() or ({"n": load("qrdet-n", options.qrdet)} if options.qrdet.is_file() else {})
    names = levels_of("cascade")
    profiles = {f"up to {name}": ",".join(names[: number + 1]) for number, name in enumerate(names)}
    profiles |= {name: name for name in (LEVELS if options.alone else ())}
    for condition, cases in _conditions(options.data):
        if condition.endswith((" 90", " 180", " 270")):
            continue
        for case in islice(cases, options.limit or None):
            missing = journal.missing("levels", condition, case.name, list(profiles))
            picture = case.load() if missing else None
            for name in missing:
                assert picture is not None
                record = _measured(qr_readers.ours(profiles[name], locators), picture, case)
                journal.add(Record("levels", condition, case.name, name, **record))


# Scenes.


def _scenes(options: argparse.Namespace, journal: Journal, readers: _Readers) -> None:
    for name in {**qr_scenes.CONDITIONS, **qr_scenes.SCENARIOS}:
        for number in range(options.scenes):
            missing = journal.missing("scenes", name, str(number), readers.names)
            scene = qr_scenes.scene(name, number) if missing else None
            for reader in missing:
                assert scene is not None
                found, times = _timed(readers[reader], scene.picture)
                texts = [text for text, _ in found]
                true = [text for text, _ in scene.codes]
                right, false = sum(text in texts for text in true), len(set(texts) - set(true))
                record = {"texts": len(true), "right": right, "false": false, **times}
                journal.add(Record("scenes", name, str(number), reader, **record))


# Memory.


def _memory(options: argparse.Namespace, journal: Journal, readers: _Readers) -> None:
    files = [file for file in options.data.rglob("*") if file.suffix.lower() in ENDINGS]
    largest = sorted(files, key=lambda file: file.stat().st_size)[-6:]
    for name in journal.missing("memory", "", "largest", readers.names):
        loaded, peak = _in_a_process(name, largest, options.qrdet)
        journal.add(Record("memory", "", "largest", name, loaded=loaded, peak=peak))


def _in_a_process(name: str, files: list[Path], qrdet: Path) -> tuple[float, float]:
    """MiB of a new process that has the reader loaded, and at most while it reads."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_child, args=(name, files, qrdet, queue))
    process.start()
    answer: tuple[float, float] = queue.get()
    process.join()
    return answer


def _child(
    name: str, files: list[Path], qrdet: Path, queue: multiprocessing.Queue[tuple[float, float]]
) -> None:
    cv2.setNumThreads(1)
    reader = _readers(qrdet)[name]()
    # Loads what is loaded lazily.
    reader(np.full((64, 64, 3), 255, np.uint8))
    process = str(getattr(reader, "pid", "self"))
    loaded = _memory_of(process, "VmRSS")
    for file in files:
        reader(images.decode(file.read_bytes()))
    queue.put((loaded, _memory_of(process, "VmHWM")))


def _memory_of(process: str, field: str) -> float:
    """MiB. `ru_maxrss` would be that of the parent, from which a spawned process begins."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


# The service.


def _service(options: argparse.Namespace, journal: Journal, _: _Readers) -> None:
    from benchmarks import qr_service

    sizes = _locators().keys()
    profiles = ["cascade", "light", "ultralight", *(["onnx"] if "n" in sizes else [])]
    profiles += [f"locator-{size}" for size in sizes if size != "n"]
    profiles += ["hybrid"] if {"s", "m"} <= sizes else []
    os.sched_setaffinity(0, CORES)
    for profile in journal.missing("service", "", "scenarios", profiles):
        journal.check_time()
        journal.add(Record("service", "", "scenarios", profile, **qr_service.measured(profile)))


PARTS: dict[str, Callable[[argparse.Namespace, Journal, _Readers], None]] = {
    "pictures": _pictures,
    "false": _false,
    "levels": _levels,
    "scenes": _scenes,
    "memory": _memory,
    "service": _service,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
