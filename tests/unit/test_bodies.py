"""What the bodies of all requests to a service may take: counted before they are received."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from queue import SimpleQueue
from threading import Event, Lock
from types import ModuleType, SimpleNamespace
from typing import Any, Final, cast

import httpx
import pytest
from fastapi import FastAPI

from answers import assert_error
from feature_extractor import http as feature_extractor
from qr_decoder import http as qr_decoder
from visionmesh.bodies import Room, received
from visionmesh.errors import Rejected
from visionmesh.testing.cache import MemoryCache

MAX_BYTES: Final = 1_000_000


def extractor(waiting_bytes: int) -> tuple[FastAPI, str]:
    nobody: Any = None
    make = feature_extractor.make_app
    app = make(
        "feature-extractor", nobody, nobody, nobody, MemoryCache(), checks={}, max_bytes=MAX_BYTES,
        waiting_bytes=waiting_bytes,
    )  # fmt: skip
    return app, "/extract"


def decoder(waiting_bytes: int) -> tuple[FastAPI, str]:
    nobody: Any = None
    app = qr_decoder.make_app(
        "qr-decoder", nobody, own_profile="cascade", checks={}, max_bytes=MAX_BYTES, max_budget_ms=1000,
        waiting_bytes=waiting_bytes,
    )  # fmt: skip
    return app, "/detect"


@pytest.mark.parametrize("make", [extractor, decoder])
@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json"])
def test_bodies_are_not_received_beyond_what_they_may_take(
    make: Callable[[int], tuple[FastAPI, str]], kind: str
) -> None:
    app, path = make(2 * MAX_BYTES)

    async def scene() -> None:
        inside: asyncio.Queue[None] = asyncio.Queue()

        async def slow() -> AsyncIterator[bytes]:
            inside.put_nowait(None)
            await asyncio.Event().wait()
            yield b""

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://mesh") as client:
            headers = {"content-type": kind, "content-length": str(MAX_BYTES)}
            held = [asyncio.create_task(client.post(path, content=slow(), headers=headers)) for _ in range(2)]
            for _ in held:
                await inside.get()
            refused = await client.post(path, content=b"x" * 100, headers={"content-type": kind})
            assert_error(refused, 429, "too_many_waiting")
            # Who goes makes room.
            held[0].cancel()
            await asyncio.wait(held[:1])
            late = asyncio.create_task(client.post(path, content=slow(), headers=headers))
            await inside.get()
            for one in (held[1], late):
                one.cancel()
            await asyncio.wait([held[1], late])

    asyncio.run(scene())


def test_pictures_that_bodies_only_name_are_fetched_a_few_at_a_time() -> None:
    lock, held, most = Lock(), 0, 0

    def fetch(_: str) -> bytes:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        # As long as a store takes, so that whoever may be here meanwhile is.
        time.sleep(0.05)
        with lock:
            held -= 1
        raise Rejected("object_not_found", "There is none.")

    nobody: Any = None
    make = feature_extractor.make_app
    app = make("feature-extractor", fetch, nobody, nobody, MemoryCache(), checks={}, max_bytes=MAX_BYTES)

    async def scene() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://mesh") as client:
            call = {"image_id": "a", "minio_path": "raw-images/a.jpg"}
            answers = await asyncio.gather(*(client.post("/extract", json=call) for _ in range(8)))
        assert {answer.status_code for answer in answers} == {404}

    asyncio.run(scene())
    assert most == 2


@pytest.mark.parametrize(
    ("module", "body"),
    [
        (qr_decoder, b"a picture"),
        (feature_extractor, b"a picture"),
        (feature_extractor, b'{"image_id": "a", "minio_path": "raw-images/a.jpg"}'),
    ],
    ids=["decoder", "extractor", "extractor, by path"],
)
def test_who_would_wait_too_long_is_asked_to_come_again(
    module: ModuleType, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CALLERS_WAITING", 3)
    gate, begun = Event(), SimpleQueue[None]()

    def work(*_: Any, **__: Any) -> Any:
        begun.put(None)
        gate.wait(60)
        raise Rejected("not_an_image", "It is none.")

    if module is qr_decoder:
        app = qr_decoder.make_app(
            "qr-decoder", work, own_profile="cascade", checks={}, max_bytes=MAX_BYTES, max_budget_ms=1000
        )
    else:
        source: Any = SimpleNamespace(current=work)
        cache = MemoryCache()
        app = feature_extractor.make_app(
            "feature-extractor", work, work, source, cache, checks={}, max_bytes=MAX_BYTES
        )
    path = "/detect" if module is qr_decoder else "/extract"
    headers = {"content-type": "application/json"} if body.startswith(b"{") else {}

    async def scene() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://mesh") as client:
            callers = [
                asyncio.create_task(client.post(path, content=body, headers=headers)) for _ in range(6)
            ]
            # Two are worked on and three wait.
            turned_away, _ = await asyncio.wait(callers, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            at_once = begun.qsize()
            gate.set()
            answers = await asyncio.gather(*callers)
        (refused,) = (caller.result() for caller in turned_away)
        assert_error(refused, 429, "too_many_waiting")
        assert int(refused.headers["retry-after"]) > 0
        assert sorted(answer.status_code for answer in answers) == [415] * 5 + [429]
        assert at_once <= 2

    asyncio.run(scene())


def test_a_body_that_does_not_come() -> None:
    async def never() -> bytes:
        await asyncio.Event().wait()
        return b""

    with pytest.raises(Rejected) as refused:
        asyncio.run(received(cast(Any, SimpleNamespace(headers={}, body=never)), 0.01))
    assert refused.value.code == "upload_stalled"


def request(length: str | None) -> Any:
    return SimpleNamespace(headers={} if length is None else {"content-length": length})


def test_what_does_not_announce_its_length_counts_as_the_largest() -> None:
    room = Room(100, 60)
    with room.taken_by(request(None)) as first, room.taken_by(request("40")) as second:
        assert (first, second) == (True, True)
        with room.taken_by(request("1")) as third:
            assert not third
    with room.taken_by(request("1000")) as alone:
        assert alone, "a lone one always has room"
