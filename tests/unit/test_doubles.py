"""What the doubles add to their ports: failures on demand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from visionmesh.errors import Unavailable
from visionmesh.testing.faults import Faults
from visionmesh.testing.object_store import MemoryObjectStore
from visionmesh.testing.results import MemoryImages, MemoryResultStore

PATH = "raw-images/a.jpg"


def objects() -> tuple[Faults, Callable[[], object], str]:
    store = MemoryObjectStore()
    return store, lambda: store.put(PATH, [b"data"], media_type="image/jpeg"), "object_store"


def results() -> tuple[Faults, Callable[[], object], str]:
    store = MemoryResultStore()
    return store, lambda: store.begin("w", ["a", "b"]), "database"


def images() -> tuple[Faults, Callable[[], object], str]:
    store = MemoryImages(MemoryResultStore())
    return store, store.pending, "database"


@pytest.mark.parametrize("make", [objects, results, images])
def test_the_next_calls_fail_and_the_one_after_works(
    make: Callable[[], tuple[Faults, Callable[[], object], str]],
) -> None:
    double, call, server = make()
    double.fail_next(2)
    for _ in range(2):
        with pytest.raises(Unavailable) as raised:
            call()
        assert raised.value.server == server
    call()
    double.available = False
    with pytest.raises(Unavailable):
        call()
    double.available = True
    call()


def test_a_failed_call_changes_nothing() -> None:
    store = MemoryResultStore()
    store.fail_next(1)
    with pytest.raises(Unavailable):
        store.begin("w", ["a"])
    assert store.outcomes() == []
    objects = MemoryObjectStore()
    objects.fail_next(1)
    with pytest.raises(Unavailable):
        objects.put(PATH, [b"data"], media_type="image/jpeg")
    assert objects.paths() == []
