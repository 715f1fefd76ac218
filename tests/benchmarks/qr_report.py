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

from benchmarks import qr_readers, qr_scenes
from benchmarks.figures import percentile
from visionmesh.settings import ROOT

TURNS = (0, 90, 180, 270)

# Between these, a page has the tables.
BEGIN = "<!-- figures: mesh bench qr --json FILE --report --markdown docs/qr.md -->"
END = "<!-- end of figures -->"


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
            found[reader] = {"right": right, "mean": mean, "rate": 1000 / mean, **marks}
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


def markdown(records: Sequence[Record], *, wall: bool) -> str:
    """The tables of docs/qr.md."""
    of = _Records(records, wall)
    lines = [
        f"Measured at {', '.join(_commits(records))} on {_machine()}; milliseconds are of {_clock(wall)}.",
        "",
    ]
    for name in dict.fromkeys(record.reader for record in records):
        if name in qr_readers.NOTES:
            lines += [f"`{name}` is {qr_readers.NOTES[name]}.", ""]
    for tables in (_choices, _markdown_of_scenes, _markdown_of_pictures, _markdown_of_memory):
        lines += tables(of)
    return "\n".join(lines)


def put(tables: str, file: Path) -> None:
    """Replaces the tables of a page, which stand between two comments."""
    before, _, rest = file.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}")


@dataclass
class _Choice:
    """A profile of ours. right: in the scenarios, by their shares; hard: in the conditions, all the same."""

    profile: str
    right: float
    hard: float
    mean: float
    p95: float
    memory: float


def _choices(of: _Records) -> list[str]:
    """The seed's tables of what to take for which need, of our profiles."""
    memory = {record.reader: record.peak for record in of.of("service")}
    weighted = of.weighted() if of.of("scenes") else {}
    choices = []
    for reader, figures in weighted.items():
        profile = "onnx" if reader == "locator-n" else reader
        if profile in memory:
            shares = [
                of.sums("scenes", lambda record, n=name: record.condition == n)[reader]  # type: ignore[misc]
                for name in qr_scenes.CONDITIONS
            ]
            hard = sum(each.right / each.texts for each in shares) / len(shares)
            choices.append(
                _Choice(profile, figures["right"], hard, figures["mean"], figures["p95"], memory[profile])
            )
    if not choices:
        return []
    lines = ["### Which profile", ""]
    head = ["profile", "right, scenarios", "right, conditions", "ms, mean", "ms, p95", "MiB at most"]
    figures = [
        [f"{each.right:.1%}", f"{each.hard:.1%}", *(f"{x:.0f}" for x in (each.mean, each.p95, each.memory))]
        for each in choices
    ]
    lines += _table(head, [[f"`{each.profile}`", *row] for each, row in zip(choices, figures, strict=True)])
    rows = []
    for share in (0.7, 0.8, 0.9, 0.95):
        able = [each for each in choices if each.hard >= share]
        rows.append([f"at least {share:.0%} over the conditions", _named(able, lambda each: -each.mean)])
    for mebibytes in (110, 128, 160, 256):
        able = [each for each in choices if each.memory <= mebibytes]
        rows.append([f"at most {mebibytes} MiB", _named(able, lambda each: each.hard)])
    for milliseconds in (25, 50, 150):
        able = [each for each in choices if each.p95 <= milliseconds]
        rows.append([f"p95 at most {milliseconds} ms", _named(able, lambda each: each.hard)])
    return lines + _table(["need", "profile"], rows)


def _named(able: list[_Choice], worth: Callable[[_Choice], float]) -> str:
    if not able:
        return "none"
    best = max(able, key=worth)
    return f"`{best.profile}` ({best.hard:.1%}, {best.mean:.0f} ms, {best.memory:.0f} MiB)"


def _markdown_of_pictures(of: _Records) -> list[str]:
    if not of.of("pictures"):
        return []
    readers = list(of.sums("pictures"))
    named: list[tuple[str, Pick]] = [
        (condition.removeprefix("boofcv "), lambda record, c=condition: record.condition == c)  # type: ignore[misc]
        for condition in of.conditions("pictures")
        if condition.startswith("boofcv")
    ]
    named.append(("**all of BoofCV**", lambda record: record.condition.startswith("boofcv")))
    rows = []
    for name, pick in named:
        sums = of.sums("pictures", pick)
        codes = max(each.codes for each in sums.values())
        rows.append([name, f"{codes:.0f}", *[_count(sums.get(reader), "found") for reader in readers]])
    for turn in TURNS:
        sums = of.sums("pictures", lambda record, t=turn: _is_turned(record, t))  # type: ignore[misc]
        if sums:
            texts = max(each.texts for each in sums.values())
            shares = [_share(sums.get(reader)) for reader in readers]
            rows.append([f"zxing at {turn}°, contents right", f"{texts:.0f}", *shares])
    sums = of.sums("pictures")
    rows.append(["ms, mean", "", *[f"{sums[reader].mean:.1f}" for reader in readers]])
    for mark in (50, 95):
        rows.append([f"ms, p{mark}", "", *[f"{sums[reader].at(mark / 100):.1f}" for reader in readers]])
    for condition in of.conditions("false"):
        false = of.sums("false", lambda record, c=condition: record.condition == c)  # type: ignore[misc]
        count = max(len(each.times) for each in false.values())
        counts = [_count(false.get(reader), "false") for reader in readers]
        rows.append([f"false readings, {condition}", f"{count}", *counts])
    lines = ["### Codes found in photographs", "", *_table(["condition", "codes", *readers], rows)]
    mine, theirs, count = of.beside("cascade", "zxing-cpp")
    if count:
        lines += [
            f"On the {count} pictures where zxing-cpp reads, the cascade takes {mine:.1f} ms and "
            f"zxing-cpp {theirs:.1f} ms: {mine / theirs:.2f} times.",
            "",
        ]
    return lines


def _count(sums: Sum | None, what: str) -> str:
    return "" if sums is None else f"{getattr(sums, what):.0f}"


def _share(sums: Sum | None) -> str:
    return "" if sums is None or not sums.texts else f"{sums.right / sums.texts:.1%}"


def _markdown_of_scenes(of: _Records) -> list[str]:
    if not of.of("scenes"):
        return []
    readers = list(of.sums("scenes"))
    rows = []
    for name, (_, goal) in {**qr_scenes.CONDITIONS, **qr_scenes.SCENARIOS}.items():
        sums = of.sums("scenes", lambda record, n=name: record.condition == n)  # type: ignore[misc]
        if sums:
            aim = f"{goal:.0f}%" if name in qr_scenes.CONDITIONS else ""
            rows.append([name, aim, *[_share(sums.get(reader)) for reader in readers]])
    weighted = of.weighted()
    for label, key, form, aim in (
        ("**all scenarios, 85/10/3/2**", "right", ".1%", "92%"), ("ms, mean", "mean", ".1f", ""),
        ("ms, p50", "p50", ".1f", "60"), ("ms, p95", "p95", ".1f", "150"), ("ms, p99", "p99", ".1f", ""),
        ("pictures/s on one core", "rate", ".0f", "35"),
    ):  # fmt: skip
        cells = [format(weighted[reader][key], form) if reader in weighted else "" for reader in readers]
        rows.append([label, aim, *cells])
    count = len({record.case for record in of.of("scenes")})
    head = ["condition", "the seed's large model, or goal", *readers]
    return ["### Codes read, by condition", "", f"{count} scenes a row.", "", *_table(head, rows)]


def _markdown_of_memory(of: _Records) -> list[str]:
    lines = []
    if of.of("service"):
        head = ["profile", "MiB loaded", "MiB at most", "p50 ms", "p95 ms", "p99 ms", "pictures/s",
                "pictures/s of one core's time"]  # fmt: skip
        rows = [
            [f"`{each.reader}`", *[f"{value:.0f}" for value in (
                each.loaded, each.peak, each.p50, each.p95, each.p99, each.rate, each.cpu_rate
            )]]
            for each in of.of("service")
        ]  # fmt: skip
        lines += ["### The service over HTTP, by the clock, with all its processes", "", *_table(head, rows)]
    if of.of("memory"):
        rows = [[each.reader, f"{each.loaded:.0f}", f"{each.peak:.0f}"] for each in of.of("memory")]
        lines += ["### A process with nothing but the reader", ""]
        lines += _table(["reader", "MiB loaded", "MiB at most"], rows)
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [*(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)), ""]


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
