"""What `mesh bench qr` keeps from run to run, and the tables it makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import qr_report, qr_scenes
from benchmarks.qr_report import Journal, OutOfTimeError, Record


def scene(name: str, reader: str, right: int, cpu: float, case: str = "0") -> Record:
    return Record("scenes", name, case, reader, texts=4, right=right, cpu=cpu, wall=2 * cpu)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "figures.jsonl"
    journal = Journal(file, 1000)
    journal.add(scene("sharp", "mine", 4, 1.0))
    again = Journal(file, 1000)
    assert again.missing("scenes", "sharp", "0", ["mine", "theirs"]) == ["theirs"]
    assert [record.cpu for record in again.records] == [1.0]


def test_a_run_ends_after_its_time_and_not_when_all_is_there() -> None:
    journal = Journal(None, -1)
    journal.add(scene("sharp", "mine", 4, 1.0))
    assert journal.missing("scenes", "sharp", "0", ["mine"]) == []
    with pytest.raises(OutOfTimeError):
        journal.missing("scenes", "sharp", "1", ["mine"])


def records() -> list[Record]:
    """All scenarios and conditions: one reader misses half of the invoices, the other reads everything."""
    found = []
    for name in {**qr_scenes.CONDITIONS, **qr_scenes.SCENARIOS}:
        found.append(
            scene(name, "cascade", 2 if name == "invoice" else 4, 10.0 if name == "invoice" else 90.0)
        )
        found.append(scene(name, "light", 4, 200.0))
    for profile, peak in (("cascade", 100.0), ("light", 150.0)):
        found.append(
            Record("service", "", "scenarios", profile, loaded=80, peak=peak, p95=5, rate=9, cpu_rate=9)
        )
    return found


def test_scenarios_count_by_their_shares(capsys: pytest.CaptureFixture[str]) -> None:
    qr_report.text(records(), wall=False, misses=False)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "weighted: cascade" in line]
    # 0.85 x 1/2 + 0.15; 0.85 x 10 ms + 0.15 x 90 ms.
    assert "57.5% right" in line
    assert "mean 22.0 ms, p50 10.0, p95 90.0" in line


def test_the_tables_say_what_to_take(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{qr_report.BEGIN}\nold\n{qr_report.END}\nafter\n")
    qr_report.put(qr_report.markdown(records(), wall=False), page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| at most 110 MiB | `cascade` (100.0%, 22 ms, 100 MiB) |" in text
    assert "| p95 at most 25 ms | none |" in text
    assert "| at least 95% over the conditions | `cascade`" in text
    assert "| sharp | 99% | 100.0% | 100.0% |" in text


def test_times_of_the_clock_are_told_when_asked_for() -> None:
    assert "| ms, mean |  | 44.0 | 400.0 |" in qr_report.markdown(records(), wall=True)
