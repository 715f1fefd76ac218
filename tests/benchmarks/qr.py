"""`qr`: codes read and milliseconds, per condition, of the cascade, its levels, and other readers.

Three parts, each of which can be left out:

* `pictures`: the BoofCV and zxing pictures of a folder (`--data`). A code counts as found when a reader names
  a place whose middle lies in the true outline; contents are compared where they are known. The zxing
  pictures are turned by 0, 90, 180 and 270 degrees. Then the false-positive folders and photographs.
* `levels`: what each level of the default profile adds to those before it and costs, and what each level
  reads alone (`--levels`).
* `scenes`: the seed's table of conditions and scenarios on pictures made by `qr_scenes`.

All readers see the same picture one after the other, in one run. Milliseconds are of CPU time on one thread,
from the decoded RGB picture to the contents: a shared machine does not change them as it does those of the
clock (`--wall` measures these). Memory is that of a process of its own that reads the largest pictures.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import qr_readers, qr_scenes
from benchmarks.figures import percentile
from benchmarks.qr_readers import Found, Reader
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


@dataclass
class Case:
    """A picture and what is in it. quads: true outlines. texts: contents where they are known."""

    name: str
    load: Callable[[], NDArray[np.uint8]]
    quads: Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]
    texts: list[str] | None = None


@dataclass
class Tally:
    """What one reader did on the pictures of one condition."""

    codes: int = 0
    found: int = 0
    texts: int = 0
    right: int = 0
    times: list[float] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.codes += other.codes
        self.found += other.found
        self.texts += other.texts
        self.right += other.right
        self.times += other.times


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="mesh bench qr", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with boofcv/ and zxing/")
    parser.add_argument("--photos", type=Path, help="photographs; by default photos/ beside the folder")
    parser.add_argument("--qrdet", type=Path, default=QRDET, help="the nano file of QRDet, when there is one")
    parser.add_argument("--parts", default="pictures,levels,scenes", help="of pictures, levels, scenes")
    parser.add_argument("--readers", default="", help="only these, with commas between them")
    parser.add_argument("--levels", action="store_true", help="also every level alone")
    parser.add_argument("--limit", type=int, default=0, help="pictures of each condition; all when 0")
    parser.add_argument("--scenes", type=int, default=40, help="scenes of each condition and scenario")
    parser.add_argument("--wall", action="store_true", help="time by the clock")
    parser.add_argument("--misses", action="store_true", help="name what the cascade misses")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    if "scenes" not in options.parts and not options.data.is_dir():
        print(f"qr: {options.data} is not there; name a folder with --data")
        return 1
    clock = time.perf_counter if options.wall else time.process_time
    readers = _readers(options.qrdet, [name for name in options.readers.split(",") if name])
    if options.data.is_dir():
        if "pictures" in options.parts:
            _pictures(options, readers, clock)
        if "levels" in options.parts:
            _levels(options, clock)
    if "scenes" in options.parts:
        _scenes(options, readers, clock)
    return 0


def _readers(qrdet: Path, wanted: list[str]) -> dict[str, Reader]:
    """All readers that can run here, or those of them that are wanted."""
    locators = _locators()
    known: dict[str, Callable[[], Reader]] = {
        "cascade": lambda: qr_readers.ours("cascade", locators),
        "light": lambda: qr_readers.ours("light"),
        "ultralight": lambda: qr_readers.ours("ultralight"),
        "zxing-cpp": lambda: qr_readers.zxing,
        "pyzbar": lambda: qr_readers.zbar,
        "OpenCV": lambda: qr_readers.opencv,
    }
    for size in locators:
        known[f"locator-{size}"] = lambda size=size: qr_readers.ours(f"locator-{size}", locators)  # type: ignore[misc]
    if {"s", "m"} <= locators.keys():
        known["hybrid"] = lambda: qr_readers.ours("hybrid", locators)
    if qrdet.is_file():
        known["QRDet-n as QReader"] = lambda: qr_readers.qreader(qrdet)
        known["QRDet-n, our decoding"] = lambda: qr_readers.ours("locator-n", {"n": load("n", qrdet)})
        known["cascade with QRDet-n"] = lambda: qr_readers.ours("cascade", {"n": load("n", qrdet)})
    usual = [name for name in known if name not in ("light", "ultralight", "cascade with QRDet-n")]
    return {name: known[name]() for name in wanted or usual}


def _locators() -> dict[str, Locator]:
    from qr_decoder.domain import locators_in

    return locators_in(get_settings().models_dir)


# Pictures.


def _pictures(options: argparse.Namespace, readers: dict[str, Reader], clock: Callable[[], float]) -> None:
    tallies: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    # Ours and zxing-cpp's times where zxing-cpp reads.
    beside: list[tuple[float, float]] = []
    for condition, cases in _conditions(options.data):
        for case in islice(cases, options.limit or None):
            picture = case.load()
            outcomes = {name: _measured(reader, picture, case, clock) for name, reader in readers.items()}
            for name, outcome in outcomes.items():
                tallies[condition][name].add(outcome)
            if "cascade" in outcomes and "zxing-cpp" in outcomes and outcomes["zxing-cpp"].found:
                beside.append((outcomes["cascade"].times[0], outcomes["zxing-cpp"].times[0]))
            if options.misses and "cascade" in outcomes:
                ours = outcomes["cascade"]
                if ours.found < ours.codes or ours.right < ours.texts:
                    print(f"qr: missed in {condition}: {case.name}: {ours.found} of {ours.codes} found")
    _print(tallies, list(readers))
    if beside:
        mine, theirs = (sum(times) / len(times) for times in zip(*beside, strict=True))
        print(
            f"qr: where zxing-cpp reads ({len(beside)} pictures): cascade {mine:.2f} ms, "
            f"zxing-cpp {theirs:.2f} ms, ratio {mine / theirs:.2f} (goal at most 2)"
        )
    _false_readings(options, readers)
    _memory(options, readers)


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


def _measured(reader: Reader, picture: NDArray[np.uint8], case: Case, clock: Callable[[], float]) -> Tally:
    started = clock()
    found = reader(picture)
    spent = (clock() - started) * 1000
    quads = case.quads(picture)
    tally = Tally(codes=len(quads), found=_hits(quads, found), times=[spent])
    if case.texts is not None:
        texts = [_plain(text) for text, _ in found]
        tally.texts = len(case.texts)
        tally.right = sum(_plain(text) in texts for text in case.texts)
    return tally


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


def _print(tallies: dict[str, dict[str, Tally]], readers: list[str]) -> None:
    print(
        f"\n{'condition':<26} {'reader':<22} {'found':>9} {'right':>9} {'mean':>8} {'p50':>8} {'p95':>8} ms"
    )
    for group in ("boofcv", "zxing"):
        whole: dict[str, Tally] = defaultdict(Tally)
        for condition, by_reader in tallies.items():
            if condition.startswith(group):
                for name in readers:
                    _line(condition, name, by_reader[name])
                    whole[name].add(by_reader[name])
        for name in readers:
            if whole[name].codes:
                _line(f"{group}, all", name, whole[name])
    for turn in (0, 90, 180, 270):
        for name in readers:
            whole = defaultdict(Tally)
            for condition, by_reader in tallies.items():
                if condition.startswith("zxing qrcode") and condition.endswith(f" {turn}"):
                    whole[name].add(by_reader[name])
            if whole[name].texts:
                share = whole[name].right / whole[name].texts
                print(f"zxing qrcode at {turn} degrees, {name}: {share:.1%} right (goal 96 %)")


def _line(condition: str, name: str, tally: Tally) -> None:
    right = f"{tally.right}/{tally.texts}" if tally.texts else "-"
    times = tally.times
    print(
        f"{condition:<26} {name:<22} {f'{tally.found}/{tally.codes}':>9} {right:>9} "
        f"{sum(times) / len(times):>8.1f} {percentile(times, 0.5):>8.1f} {percentile(times, 0.95):>8.1f}",
        flush=True,
    )


def _false_readings(options: argparse.Namespace, readers: dict[str, Reader]) -> None:
    """Readings in pictures without codes; of photographs, which may hold some, those nobody else confirms."""
    photos = options.photos or options.data.parent / "photos"
    without = [
        file for folder in sorted((options.data / "zxing").glob("falsepos*/")) for file in _files(folder)
    ]
    for name, reader in readers.items():
        false = sum(len(reader(images.decode(file.read_bytes()))) for file in without)
        print(f"qr: {name}: {false} false readings in {len(without)} pictures without codes")
    if not photos.is_dir():
        return
    pictures = {file.name: images.decode(file.read_bytes()) for file in _files(photos)}
    peers = (qr_readers.zxing, qr_readers.zbar, qr_readers.opencv)
    known = {
        file: {text for peer in peers for text, _ in peer(picture)} for file, picture in pictures.items()
    }
    for name, reader in readers.items():
        total, alone = 0, []
        for file, picture in pictures.items():
            texts = {text for text, _ in reader(picture)}
            total += len(texts)
            alone += [f"{file}: {text[:40]!r}" for text in sorted(texts - known[file])]
        print(
            f"qr: {name}: {total} contents in {len(pictures)} photographs, "
            f"{len(alone)} of them given by no other reader {alone or ''}"
        )


def _memory(options: argparse.Namespace, readers: dict[str, Reader]) -> None:
    largest = sorted(
        (file for file in options.data.rglob("*") if file.suffix.lower() in ENDINGS), key=_bytes
    )[-6:]
    for name in readers:
        loaded, peak = _in_a_process(name, largest, options.qrdet)
        print(
            f"qr: {name}: {loaded:.0f} MB loaded, {peak:.0f} MB at most "
            f"while reading {len(largest)} large pictures"
        )


def _bytes(file: Path) -> int:
    return file.stat().st_size


def _in_a_process(name: str, files: list[Path], qrdet: Path) -> tuple[float, float]:
    """Megabytes of a new process that has the reader loaded, and at most while it reads."""
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
    reader = _readers(qrdet, [name])[name]
    # Loads what is loaded lazily.
    reader(np.full((64, 64, 3), 255, np.uint8))
    loaded = _memory_of_this_process("VmRSS")
    for file in files:
        reader(images.decode(file.read_bytes()))
    queue.put((loaded, _memory_of_this_process("VmHWM")))


def _memory_of_this_process(field: str) -> float:
    """Megabytes. `ru_maxrss` would be that of the parent, from which a spawned process begins."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


# Levels.


def _levels(options: argparse.Namespace, clock: Callable[[], float]) -> None:
    """What each level adds to those before it: the profile cut off after it, on all pictures."""
    locators = _locators() or ({"n": load("qrdet-n", options.qrdet)} if options.qrdet.is_file() else {})
    names = levels_of("cascade")
    cases = [
        case
        for condition, of_condition in _conditions(options.data)
        if not condition.endswith((" 90", " 180", " 270"))
        for case in islice(of_condition, options.limit or None)
    ]
    prefixes = {name: ",".join(names[: number + 1]) for number, name in enumerate(names)}
    totals: dict[str, Tally] = {name: Tally() for name in names}
    alone: dict[str, Tally] = {name: Tally() for name in (LEVELS if options.levels else ())}
    for case in cases:
        picture = case.load()
        for name, profile in prefixes.items():
            totals[name].add(_measured(qr_readers.ours(profile, locators), picture, case, clock))
        for name, tally in alone.items():
            tally.add(_measured(qr_readers.ours(name, locators), picture, case, clock))
    print(f"\n{'level':<22} {'adds':>6} {'of':>6} {'costs':>8} ms a picture, {len(cases)} pictures")
    before = Tally(times=[0.0])
    for name, tally in totals.items():
        cost = sum(tally.times) / len(cases) - sum(before.times) / len(cases)
        print(f"{name:<22} {tally.found - before.found:>6} {tally.codes:>6} {cost:>8.2f}")
        before = tally
    for name, tally in alone.items():
        mean = sum(tally.times) / len(cases)
        print(f"alone: {name:<22} {tally.found:>6}/{tally.codes} codes, {mean:>8.2f} ms a picture")


# Scenes.


def _scenes(options: argparse.Namespace, readers: dict[str, Reader], clock: Callable[[], float]) -> None:
    print(f"\n{'scenes':<22} {'reader':<22} {'right':>8} {'mean':>8} {'p50':>8} {'p95':>8} {'p99':>8} ms")
    weighted: dict[str, float] = defaultdict(float)
    traffic: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, (_, goal) in {**qr_scenes.CONDITIONS, **qr_scenes.SCENARIOS}.items():
        scenario = name in qr_scenes.SCENARIOS
        tallies: dict[str, Tally] = defaultdict(Tally)
        for scene in qr_scenes.scenes(name, options.scenes):
            for reader_name, reader in readers.items():
                started = clock()
                found = reader(scene.picture)
                spent = (clock() - started) * 1000
                texts = [text for text, _ in found]
                right = sum(text in texts for text, _ in scene.codes)
                wrong = [text for text in texts if text not in [content for content, _ in scene.codes]]
                if wrong:
                    print(f"qr: {reader_name}: false reading in {name}: {wrong[0][:60]!r}")
                tallies[reader_name].add(Tally(texts=len(scene.codes), right=right, times=[spent]))
        for reader_name, tally in tallies.items():
            share, times = tally.right / tally.texts, tally.times
            aim = "" if scenario else f"  (seed's large model {goal:.0f} %)"
            marks = " ".join(f"{percentile(times, mark):>8.1f}" for mark in (0.5, 0.95, 0.99))
            mean = sum(times) / len(times)
            print(f"{name:<22} {reader_name:<22} {share:>8.1%} {mean:>8.1f} {marks}{aim}", flush=True)
            if scenario:
                weighted[reader_name] += goal * share
                traffic[reader_name] += [(each, goal / len(times)) for each in times]
    for reader_name, share in weighted.items():
        ordered = sorted(traffic[reader_name])
        mean = sum(spent * weight for spent, weight in ordered)
        marks = ", ".join(f"p{mark * 100:.0f} {_weighted(ordered, mark):.1f}" for mark in (0.5, 0.95, 0.99))
        print(
            f"scenarios, weighted: {reader_name:<22} {share:.1%} right (goal 92 %), "
            f"mean {mean:.1f} ms, {marks} "
            f"(goals 60, 150), {1000 / mean:.0f} pictures/s on one core (goal 35)"
        )
    _average_precision(options)


def _weighted(ordered: list[tuple[float, float]], mark: float) -> float:
    total = 0.0
    for spent, weight in ordered:
        total += weight
        if total >= mark:
            return spent
    return ordered[-1][0]


def _average_precision(options: argparse.Namespace) -> None:
    """mAP@0.5 of the locators over the scenes of the conditions: there is one class, so it is its AP."""
    locators = dict(_locators())
    if options.qrdet.is_file():
        locators["qrdet-n"] = load("qrdet-n", options.qrdet)
    for name, locator in locators.items():
        scored: list[tuple[float, bool]] = []
        codes = 0
        for condition in qr_scenes.CONDITIONS:
            for scene in qr_scenes.scenes(condition, options.scenes):
                left = [corners for _, corners in scene.codes]
                codes += len(left)
                for each in locator.locate(scene.picture):
                    overlaps = [_overlap(each.corners, corners) for corners in left]
                    hit = bool(overlaps) and max(overlaps) >= 0.5
                    scored.append((each.confidence, hit))
                    if hit:
                        left.pop(int(np.argmax(overlaps)))
        print(f"qr: mAP@0.5 of {name}: {_area(scored, codes):.3f} over {codes} codes")


def _overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    common, _ = cv2.intersectConvexConvex(cv2.convexHull(one), cv2.convexHull(other))
    union = cv2.contourArea(cv2.convexHull(one)) + cv2.contourArea(cv2.convexHull(other)) - common
    return float(common / union) if union else 0.0


def _area(scored: list[tuple[float, bool]], codes: int) -> float:
    """The area under precision over recall, with precision made monotonic."""
    scored.sort(key=lambda each: -each[0])
    hits = np.cumsum([hit for _, hit in scored])
    precision = hits / np.arange(1, len(scored) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0.0], hits / max(codes, 1)])
    return float((np.diff(recall) * precision).sum())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
