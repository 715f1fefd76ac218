from __future__ import annotations

import ctypes
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from visionmesh.errors import Rejected, Unavailable
from visionmesh.isolated import Isolated
from visionmesh.observability import metrics
from waiting import eventually

MEBIBYTE = 1024 * 1024


class Stubborn(Exception):  # noqa: N818
    """Can be pickled, and not be made again of what it is pickled as."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def native(item: str) -> object:
    """Does what a decoder may do, as the item says."""
    what, _, argument = item.partition(" ")
    if what == "crash":
        ctypes.string_at(0)
    if what == "hang":
        if argument:
            Path(argument).touch()
        # In native code, with signals that no Python handler gets to see.
        ctypes.CDLL(None).sleep(60)
    if what == "exit":
        sys.exit(3)
    if what == "eat":
        return len(bytearray(int(argument) * MEBIBYTE))
    if what == "enlarge":
        # 400 MB, for which OpenCV raises an error of its own.
        return cv2.resize(np.zeros((10, 10), np.uint8), (20_000, 20_000)).shape
    if what == "raise":
        raise RuntimeError(argument)
    if what == "reject":
        raise Rejected("corrupt_image", "two arguments")
    if what == "bug":
        raise KeyError("a bug")
    if what == "stubborn":
        raise Stubborn("one", "two")
    if what == "unpicklable":
        return lambda: None
    if what == "meet":
        folder, mine, other = argument.split()
        Path(folder, mine).touch()
        while not Path(folder, other).exists():
            time.sleep(0.01)
    if what == "nap":
        time.sleep(0.02)
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
    # No test waits for this deadline: it is for children that hang by mistake.
    with Isolated(native, deadline_seconds=30, memory_bytes=256 * MEBIBYTE) as running:
        yield running


def outcome_of(isolated: Isolated[str, object], item: str) -> object:
    """What a call returns, or the code that it is rejected with."""
    try:
        return isolated.call(item)
    except Rejected as error:
        return error.code


def restarts(reason: str = "crash") -> float:
    """How many children ended early so far."""
    return metrics.ISOLATED_RESTARTS.labels(reason)._value.get()


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
    script = tmp_path / "preloading.py"
    script.write_text(PRELOADING)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ended.stdout.split() == ["True", "False"], ended.stderr


def test_a_child_keeps_more_memory_ready_than_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    with Isolated(os.getenv, deadline_seconds=20, memory_bytes=2**28) as isolated:
        assert isolated.call("MALLOC_TRIM_THRESHOLD_") == str(8 * 1024**2)


def test_runs_in_another_process(isolated: Isolated[str, object]) -> None:
    assert isolated.call("pid") not in (os.getpid(), os.getppid())


def test_a_crash_costs_only_the_guilty_item(isolated: Isolated[str, object]) -> None:
    assert [outcome_of(isolated, item) for item in ("a", "crash", "b", "crash", "crash", "c")] == [
        "a", "decoder_crashed", "b", "decoder_crashed", "decoder_crashed", "c",
    ]  # fmt: skip


def test_native_code_that_hangs_meets_its_deadline() -> None:
    # The calls before and after have as long, on a machine that may be busy.
    with Isolated(native, deadline_seconds=8, memory_bytes=256 * MEBIBYTE) as isolated:
        outcomes = [outcome_of(isolated, item) for item in ("a", "hang", "b")]
    assert outcomes == ["a", "deadline_exceeded", "b"]


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
        before = restarts("grown")
        # One call alone may hold more than that: the limit is on what stays.
        large = {isolated.call(300) for _ in range(3)}
        small = [isolated.call(1) for _ in range(6)]
        with ThreadPoolExecutor(4) as threads:
            at_once = list(threads.map(isolated.call, [300] * 8))
    assert len(large) == 3
    assert len(set(small)) == 1
    assert len(set(at_once)) == 8
    assert restarts("grown") == before + 3 + 8


def test_too_much_memory(isolated: Isolated[str, object]) -> None:
    assert isolated.call("eat 100") == 100 * MEBIBYTE
    assert outcome_of(isolated, "eat 300") == "memory_exceeded"
    assert isolated.call("a") == "a"


@pytest.mark.parametrize(
    "item",
    ["enlarge", "raise [ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : ... status message: std::bad_alloc"],
)
def test_native_code_that_says_it_has_no_memory(isolated: Isolated[str, object], item: str) -> None:
    assert outcome_of(isolated, item) == "memory_exceeded"
    assert isolated.call("a") == "a"


def test_an_item_for_which_the_child_has_no_room(isolated: Isolated[str, object]) -> None:
    before = restarts()
    assert outcome_of(isolated, "x" * (300 * MEBIBYTE)) == "memory_exceeded"
    assert restarts() == before + 1, "it is no use to try it again"
    assert isolated.call("a") == "a"


def test_a_child_that_exits_was_not_ended_from_outside(isolated: Isolated[str, object]) -> None:
    assert outcome_of(isolated, "exit") == "decoder_crashed"
    assert isolated.call("a") == "a"


def test_rejected_comes_back_whole(isolated: Isolated[str, object]) -> None:
    with pytest.raises(Rejected) as caught:
        isolated.call("reject")
    assert (caught.value.code, caught.value.reason) == ("corrupt_image", "two arguments")


def test_a_bug_is_raised(isolated: Isolated[str, object]) -> None:
    with pytest.raises(KeyError, match="a bug") as caught:
        isolated.call("bug")
    assert 'raise KeyError("a bug")' in caught.value.__notes__[0]
    assert isolated.call("c") == "c"


def test_a_bug_that_does_not_travel_is_raised_as_another(isolated: Isolated[str, object]) -> None:
    for item in ("stubborn", "unpicklable"):
        with pytest.raises((RuntimeError, AttributeError, TypeError), match=r"Stubborn|pickle"):
            isolated.call(item)
    assert isolated.call("c") == "c"


def test_a_child_killed_from_outside_is_no_fault_of_the_item(
    isolated: Isolated[str, object], tmp_path: Path
) -> None:
    assert isolated.call(f"die_once {tmp_path / 'marker'}") == f"die_once {tmp_path / 'marker'}"


def test_an_item_that_is_killed_each_time_ate_all_memory(isolated: Isolated[str, object]) -> None:
    assert outcome_of(isolated, "killed") == "memory_exceeded"
    assert isolated.call("a") == "a"


def test_large_items_and_results(isolated: Isolated[str, object]) -> None:
    item = "large " + "x" * (20 * MEBIBYTE)
    assert isolated.call(item) == item
    # It dies before it has read all of this one.
    assert outcome_of(isolated, "crash " + item) == "decoder_crashed"
    assert isolated.call("a") == "a"


def test_survives_the_death_of_an_idle_child(isolated: Isolated[str, object]) -> None:
    pid = isolated.call("pid")
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)
    assert [isolated.call("a"), isolated.call("b")] == ["a", "b"]


def test_children_are_replaced_after_so_many_calls() -> None:
    with Isolated(native, deadline_seconds=30, memory_bytes=256 * MEBIBYTE, calls_per_child=3) as isolated:
        pids = [isolated.call("pid") for _ in range(8)]
    assert len(set(pids)) >= 3


def test_threads_share_it(isolated: Isolated[str, object]) -> None:
    items = ["crash" if number % 10 == 0 else str(number) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda item: outcome_of(isolated, item), items))
    assert found == ["decoder_crashed" if item == "crash" else item for item in items]


def test_who_has_much_to_ask_lets_others_pass(isolated: Isolated[str, object]) -> None:
    asked: list[str] = []
    begun = threading.Event()

    def ask(name: str) -> None:
        isolated.call("nap")
        asked.append(name)

    def much() -> None:
        while not begun.is_set():
            ask("much")
        for _ in range(50):
            ask("much")

    def little() -> None:
        eventually(lambda: bool(asked), "an answer to the other one", seconds=60)
        begun.set()
        for _ in range(5):
            ask("little")

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(much), threads.submit(little)]
    for each in asking:
        each.result()
    last = max(place for place, name in enumerate(asked) if name == "little")
    assert "much" in asked[last:], asked


def test_ctrl_c_is_for_the_parent(isolated: Isolated[str, object]) -> None:
    assert isolated.call("signals") is True


def test_after_close_nothing_is_blamed_on_the_item() -> None:
    isolated = Isolated(native, deadline_seconds=5, memory_bytes=256 * MEBIBYTE)
    isolated.start()
    isolated.close()
    with pytest.raises(Unavailable):
        isolated.call("a")
    with pytest.raises(Unavailable):
        isolated.start()


def test_close_ends_a_call_under_way_and_those_that_wait(tmp_path: Path) -> None:
    isolated = Isolated(native, deadline_seconds=60, memory_bytes=256 * MEBIBYTE)
    isolated.start()
    marker = tmp_path / "marker"
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(isolated.call, f"hang {marker}") for _ in range(2)]
        while not marker.exists():
            time.sleep(0.01)
        isolated.close()
        for call in calls:
            with pytest.raises(Unavailable):
                call.result(timeout=20)


def test_pictures_are_read_at_once_in_several_processes(tmp_path: Path) -> None:
    # Each waits for the other one.
    names = [f"meet {tmp_path} one two", f"meet {tmp_path} two one"]
    with (
        Isolated(native, deadline_seconds=20, memory_bytes=256 * MEBIBYTE, processes=2) as isolated,
        ThreadPoolExecutor(2) as threads,
    ):
        assert list(threads.map(isolated.call, names)) == names


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A function of a module that only this process has."""
    module = ModuleType("only_here")
    exec("def function(item): return item", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    function: Callable[[str], str] = module.function
    return function


def test_a_child_that_does_not_start_is_no_fault_of_the_item(unknown: Callable[[str], str]) -> None:
    isolated = Isolated(unknown, deadline_seconds=5, memory_bytes=256 * MEBIBYTE)
    with pytest.raises(Unavailable, match=r"did not start: exit status 1$"):
        isolated.call("a")
    isolated.close()


def test_who_can_not_start_leaves_no_children(unknown: Callable[[str], str]) -> None:
    # What earlier tests left open is not closed meanwhile.
    gc.collect()
    before = os.listdir("/proc/self/fd")
    isolated = Isolated(unknown, deadline_seconds=5, memory_bytes=256 * MEBIBYTE, processes=2)
    with pytest.raises(Unavailable), isolated:
        pass
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_child_that_ends_before_it_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_: list[str], **options: Any) -> subprocess.Popen[bytes]:
        process = popen(["/bin/false"], **options)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return process

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", ended)
    isolated = Isolated(native, deadline_seconds=5, memory_bytes=256 * MEBIBYTE)
    with pytest.raises(Unavailable, match=r"exit status 1$"):
        isolated.call("a")
    isolated.close()


def test_a_system_without_room_for_a_child_is_no_fault_of_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    with Isolated(native, deadline_seconds=30, memory_bytes=256 * MEBIBYTE, calls_per_child=1) as isolated:
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", no_process)
            # The child that is there answers; there is none to take its place.
            assert isolated.call("a") == "a"
            with pytest.raises(Unavailable, match="can't be started"):
                isolated.call("b")
        assert isolated.call("c") == "c"


def no_process(*_: object, **__: object) -> None:
    raise BlockingIOError(errno.EAGAIN, "no process")


# One child is inside a call, which only its alarm ends; the idle one sees that nobody is left.
PARENT = """
import os, sys, threading, time
from visionmesh.isolated import Isolated

def pid_and_sleep(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)

if __name__ == "__main__":
    import parenting
    idle, busy = [
        Isolated(parenting.pid_and_sleep, deadline_seconds=seconds, memory_bytes=1 << 28)
        for seconds in (30, 8)
    ]
    idle.call(0)
    threading.Thread(target=busy.call, args=(600,), daemon=True).start()
    sys.stdin.read()
"""


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parenting.py"
    script.write_text(PARENT)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    eventually(lambda: all(map(has_ended, children)), "the end of all children", seconds=60)
    parent.communicate()


def has_ended(pid: int) -> bool:
    try:
        # Who has no parent any more is a zombie for good where process 1 does not wait for it.
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
