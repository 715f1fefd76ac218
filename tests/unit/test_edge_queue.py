"""The queue of an edge device: numbers without holes, nothing lost at a kill, at the bound the oldest go."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_publisher.devices.protocol import Reading
from edge_publisher.queue import POWER_CUT_GAP, ReadingQueue, Stored
from visionmesh.contracts import SensorReading
from visionmesh.errors import Unavailable

BEGAN = datetime(2026, 11, 21, 14, tzinfo=UTC)
LARGE = 1 << 30


def reading(number: int, sensor: str = "tfluna", **values: Any) -> Reading:
    values = values or {"distance_cm": float(number)}
    return Reading("pi-1", sensor, values, BEGAN + timedelta(seconds=number), number)


def readings(*numbers: int, sensor: str = "tfluna") -> list[Reading]:
    return [reading(number, sensor) for number in numbers]


def decoded(stored: list[Stored]) -> list[SensorReading]:
    return [msgspec.json.decode(each.value, type=SensorReading) for each in stored]


def seqs(stored: list[Stored]) -> list[int]:
    return [each.seq for each in decoded(stored)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge" / "queue.db"


@pytest.fixture
def queue(path: Path) -> Iterator[ReadingQueue]:
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    yield queue
    queue.close()


def killed(path: Path) -> Path:
    """The files as a process leaves them that is killed now."""
    copy = path.parent.with_name(f"{path.parent.name}-killed-{random.getrandbits(40)}")
    shutil.copytree(path.parent, copy)
    return copy / path.name


def test_a_reading_gets_device_number_and_both_clocks(queue: ReadingQueue) -> None:
    queue.put([reading(7, distance_cm=12.5, valid=True, word="a", none=None)])
    (found,) = decoded(queue.after("kafka", 10))
    assert found == SensorReading(
        "pi-1", "tfluna", 1, BEGAN + timedelta(seconds=7),
        {"distance_cm": 12.5, "valid": True, "word": "a", "none": None}, 7,
    )  # fmt: skip


def test_every_sensor_of_every_device_counts_for_itself(queue: ReadingQueue) -> None:
    stored = queue.put([*readings(1, 2), *readings(3, 4, sensor="hcsr04"), *readings(5)])
    other = queue.put([Reading("pi-2", "tfluna", {}, BEGAN, 0)])
    assert seqs(stored) == [1, 2, 1, 2, 3]
    assert seqs(other) == [1]
    assert [(each.device_id, each.sensor) for each in (stored[2], other[0])] == [
        ("pi-1", "hcsr04"),
        ("pi-2", "tfluna"),
    ]


def test_what_is_acknowledged_goes_and_the_numbers_go_on_over_restarts(path: Path) -> None:
    for start in range(3):
        queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
        assert seqs(queue.put(readings(1, 2))) == [2 * start + 1, 2 * start + 2]
        stored = queue.after("kafka", 10)
        queue.acknowledge("kafka", stored[-1].id)
        queue.close()
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    assert queue.after("kafka", 10) == []
    assert queue.status().waiting == {"kafka": 0}
    queue.close()


def test_what_is_not_acknowledged_is_there_after_a_kill(path: Path) -> None:
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    first = queue.put(readings(1, 2, 3))
    queue.acknowledge("kafka", first[1].id)
    queue.put(readings(4))
    queue.acknowledge("kafka", first[2].id)  # not written down yet
    again = ReadingQueue(killed(path), sinks=["kafka"], max_bytes=LARGE)
    assert seqs(again.after("kafka", 10)) == [3, 4], "sent again, never lost"
    assert seqs(again.put(readings(5))) == [5]
    queue.close()


def test_at_whatever_moment_a_process_is_killed_numbers_and_readings_agree(path: Path) -> None:
    """After every step of a random run, the files are those of a process that ended there."""
    chance = random.Random(20261121)
    queue = ReadingQueue(path, sinks=["kafka", "mqtt"], max_bytes=LARGE)
    made = 0
    taken = {"kafka": 0, "mqtt": 0}
    for _ in range(60):
        if chance.random() < 0.5:
            count = chance.randrange(5)
            queue.put(readings(*range(count)))
            made += count
        else:
            sink = chance.choice(["kafka", "mqtt"])
            batch = queue.after(sink, chance.randrange(1, 4))
            if batch:
                queue.acknowledge(sink, batch[-1].id)
                taken[sink] = seqs(batch)[-1]
        again = ReadingQueue(killed(path), sinks=["kafka", "mqtt"], max_bytes=LARGE)
        for sink in taken:
            waiting = seqs(again.after(sink, 10_000))
            assert waiting == list(range(made + 1 - len(waiting), made + 1))
            assert len(waiting) >= made - taken[sink], "a reading is gone that nobody acknowledged"
        assert seqs(again.put(readings(1))) == [made + 1]
        again.close()
    queue.close()


WRITER = """
import sys, threading
from datetime import UTC, datetime
from pathlib import Path
from edge_publisher.devices.protocol import Reading
from edge_publisher.queue import ReadingQueue

queue = ReadingQueue(Path(sys.argv[1]), sinks=["kafka"], max_bytes=1 << 30)
while True:
    stored = queue.put([Reading("pi-1", "tfluna", {"a": 1.5}, datetime.now(UTC), 1)] * 5)
    print(stored[-1].value.decode(), flush=True)
"""


def test_a_process_that_is_killed_while_it_writes_has_written_what_it_said(path: Path) -> None:
    last = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert process.stdout is not None
        for line in itertools.islice(process.stdout, 50):
            last = json.loads(line)["seq"]
        os.kill(process.pid, signal.SIGKILL)
        for line in process.stdout:
            if line.endswith(b"}\n"):
                last = json.loads(line)["seq"]
        process.wait()
        process.stdout.close()
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    found = seqs(queue.after("kafka", 1_000_000))
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= last >= 750
    queue.close()


def test_after_a_power_cut_no_number_is_given_twice(path: Path) -> None:
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE, boot_id="one")
    queue.put(readings(1, 2))
    cut = killed(path)
    queue.close()
    again = ReadingQueue(cut, sinks=["kafka"], max_bytes=LARGE, boot_id="two")
    assert seqs(again.put(readings(3))) == [3 + POWER_CUT_GAP]
    again.close()
    restarted = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE, boot_id="two")
    assert seqs(restarted.put(readings(3))) == [3], "it was closed before the machine was"
    restarted.close()


def test_each_sink_has_a_place_of_its_own(path: Path) -> None:
    queue = ReadingQueue(path, sinks=["kafka", "mqtt"], max_bytes=LARGE)
    stored = queue.put(readings(1, 2, 3))
    queue.acknowledge("kafka", stored[2].id)
    queue.acknowledge("mqtt", stored[0].id)
    queue.put([])
    assert queue.status().waiting == {"kafka": 0, "mqtt": 2}
    assert seqs(queue.after("mqtt", 10)) == [2, 3]
    queue.close()
    alone = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    alone.put([])
    assert alone.status().waiting == {"kafka": 0}
    alone.close()
    both = ReadingQueue(path, sinks=["kafka", "mqtt"], max_bytes=LARGE)
    assert both.after("mqtt", 10) == [], "a sink that was not there does not hold readings up"
    assert seqs(both.put(readings(4))) == [4]
    assert seqs(both.after("mqtt", 10)) == [4]
    both.close()


def test_beyond_its_bound_the_oldest_go_and_are_counted(path: Path) -> None:
    bound = 1024 * 1024
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=bound)
    for _ in range(100):
        queue.put([reading(1, text="x" * 200)] * 100)
        assert queue.status().bytes <= bound
    status = queue.status()
    left = seqs(queue.after("kafka", 100_000))
    assert left == list(range(10_001 - len(left), 10_001)), "one hole, at the beginning"
    assert status.dropped == {"bound": 10_000 - len(left), "disk_full": 0}
    assert status.dropped_at is not None
    assert len(left) > 0.9 * bound / 330, "no more goes than has to"
    assert path.stat().st_size < 1.2 * bound
    assert seqs(queue.put(readings(1))) == [10_001]
    queue.close()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR])
def test_a_bound_that_can_not_be_kept_at_once_stores_nothing_twice(
    path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=256 * 1024)
    drop_oldest = queue._drop_oldest
    failures: list[sqlite3.Error] = []

    def fails_once(*arguments: Any, **options: Any) -> None:
        if not failures:
            failures.append(sqlite3.OperationalError("the disk"))
            failures[0].sqlite_errorcode = code
            raise failures[0]
        drop_oldest(*arguments, **options)

    monkeypatch.setattr(queue, "_drop_oldest", fails_once)
    for batch in range(20):
        queue.put([reading(100 * batch + number, distance_cm=1.0, text="x" * 200) for number in range(100)])
    left = decoded(queue.after("kafka", 10_000))
    assert failures
    assert [each.seq for each in left] == list(range(2001 - len(left), 2001))
    assert [each.monotonic_ns for each in left] == list(range(2000 - len(left), 2000))
    assert queue.status().bytes <= 256 * 1024, "the next batch has made up for it"
    queue.close()


def test_what_was_acknowledged_does_not_count_as_dropped(path: Path) -> None:
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=1024 * 1024)
    for _ in range(100):
        stored = queue.put([reading(1, text="x" * 200)] * 100)
        queue.acknowledge("kafka", stored[-1].id)
    assert queue.status().dropped == {"bound": 0, "disk_full": 0}
    queue.close()


def limit_pages(queue: ReadingQueue, pages: int) -> None:
    """SQLite then says of the file what it says of a disk that is full."""
    queue._connection.execute(f"PRAGMA max_page_count = {pages}")


def test_on_a_full_disk_the_oldest_make_room(path: Path) -> None:
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    queue.put([reading(1, text="x" * 200)] * 1000)
    limit_pages(queue, queue._number("PRAGMA page_count") + 2)
    for _ in range(20):
        queue.put([reading(1, text="x" * 200)] * 50)
    left = seqs(queue.after("kafka", 100_000))
    assert left == list(range(2001 - len(left), 2001))
    assert queue.status().dropped["disk_full"] == 2000 - len(left) > 0
    queue.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    # Lazily: a test that failed has left its file open.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_on_a_disk_that_others_have_filled_the_newest_are_kept(small_disk: Path) -> None:
    path = small_disk / "queue.db"
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    batch = [reading(1, text="x" * 200)] * 50
    for _ in range(100):
        queue.put(batch)
    other = small_disk / "other"
    with other.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        file.writelines(itertools.repeat(b"x" * 4096))
    for _ in range(400):
        queue.put(batch)
    left = seqs(queue.after("kafka", 100_000))
    assert left == list(range(25_001 - len(left), 25_001)), "one hole, at the beginning"
    assert len(left) > 2500, "what was there when the disk was filled is used again"
    assert queue.status().dropped == {"bound": 0, "disk_full": 25_000 - len(left)}
    again = ReadingQueue(killed(path), sinks=["kafka"], max_bytes=LARGE)
    assert seqs(again.after("kafka", 100_000)) == left
    again.close()
    other.unlink()
    queue._ballast_due = 0
    for _ in range(40):
        queue.put(batch)
    assert len(seqs(queue.after("kafka", 100_000))) == len(left) + 2000, "it grows again"
    queue.close()


def test_a_disk_that_was_full_from_the_start_holds_some(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(b"x" * 6 * 1024 * 1024)
    queue = ReadingQueue(small_disk / "queue.db", sinks=["kafka"], max_bytes=LARGE)
    for _ in range(200):
        queue.put([reading(1, text="x" * 200)] * 50)
    left = seqs(queue.after("kafka", 100_000))
    assert left == list(range(10_001 - len(left), 10_001))
    assert len(left) > 500
    queue.close()


def test_a_batch_that_no_disk_takes_is_refused_and_no_number_is_lost(path: Path) -> None:
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    queue.put(readings(1))
    limit_pages(queue, queue._number("PRAGMA page_count"))
    with pytest.raises(Unavailable, match="full"):
        queue.put([reading(1, text="x" * 10_000)] * 100)
    limit_pages(queue, 1 << 20)
    assert seqs(queue.put(readings(2))) == [2]
    queue.close()


def test_only_one_process_has_the_file(queue: ReadingQueue, path: Path) -> None:
    with pytest.raises(Unavailable, match="in use by another"):
        ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    assert path.with_name("queue.db.ballast").exists(), "the first one's"


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_file_is_set_aside(path: Path, damage: str) -> None:
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    for _ in range(30):
        queue.put([reading(1, text="x" * 200)] * 100)
    queue._checkpoint()
    cut = killed(path)
    queue.close()
    data = bytearray(cut.read_bytes())
    place = 0 if damage == "header" else len(data) // 2
    data[place : place + 8192] = b"\xff" * 8192
    cut.write_bytes(data)
    cut.with_name(cut.name + "-wal").unlink(missing_ok=True)
    again = ReadingQueue(cut, sinks=["kafka"], max_bytes=LARGE)
    assert seqs(again.put(readings(1))) == [1]
    assert any(".damaged-" in each.name for each in cut.parent.iterdir())
    again.close()


def test_who_waits_is_woken_by_what_comes(queue: ReadingQueue) -> None:
    assert not queue.wait("kafka", 0)
    thread = threading.Thread(target=queue.put, args=(readings(1),))
    thread.start()
    assert queue.wait("kafka", 30)
    thread.join()


def test_a_queue_that_is_closed_says_so(path: Path) -> None:
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    queue.close()
    with pytest.raises(Unavailable, match="closed"):
        queue.put(readings(1))


def test_the_file_is_a_plain_database(path: Path) -> None:
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=LARGE)
    queue.put(readings(1, 2))
    queue.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM readings").fetchone() == (2,)
    connection.close()
