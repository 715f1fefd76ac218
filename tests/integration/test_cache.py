"""One suite for `Cache`, on the double and on a real Valkey; then what only a server has."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import structlog
import valkey
from prometheus_client import REGISTRY

import waiting
from visionmesh.cache import Cache, NoCache, ValkeyCache, open_cache
from visionmesh.errors import Unavailable
from visionmesh.settings import Settings
from visionmesh.stack import Stack
from visionmesh.testing.cache import MemoryCache

DEADLINE_SECONDS = 30.0
until = partial(waiting.eventually, seconds=DEADLINE_SECONDS)
SHORT_PAUSE_SECONDS = 0.01


@dataclass
class Subject:
    """A cache, and ways to make its server fail for a while."""

    cache: Cache
    away: Callable[[], AbstractContextManager[None]]
    full: Callable[[], AbstractContextManager[None]]


def patient(url: str) -> str:
    """The same server for a client that waits: a busy machine must not look like a server that is away."""
    return f"{url}?socket_timeout=10&socket_connect_timeout=10"


def in_memory() -> Subject:
    cache = MemoryCache()

    @contextmanager
    def away() -> Iterator[None]:
        cache.available = False
        yield
        cache.available = True

    @contextmanager
    def full() -> Iterator[None]:
        cache.full = True
        yield
        cache.full = False

    return Subject(cache, away, full)


def on_a_server(stack: Stack) -> Subject:
    url = stack.endpoints.cache_url
    client = valkey.Valkey.from_url(url)
    client.flushall()

    @contextmanager
    def away() -> Iterator[None]:
        stack.cache.kill()
        try:
            yield
        finally:
            stack.cache.start()

    @contextmanager
    def full() -> Iterator[None]:
        before = client.config_get("maxmemory*")
        client.config_set("maxmemory", 1, "maxmemory-policy", "noeviction")
        try:
            yield
        finally:
            for name in ("maxmemory", "maxmemory-policy"):
                client.config_set(name, before[name])

    return Subject(ValkeyCache(patient(url), first_pause_seconds=SHORT_PAUSE_SECONDS), away, full)


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.servers)])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "memory":
        return in_memory()
    return on_a_server(request.getfixturevalue("session_stack"))


def takes_values(cache: Cache) -> bool:
    cache.put_many({"back": b"1234"})
    return cache.get_many(["back"], length=4) == [b"1234"]


def counted() -> dict[str, float]:
    return {
        result: REGISTRY.get_sample_value("mesh_cache_requests_total", {"result": result}) or 0.0
        for result in ("hit", "miss", "error")
    }


def counted_since(before: dict[str, float]) -> dict[str, float]:
    return {result: count - before[result] for result, count in counted().items()}


def test_what_was_put_is_found_again_in_the_order_asked(subject: Subject) -> None:
    subject.cache.put_many({"a": b"aaaa", "b": b"bbbb"})
    for _ in range(2):
        assert subject.cache.get_many(["b", "x", "a", "b"], length=4) == [b"bbbb", None, b"aaaa", b"bbbb"]


def test_putting_twice_keeps_the_later(subject: Subject) -> None:
    subject.cache.put_many({"a": b"1111"})
    subject.cache.put_many({"a": b"2222"})
    assert subject.cache.get_many(["a"], length=4) == [b"2222"]


def test_nothing_is_asked_and_nothing_put(subject: Subject) -> None:
    subject.cache.put_many({})
    assert subject.cache.get_many([], length=4) == []


def test_a_value_of_another_length_is_none(subject: Subject) -> None:
    subject.cache.put_many({"short": b"123", "long": b"12345", "empty": b"", "right": b"1234"})
    found = subject.cache.get_many(["short", "long", "empty", "right"], length=4)
    assert found == [None, None, None, b"1234"]


def test_what_is_to_be_forgotten_is_found_among_many(subject: Subject) -> None:
    digests = [f"{number:064x}" for number in range(3000)]
    subject.cache.put_many({f"descriptors:m@1:0123:{digest}": b"1234" for digest in digests})
    subject.cache.put_many({f"descriptors:m@2:4567:{digests[7]}": b"1234", digests[8]: b"1234"})
    assert subject.cache.forget({digests[7], digests[8]})
    assert subject.cache.forget(())

    def kept(*keys: str) -> list[bool]:
        return [value is not None for value in subject.cache.get_many(keys, length=4)]

    assert kept(f"descriptors:m@1:0123:{digests[7]}", f"descriptors:m@2:4567:{digests[7]}") == [False, False]
    assert kept(f"descriptors:m@1:0123:{digests[8]}", f"descriptors:m@1:0123:{digests[9]}") == [False, True]


def test_any_bytes_come_back_as_they_were(subject: Subject) -> None:
    value = bytes(range(256))
    subject.cache.put_many({"a": value})
    assert subject.cache.get_many(["a"], length=256) == [value]


def test_a_server_that_is_away_is_an_empty_cache_that_comes_back(subject: Subject) -> None:
    subject.cache.put_many({"a": b"1234"})
    with subject.away():
        assert not subject.cache.forget({"digest"})
        for _ in range(3):
            assert subject.cache.get_many(["a", "b"], length=4) == [None, None]
            subject.cache.put_many({"a": b"5678"})
    until(lambda: takes_values(subject.cache), "used again")


def test_a_full_server_still_gives_what_it_has(subject: Subject) -> None:
    subject.cache.put_many({"a": b"1234"})
    with subject.full():
        for _ in range(2):
            subject.cache.put_many({"b": b"5678"})
            assert subject.cache.get_many(["a", "b"], length=4) == [b"1234", None]
    assert takes_values(subject.cache)


def test_many_threads(subject: Subject) -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        value = number.to_bytes(4, "big")
        for _ in range(50):
            subject.cache.put_many({f"key-{number}": value})
            if (found := subject.cache.get_many([f"key-{number}"], length=4)) != [value]:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_hits_misses_and_errors_are_counted_and_each_change_is_logged_once(session_stack: Stack) -> None:
    subject = on_a_server(session_stack)
    with structlog.testing.capture_logs() as logs:
        before = counted()
        subject.cache.put_many({"a": b"1234", "short": b"1"})
        subject.cache.get_many(["a", "b", "short"], length=4)
        assert counted_since(before) == {"hit": 1, "miss": 2, "error": 0}
        with subject.full():
            before = counted()
            for _ in range(3):
                subject.cache.put_many({"b": b"1234", "c": b"1234"})
            assert counted_since(before) == {"hit": 0, "miss": 0, "error": 6}
        subject.cache.put_many({"b": b"1234"})
        with subject.away():
            before = counted()
            for _ in range(3):
                subject.cache.get_many(["a", "b"], length=4)
                subject.cache.put_many({"a": b"1234"})
            # What is not even tried to be put is no error.
            assert counted_since(before) == {"hit": 0, "miss": 0, "error": 6}
        until(lambda: takes_values(subject.cache), "used again")
        until(lambda: logs[-1]["event"] == "cache_back", "logged")
    events = [entry["event"] for entry in logs]
    assert events == ["cache_refuses", "cache_accepts_again", "cache_away", "cache_back"]
    assert "OutOfMemory" in logs[0]["reason"]
    assert not any("redis://" in str(entry) for entry in logs)


def test_a_server_that_is_away_is_asked_once_and_then_left_alone() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        # Takes connections and never answers.
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0?socket_timeout=0.05"
        cache = ValkeyCache(url, first_pause_seconds=600)
        before = counted()
        for _ in range(1000):
            assert cache.get_many(["a"], length=4) == [None]
        assert counted_since(before)["error"] == 1000
        listener.setblocking(False)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$abc\r\n", b"*-7\r\n", b"\xff\n"])
def test_a_server_that_is_no_valkey_is_none(answer: bytes) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1024)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        cache = ValkeyCache(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", first_pause_seconds=600)
        assert cache.get_many(["a"], length=4) == [None]
        cache.put_many({"a": b"1234"})


def test_a_wrong_password_is_a_server_that_is_away(session_stack: Stack) -> None:
    address = session_stack.endpoints.cache_url.rpartition("@")[2]
    for url in (f"redis://:wrong@{address}", f"redis://{address}"):
        cache = ValkeyCache(patient(url), first_pause_seconds=600)
        with structlog.testing.capture_logs() as logs:
            cache.put_many({"a": b"1234"})
            assert cache.get_many(["a"], length=4) == [None]
        assert [entry["event"] for entry in logs] == ["cache_away"]
        with pytest.raises(Unavailable):
            cache.ping()


def test_ping_says_why(session_stack: Stack) -> None:
    cache = ValkeyCache(patient(session_stack.endpoints.cache_url))
    cache.ping()
    session_stack.cache.stop()
    try:
        with pytest.raises(Unavailable, match="refused") as raised:
            cache.ping()
    finally:
        session_stack.cache.start()
    assert raised.value.server == "cache"


def test_a_mesh_without_an_address_has_no_cache() -> None:
    for url in (None, ""):
        cache = open_cache(Settings(cache_url=url))  # type: ignore[arg-type]
        assert isinstance(cache, NoCache)
        cache.put_many({"a": b"1234"})
        assert cache.get_many(["a", "b"], length=4) == [None, None]


@pytest.mark.parametrize(
    "url",
    ["http://:geheim@127.0.0.1:6379", "redis://:geheim/geheim@127.0.0.1:6379/0", "redis://geheim:port/0"],
)
def test_an_address_that_cannot_be_understood_is_said_at_the_start_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="MESH_CACHE_URL has to be redis://") as raised:
        open_cache(Settings(cache_url=url))  # type: ignore[arg-type]
    assert "geheim" not in str(raised.value)
