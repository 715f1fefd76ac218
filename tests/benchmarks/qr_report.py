"""What `qr` measured: the file that keeps it from run to run, and the tables that are printed of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import qr_readers, qr_scenes
from benchmarks.figures import percentile
from visionmesh.settings import ROOT

TURNS = (0, 90, 180, 270)


class OutOfTimeError(Exception):
    """The run has taken the seconds it was given."""


@dataclass
class Record:
    """One reader on one picture, or on all of a part that has no pictures.

    codes, found: true outlines, and those a reader pointed into. texts, right: true contents, and those it
    read. false: contents that are in no truth. cpu, wall: milliseconds. loaded, peak: MiB. Of the service:
    p50, p95, p99 in milliseconds by the clock, `cpu_rate` and `rate` in pictures a second.
    """

    part: str
    condition: str
    case: str
    reader: str
    codes: float = 0
    found: float = 0
    texts: float = 0
    right: float = 0
    false: float = 0
    cpu: float = 0.0
    wall: float = 0.0
    loaded: float = 0.0
    peak: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    rate: float = 0.0
    cpu_rate: float = 0.0
    commit: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.part, self.condition, self.case, self.reader


class Journal:
    """The records, in a file when there is one: a line of JSON each."""

    def __init__(self, path: Path | None, seconds: float) -> None:
        self._path = path
        self._end = time.monotonic() + seconds
        self._commit = _commit()
        lines = path.read_text().splitlines() if path is not None and path.is_file() else []
        self.records = [Record(**json.loads(line)) for line in lines]
        self._known = {record.key for record in self.records}

    def missing(self, part: str, condition: str, case: str, readers: Iterable[str]) -> list[str]:
        """The readers that were not measured on a case. Raises `OutOfTimeError`."""
        names = [name for name in readers if (part, condition, case, name) not in self._known]
        if names:
            self.check_time()
        return names

    def check_time(self) -> None:
        """Raises `OutOfTimeError`."""
        if time.monotonic() > self._end:
            raise OutOfTimeError

    def add(self, record: Record) -> None:
        record.commit = self._commit
        self.records.append(record)
        self._known.add(record.key)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")


def _commit() -> str:
    try:
        run = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass
class Sum:
    """Of many records of one reader."""

    codes: float = 0
    found: float = 0
    texts: float = 0
    right: float = 0
    false: float = 0
    times: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.times) / max(len(self.times), 1)

    def at(self, share: float) -> float:
        return percentile(self.times, share) if self.times else 0.0


Pick = Callable[[Record], bool]


class _Records:
    """Records with the time that is told: of the CPU, or of the clock."""

    def __init__(self, records: Sequence[Record], wall: bool) -> None:
        self.all = records
        self._wall = wall

    def time(self, record: Record) -> float:
        return record.wall if self._wall else record.cpu

    def of(self, part: str) -> list[Record]:
        return [record for record in self.all if record.part == part]

    def sums(self, part: str, pick: Pick = lambda _: True) -> dict[str, Sum]:
        """By reader, in the order in which they were measured."""
        sums: dict[str, Sum] = {}
        for record in self.of(part):
            if pick(record):
                each = sums.setdefault(record.reader, Sum())
                each.codes += record.codes
                each.found += record.found
                each.texts += record.texts
                each.right += record.right
                each.false += record.false
                each.times.append(self.time(record))
        return sums

    def conditions(self, part: str) -> list[str]:
        return list(dict.fromkeys(record.condition for record in self.of(part)))

    def beside(self, mine: str, other: str) -> tuple[float, float, int]:
        """Mean milliseconds of two readers on the pictures where the other one finds a code."""
        by_case = {(record.condition, record.case, record.reader): record for record in self.of("pictures")}
        pairs = [
            (self.time(by_case[condition, case, mine]), self.time(record))
            for (condition, case, reader), record in by_case.items()
            if reader == other and record.found and (condition, case, mine) in by_case
        ]
        if not pairs:
            return 0.0, 0.0, 0
        return sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs), len(pairs)

    def weighted(self) -> dict[str, dict[str, float]]:
        """By reader, over the seed's scenarios by their shares of the traffic: `right`, `mean` and marks."""
        found: dict[str, dict[str, float]] = {}
        by_scenario = {
            name: self.sums("scenes", lambda record, name=name: record.condition == name)  # type: ignore[misc]
            for name in qr_scenes.SCENARIOS
        }
        readers = set.intersection(*(set(sums) for sums in by_scenario.values()))
        for reader in (name for name in self.sums("scenes") if name in readers):
            ordered: list[tuple[float, float]] = []
            right = 0.0
            for name, (_, share) in qr_scenes.SCENARIOS.items():
                each = by_scenario[name][reader]
                right += share * each.right / each.texts
                ordered += [(spent, share / len(each.times)) for spent in each.times]
            ordered.sort()
            mean = sum(spent * weight for spent, weight in ordered)
            marks = {f"p{mark}": _mark(ordered, mark / 100) for mark in (50, 95, 99)}
            found[reader] = {"right": right, "mean": mean, **marks}
        return found


def _mark(ordered: list[tuple[float, float]], mark: float) -> float:
    total = 0.0
    for spent, weight in ordered:
        total += weight
        if total >= mark:
            return spent
    return ordered[-1][0]


# Text.


def text(records: Sequence[Record], *, wall: bool, misses: bool) -> None:
    """Prints a line per figure."""
    of = _Records(records, wall)
    print(f"qr: {_machine()}; commits {', '.join(_commits(records))}; times of {_clock(wall)}")
    for name in dict.fromkeys(record.reader for record in records):
        if name in qr_readers.NOTES:
            print(f"qr: {name}: {qr_readers.NOTES[name]}")
    if of.of("pictures"):
        _text_of_pictures(of)
        if misses:
            for record in of.of("pictures"):
                if record.reader == "cascade" and (record.found, record.right) < (record.codes, record.texts):
                    found = f"{record.found:.0f} of {record.codes:.0f} found"
                    print(f"qr: missed in {record.condition}: {record.case}: {found}")
    for condition in of.conditions("false"):
        for name, each in of.sums("false", lambda record, c=condition: record.condition == c).items():  # type: ignore[misc]
            print(f"qr: {name}: {each.false:.0f} false readings in {len(each.times)} pictures ({condition})")
    if of.of("levels"):
        _text_of_levels(of)
    if of.of("scenes"):
        _text_of_scenes(of)
    for record in of.of("memory"):
        print(
            f"qr: {record.reader}: {record.loaded:.0f} MiB loaded, {record.peak:.0f} MiB at most "
            "while reading large pictures (one process)"
        )
    for record in of.of("service"):
        print(
            f"qr: service, profile {record.reader}: {record.loaded:.0f} MiB loaded, {record.peak:.0f} MiB at "
            f"most, all its processes (goal 120 MB = 114 MiB); p50 {record.p50:.0f} ms, p95 {record.p95:.0f} "
            f"ms, p99 {record.p99:.0f} ms, {record.rate:.0f} pictures/s by the clock, "
            f"{record.cpu_rate:.0f} pictures/s of one core's time (goals 60 ms, 150 ms, 35)"
        )


def _text_of_pictures(of: _Records) -> None:
    head = f"{'condition':<26} {'reader':<22} {'found':>9} {'right':>9} {'mean':>8} {'p50':>8} {'p95':>8} ms"
    print(f"\n{head}")
    for condition in of.conditions("pictures"):
        _lines(condition, of.sums("pictures", lambda record, c=condition: record.condition == c))  # type: ignore[misc]
    for group in ("boofcv", "zxing"):
        _lines(
            f"{group}, all",
            of.sums("pictures", lambda record, group=group: record.condition.startswith(group)),  # type: ignore[misc]
        )
    for turn in TURNS:
        for name, each in of.sums("pictures", lambda record, t=turn: _is_turned(record, t)).items():  # type: ignore[misc]
            print(f"zxing qrcode at {turn} degrees, {name}: {each.right / each.texts:.1%} right (goal 96 %)")
    mine, theirs, count = of.beside("cascade", "zxing-cpp")
    if count:
        print(
            f"qr: where zxing-cpp reads ({count} pictures): cascade {mine:.2f} ms, "
            f"zxing-cpp {theirs:.2f} ms, ratio {mine / theirs:.2f} (goal at most 2)"
        )


def _is_turned(record: Record, turn: int) -> bool:
    return record.condition.startswith("zxing qrcode") and record.condition.endswith(f" {turn}")


def _lines(condition: str, sums: dict[str, Sum]) -> None:
    for name, each in sums.items():
        right = f"{each.right:.0f}/{each.texts:.0f}" if each.texts else "-"
        print(
            f"{condition:<26} {name:<22} {f'{each.found:.0f}/{each.codes:.0f}':>9} {right:>9} "
            f"{each.mean:>8.1f} {each.at(0.5):>8.1f} {each.at(0.95):>8.1f}"
        )


def _text_of_levels(of: _Records) -> None:
    sums = of.sums("levels")
    print(f"\n{'level':<22} {'adds':>6} {'of':>6} {'costs':>8} ms a picture")
    before = Sum()
    for name, each in sums.items():
        if name.startswith("up to "):
            level = name.removeprefix("up to ")
            cost = each.mean - before.mean
            print(f"{level:<22} {each.found - before.found:>6.0f} {each.codes:>6.0f} {cost:>8.2f}")
            before = each
    for name, each in sums.items():
        if not name.startswith("up to "):
            print(
                f"alone: {name:<22} {each.found:>6.0f}/{each.codes:.0f} codes, {each.mean:>8.2f} ms a picture"
            )


def _text_of_scenes(of: _Records) -> None:
    print(f"\n{'scenes':<22} {'reader':<22} {'right':>8} {'mean':>8} {'p50':>8} {'p95':>8} {'p99':>8} ms")
    for name, (_, goal) in {**qr_scenes.CONDITIONS, **qr_scenes.SCENARIOS}.items():
        aim = f"  (seed's large model {goal:.0f} %)" if name in qr_scenes.CONDITIONS else ""
        for reader, each in of.sums("scenes", lambda record, n=name: record.condition == n).items():  # type: ignore[misc]
            marks = " ".join(f"{each.at(mark):>8.1f}" for mark in (0.5, 0.95, 0.99))
            share = each.right / each.texts
            print(f"{name:<22} {reader:<22} {share:>8.1%} {each.mean:>8.1f} {marks}{aim}")
    for reader, each in of.sums("scenes").items():
        if each.false:
            print(f"qr: {reader}: {each.false:.0f} false readings in {len(each.times)} scenes")
    for reader, figures in of.weighted().items():
        print(
            f"scenarios, weighted: {reader:<22} {figures['right']:.1%} right (goal 92 %), "
            f"mean {figures['mean']:.1f} ms, p50 {figures['p50']:.1f}, p95 {figures['p95']:.1f}, "
            f"p99 {figures['p99']:.1f} (goals 60, 150), {1000 / figures['mean']:.0f} pictures/s on one core "
            "(goal 35)"
        )


# Markdown.


def markdown(records: Sequence[Record], *, wall: bool, misses: bool = False) -> None:
    """Prints the tables of docs/qr.md."""
    del misses
    of = _Records(records, wall)
    print(f"<!-- mesh bench qr --report --markdown; commits {', '.join(_commits(records))} -->")
    print(f"Measured on {_machine()}; milliseconds are of {_clock(wall)}.\n")
    for name in dict.fromkeys(record.reader for record in records):
        if name in qr_readers.NOTES:
            print(f"`{name}` is {qr_readers.NOTES[name]}.\n")
    _markdown_of_pictures(of)
    _markdown_of_scenes(of)
    _markdown_of_memory(of)


def _markdown_of_pictures(of: _Records) -> None:
    if not of.of("pictures"):
        return
    readers = list(of.sums("pictures"))
    print("### Codes found in photographs, of those there are\n")
    _row(["condition", "codes", *readers])
    _row(["---", *["---:"] * (len(readers) + 1)])
    rows: list[tuple[str, Pick]] = [
        (condition.removeprefix("boofcv "), lambda record, c=condition: record.condition == c)  # type: ignore[misc]
        for condition in of.conditions("pictures")
        if condition.startswith("boofcv")
    ]
    rows.append(("**all of BoofCV**", lambda record: record.condition.startswith("boofcv")))
    for name, pick in rows:
        sums = of.sums("pictures", pick)
        codes = max(each.codes for each in sums.values())
        _row([name, f"{codes:.0f}", *[_count(sums.get(reader), "found") for reader in readers]])
    for turn in TURNS:
        sums = of.sums("pictures", lambda record, t=turn: _is_turned(record, t))  # type: ignore[misc]
        if sums:
            codes = max(each.texts for each in sums.values())
            shares = [_share(sums.get(reader)) for reader in readers]
            _row([f"zxing at {turn}°, contents right", f"{codes:.0f}", *shares])
    sums = of.sums("pictures")
    _row(["ms, mean", "", *[f"{sums[reader].mean:.1f}" for reader in readers]])
    _row(["ms, p50", "", *[f"{sums[reader].at(0.5):.1f}" for reader in readers]])
    _row(["ms, p95", "", *[f"{sums[reader].at(0.95):.1f}" for reader in readers]])
    for condition in of.conditions("false"):
        false = of.sums("false", lambda record, c=condition: record.condition == c)  # type: ignore[misc]
        count = max(len(each.times) for each in false.values())
        _row([f"false readings, {condition}", f"{count}", *[_count(false.get(r), "false") for r in readers]])
    mine, theirs, count = of.beside("cascade", "zxing-cpp")
    if count:
        print(
            f"\nOn the {count} pictures where zxing-cpp reads, the cascade takes {mine:.1f} ms and "
            f"zxing-cpp {theirs:.1f} ms: {mine / theirs:.2f} times."
        )
    print()


def _count(sums: Sum | None, what: str) -> str:
    return "" if sums is None else f"{getattr(sums, what):.0f}"


def _share(sums: Sum | None) -> str:
    return "" if sums is None or not sums.texts else f"{sums.right / sums.texts:.1%}"


def _markdown_of_scenes(of: _Records) -> None:
    if not of.of("scenes"):
        return
    readers = list(of.sums("scenes"))
    print("### Codes read, by condition\n")
    _row(["condition", "goal", *readers])
    _row(["---", *["---:"] * (len(readers) + 1)])
    for name, (_, goal) in {**qr_scenes.CONDITIONS, **qr_scenes.SCENARIOS}.items():
        sums = of.sums("scenes", lambda record, n=name: record.condition == n)  # type: ignore[misc]
        if sums:
            aim = f"{goal:.0f}%" if name in qr_scenes.CONDITIONS else ""
            _row([name, aim, *[_share(sums.get(reader)) for reader in readers]])
    weighted = of.weighted()
    for label, key, unit, goal in (
        ("**all scenarios, 85/10/3/2**", "right", "%", "92%"), ("ms, p50", "p50", "", "60"),
        ("ms, p95", "p95", "", "150"), ("ms, p99", "p99", "", ""), ("ms, mean", "mean", "", ""),
    ):  # fmt: skip
        figures = [weighted[reader][key] if reader in weighted else None for reader in readers]
        form = ".1%" if unit else ".1f"
        _row([label, goal, *["" if each is None else format(each, form) for each in figures]])
    rates = [f"{1000 / weighted[reader]['mean']:.0f}" if reader in weighted else "" for reader in readers]
    _row(["pictures/s on one core", "35", *rates])
    print()


def _markdown_of_memory(of: _Records) -> None:
    if of.of("service"):
        print("### The service, all its processes\n")
        _row(
            ["profile", "MiB loaded", "MiB at most", "p50 ms", "p95 ms", "p99 ms", "pictures/s",
             "pictures/s of one core's time"]
        )  # fmt: skip
        _row(["---", *["---:"] * 7])
        for record in of.of("service"):
            figures = (
                record.loaded,
                record.peak,
                record.p50,
                record.p95,
                record.p99,
                record.rate,
                record.cpu_rate,
            )
            _row([record.reader, *[f"{each:.0f}" for each in figures]])
        print()
    if of.of("memory"):
        print("### A process with nothing but the reader\n")
        _row(["reader", "MiB loaded", "MiB at most"])
        _row(["---", "---:", "---:"])
        for record in of.of("memory"):
            _row([record.reader, f"{record.loaded:.0f}", f"{record.peak:.0f}"])
        print()


def _row(cells: Sequence[Any]) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def _commits(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record.commit for record in records))


def _clock(wall: bool) -> str:
    return "the clock" if wall else "CPU time on one thread"


def _machine() -> str:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, {os.cpu_count()} cores"
