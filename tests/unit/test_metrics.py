"""The closed list of metrics, its document, and what is read of the process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from visionmesh.observability import metrics, reference
from visionmesh.observability.process import ProcessFamily, family_usage
from visionmesh.settings import ROOT


def test_the_committed_document_is_current() -> None:
    assert reference.PATH.read_text() == reference.render(), (
        "run `python -m visionmesh.observability.reference`"
    )


def test_nothing_is_exposed_that_is_not_in_the_list() -> None:
    exposed = {family.name for family in REGISTRY.collect() if family.name.startswith("mesh_")}
    listed = {re.sub(r"_(total|info)$", "", one.name) for one in reference.described()}
    # A test that runs in the same process may have metrics of its own; the mesh has none elsewhere.
    assert listed >= {re.sub(r"_(total|info)$", "", name) for name in exposed}


@pytest.mark.parametrize("metric", reference.described(), ids=lambda one: one.name)
def test_a_metric_follows_the_naming_of_prometheus(metric: reference.Described) -> None:
    assert re.fullmatch(r"mesh_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|percent)(_|$)", metric.name), "base units"
    assert metric.text.endswith(".")
    assert not {"image_id", "key", "path", "offset"} & set(metric.labels), "a series for every one"


def test_what_waits_is_measured_for_longer_than_alerts_and_deadlines_have() -> None:
    queued = (metrics.END_TO_END_SECONDS, metrics.AGE_SECONDS)
    reading = (metrics.STEP_SECONDS, metrics.OCR_STAGE_SECONDS, metrics.HTTP_SECONDS)
    # The last is infinity, of which a quantile makes the one before.
    assert {histogram._upper_bounds[-2] for histogram in (*queued, *reading)} == {3600.0}
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    (late,) = (rule["expr"] for rule in rules if rule["alert"] == "LagHigh")
    assert float(late.split(" > ")[1]) in metrics.END_TO_END_SECONDS._upper_bounds


# Has a child of 50 MB that works a little and waits, from one line that it is sent until the next. Each line
# that is printed says that a step is done.
PARENT = """
import subprocess, sys
busy = "x = bytearray(50_000_000); sum(range(3_000_000)); print(flush=True); input()"
print(flush=True)
input()
child = subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE)
input()
child.communicate(b"end")
print(flush=True)
input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_children_are_counted_while_they_live_and_after() -> None:
    """Of a process of its own: what else hangs under the tests comes and goes."""
    usages = []
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        for _ in range(3):
            assert parent.stdout.readline() == b"\n"
            usages.append(family_usage(parent.pid))
            parent.stdin.write(b"next\n")
    before, during, after = usages
    assert before is not None
    assert during is not None
    assert after is not None
    assert [before.processes, during.processes, after.processes] == [1, 2, 1]
    assert during.resident_bytes > before.resident_bytes + 40_000_000
    assert before.cpu_seconds < during.cpu_seconds <= after.cpu_seconds


def write_process(proc: Path, pid: int, name: str, parent: int, *, ticks: int, pages: int) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    fields = ["S", str(parent), *["0"] * 9, str(ticks), "0", "0", "0", *["0"] * 6, str(pages), *["0"] * 20]
    (folder / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")


def test_a_family_is_told_from_its_neighbours_whatever_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("")
    write_process(tmp_path, 10, "mesh", 1, ticks=100, pages=1)
    write_process(tmp_path, 11, "a) S 1 (b", 10, ticks=200, pages=2)
    write_process(tmp_path, 12, "grandchild", 11, ticks=400, pages=4)
    write_process(tmp_path, 13, "stranger", 1, ticks=800, pages=8)
    (tmp_path / "14").mkdir()  # ended between the listing and the look
    usage = family_usage(10, proc=tmp_path)
    assert usage is not None
    assert usage.processes == 3
    assert usage.cpu_seconds == 700 / os.sysconf("SC_CLK_TCK")
    assert usage.resident_bytes == 7 * os.sysconf("SC_PAGE_SIZE")
    assert family_usage(99, proc=tmp_path) is None
    assert family_usage(10, proc=tmp_path / "none") is None


def values(family: ProcessFamily) -> dict[str, float]:
    return {sample.name: sample.value for metric in family.collect() for sample in metric.samples}


def test_processor_time_never_falls_though_a_child_ends_between_two_looks(tmp_path: Path) -> None:
    own = os.getpid()
    write_process(tmp_path, own, "mesh", 1, ticks=100, pages=1)
    write_process(tmp_path, own + 1, "child", own, ticks=400, pages=1)
    family = ProcessFamily(cgroup=tmp_path, proc=tmp_path)
    told = [values(family)["mesh_process_cpu_seconds_total"]]
    for ticks in (100, 600):
        for left in (own, own + 1):
            shutil.rmtree(tmp_path / str(left), ignore_errors=True)
        write_process(tmp_path, own, "mesh", 1, ticks=ticks, pages=1)
        told.append(values(family)["mesh_process_cpu_seconds_total"])
    assert told == [ticks / os.sysconf("SC_CLK_TCK") for ticks in (500, 500, 600)]


def test_a_container_tells_its_limit_and_its_kills(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("2147483648\n")
    (tmp_path / "memory.current").write_text("1073741824\n")
    (tmp_path / "memory.stat").write_text("anon 900000000\ninactive_file 73741824\n")
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    found = values(ProcessFamily(cgroup=tmp_path))
    assert found["mesh_memory_limit_bytes"] == 2 * 1024**3
    assert found["mesh_memory_used_bytes"] == 1_000_000_000
    assert found["mesh_memory_kills_total"] == 1
    assert 0 <= found["mesh_disk_free_bytes"] <= found["mesh_disk_size_bytes"]


@pytest.mark.parametrize("limit", ["max\n", None])
def test_without_a_limit_there_is_none(limit: str | None, tmp_path: Path) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    found = values(ProcessFamily(cgroup=tmp_path, proc=tmp_path / "none"))
    assert not {name for name in found if not name.startswith("mesh_disk")}
