from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from visionmesh.errors import Rejected, Unavailable
from visionmesh.isolated import Isolated

MEBIBYTE = 1024 * 1024


def native(item: str) -> object:
    """Does what a decoder may do, as the item says."""
    what, _, argument = item.partition(" ")
    if what == "crash":
        ctypes.string_at(0)
    if what == "hang":
        # In native code, with signals that no Python handler gets to see.
        ctypes.CDLL(None).sleep(60)
    if what == "eat":
        return len(bytearray(int(argument) * MEBIBYTE))
    if what == "reject":
        raise Rejected("corrupt_image", "two arguments")
    if what == "bug":
        raise KeyError("a bug")
    if what == "pid":
        return os.getpid()
    if what == "die_once":
        marker = Path(argument)
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "signals":
        return signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return item


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated[str, object]]:
    with Isolated(native, deadline_seconds=5, memory_bytes=256 * MEBIBYTE) as running:
        yield running


def code_of(outcome: object) -> str:
    assert isinstance(outcome, Rejected)
    return outcome.code


PRELOADING = """
import sys
from visionmesh.isolated import Isolated

def is_loaded(name):
    return name in sys.modules

if __name__ == "__main__":
    import preloading
    with Isolated(
        preloading.is_loaded, deadline_seconds=20, memory_bytes=2**28, preload=("xml.dom.minidom",)
    ) as isolated:
        print(isolated.call("xml.dom.minidom"), is_loaded("xml.dom.minidom"))
"""


def test_a_child_has_what_was_loaded_for_it_and_the_process_has_not(tmp_path: Path) -> None:
    # In a process of its own: there is one forkserver in each, and it loads when it starts.
    script = tmp_path / "preloading.py"
    script.write_text(PRELOADING)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ended.stdout.split() == ["True", "False"], ended.stderr


def test_results_come_in_order(isolated: Isolated[str, object]) -> None:
    items = [str(number) for number in range(50)]
    assert isolated.map(items) == items


def test_runs_in_another_process(isolated: Isolated[str, object]) -> None:
    assert isolated.call("pid") not in (os.getpid(), os.getppid())


def test_a_crash_costs_only_the_guilty_item(isolated: Isolated[str, object]) -> None:
    first, guilty, *rest = isolated.map(["a", "crash", "b", "c", "d"])
    assert (first, rest) == ("a", ["b", "c", "d"])
    assert code_of(guilty) == "decoder_crashed"


def test_several_crashes_in_one_batch(isolated: Isolated[str, object]) -> None:
    outcomes = isolated.map(["crash", "a", "crash", "b", "crash"])
    assert [o if isinstance(o, str) else code_of(o) for o in outcomes] == [
        "decoder_crashed", "a", "decoder_crashed", "b", "decoder_crashed",
    ]  # fmt: skip


def test_native_code_that_hangs_meets_its_deadline() -> None:
    with Isolated(native, deadline_seconds=1, memory_bytes=256 * MEBIBYTE) as isolated:
        first, guilty, last = isolated.map(["a", "hang", "b"])
    assert (first, last) == ("a", "b")
    assert code_of(guilty) == "deadline_exceeded"


_kept: list[bytearray] = []


def keep(mebibytes: int) -> int:
    """Holds as much for as long as the process lives."""
    _kept.append(bytearray(os.urandom(1) * (mebibytes * MEBIBYTE)))
    return os.getpid()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_child_that_has_grown_gives_its_place_to_a_new_one(processes: int) -> None:
    with Isolated(
        keep,
        deadline_seconds=30,
        memory_bytes=2048 * MEBIBYTE,
        resident_bytes=250 * MEBIBYTE,
        processes=processes,
    ) as isolated:
        # One call alone may hold more than that: the limit is on what stays.
        large = {isolated.call(300) for _ in range(3)}
        small = [isolated.call(1) for _ in range(6)]
        with ThreadPoolExecutor(4) as threads:
            at_once = list(threads.map(isolated.call, [300] * 8))
    assert len(large) == 3
    assert len(set(small[processes:])) <= processes
    assert len(set(at_once)) >= 7


def test_too_much_memory(isolated: Isolated[str, object]) -> None:
    assert isolated.call("eat 100") == 100 * MEBIBYTE
    guilty, neighbour = isolated.map(["eat 300", "a"])
    assert code_of(guilty) == "memory_exceeded"
    assert neighbour == "a"


def test_rejected_comes_back_whole(isolated: Isolated[str, object]) -> None:
    with pytest.raises(Rejected) as caught:
        isolated.call("reject")
    assert (caught.value.code, caught.value.reason) == ("corrupt_image", "two arguments")


def test_a_bug_is_raised(isolated: Isolated[str, object]) -> None:
    with pytest.raises(KeyError, match="a bug"):
        isolated.map(["a", "bug", "b"])
    assert isolated.call("c") == "c"


def test_a_child_killed_from_outside_is_no_fault_of_the_item(
    isolated: Isolated[str, object], tmp_path: Path
) -> None:
    assert isolated.map([f"die_once {tmp_path / 'marker'}", "a"]) == [f"die_once {tmp_path / 'marker'}", "a"]


def test_an_item_that_is_killed_each_time_ate_all_memory(isolated: Isolated[str, object]) -> None:
    guilty, neighbour = isolated.map(["killed", "a"])
    assert code_of(guilty) == "memory_exceeded"
    assert neighbour == "a"


def test_survives_the_death_of_an_idle_child(isolated: Isolated[str, object]) -> None:
    pid = isolated.call("pid")
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)
    assert isolated.map(["a", "b"]) == ["a", "b"]


def test_children_are_replaced_after_so_many_calls() -> None:
    with Isolated(native, deadline_seconds=5, memory_bytes=256 * MEBIBYTE, calls_per_child=3) as isolated:
        pids = [isolated.call("pid") for _ in range(8)]
    assert len(set(pids)) >= 3


def test_threads_share_it(isolated: Isolated[str, object]) -> None:
    items = ["crash" if number % 10 == 0 else str(number) for number in range(40)]

    def outcome(item: str) -> object:
        try:
            return isolated.call(item)
        except Rejected as error:
            return error.code

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(outcome, items))
    assert found == ["decoder_crashed" if item == "crash" else item for item in items]


def test_ctrl_c_is_for_the_parent(isolated: Isolated[str, object]) -> None:
    assert isolated.call("signals") is True


def test_after_close_nothing_is_blamed_on_the_item() -> None:
    isolated = Isolated(native, deadline_seconds=5, memory_bytes=256 * MEBIBYTE)
    isolated.start()
    isolated.close()
    with pytest.raises(Unavailable):
        isolated.map(["a"])


def test_close_ends_a_call_under_way() -> None:
    isolated = Isolated(native, deadline_seconds=60, memory_bytes=256 * MEBIBYTE)
    isolated.start()
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(isolated.call, "hang")
        while isolated._pool is not None and not any(
            task.started for task in isolated._pool._pool_manager.task_manager.tasks.values()
        ):
            time.sleep(0.01)
        isolated.close()
        with pytest.raises(Unavailable):
            hanging.result(timeout=20)


# Its child is inside a call: an idle one sees that nobody is left to send it anything.
PARENT = """
import sys, threading, time
from visionmesh.isolated import Isolated
isolated = Isolated(time.sleep, deadline_seconds=2, memory_bytes=1 << 28)
isolated.start()
threading.Thread(target=isolated.call, args=(600,), daemon=True).start()
manager = isolated._pool._pool_manager
while not any(task.started for task in manager.task_manager.tasks.values()):
    time.sleep(0.01)
print(" ".join(map(str, manager.worker_manager.workers)), flush=True)
sys.stdin.read()
"""


def test_children_die_with_their_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert children
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.02)
    parent.communicate()
