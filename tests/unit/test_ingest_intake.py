"""What is held of pictures that are coming in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from threading import Event
from typing import Any
from unittest.mock import MagicMock

import pytest

from ingest_api import intake as module
from ingest_api.intake import Intake, Receiving, Terms
from visionmesh.errors import Rejected
from visionmesh.http import error_of

PIECE = memoryview(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(999_989))


def intake_with_slow_store(until: Event) -> Intake:
    """Nothing is stored before that."""
    store = MagicMock()
    store.put.side_effect = lambda *_, **__: until.wait(60)
    return Intake(MagicMock(), store, MagicMock(), bucket="raw-images", max_bytes=10**9)


def test_clients_who_send_slowly_do_not_take_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELD_IN_ALL_BYTES", 4_500_000)
    intake = Intake(MagicMock(), MagicMock(), MagicMock(), bucket="raw-images", max_bytes=10**9)

    async def scene() -> None:
        slow = [Receiving(intake, None) for _ in range(4)]
        for one in slow:
            await one.write(PIECE)
        late = Receiving(intake, None)
        with pytest.raises(Rejected) as refused:
            await late.write(PIECE)
        assert error_of(refused.value).status_code == 503
        await late.abandon()
        # Who goes makes room, and so does who is done.
        await slow[0].abandon()
        await late.write(PIECE)
        with pytest.raises(Rejected):
            await slow[1].take(Terms(None, None, ()))
        for one in (*slow[1:], late):
            await one.abandon()
        assert intake.held_bytes == 0

    asyncio.run(scene())
    intake.close()


def test_small_pictures_that_wait_to_be_stored_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELD_IN_ALL_BYTES", 4_500_000)
    monkeypatch.setattr(module, "_THREADS", 1)
    monkeypatch.setattr(module, "read_header", MagicMock())
    slow = Event()
    intake = intake_with_slow_store(slow)
    terms = Terms(None, None, ())

    async def scene() -> None:
        small = [Receiving(intake, None) for _ in range(4)]
        for one in small:
            await one.write(PIECE)
        stored = [asyncio.ensure_future(one.take(terms)) for one in small[:2]]
        stored += [asyncio.ensure_future(one.store()) for one in small[2:]]
        await asyncio.sleep(0)
        late = Receiving(intake, None)
        with pytest.raises(Rejected) as refused:
            await late.write(PIECE)
        assert refused.value.code == "too_many_uploads"
        await late.abandon()
        # A client that goes takes nothing back of what a thread works on, and all of what none has begun.
        stored[0].cancel()
        stored[3].cancel()
        await asyncio.wait([stored[0], stored[3]])
        assert intake.held_bytes == 3 * len(PIECE)
        slow.set()
        await asyncio.wait(stored)
        intake.threads.shutdown()
        await asyncio.sleep(0)
        assert intake.held_bytes == 0

    asyncio.run(scene())
    intake.close()


def test_a_large_picture_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELD_IN_ALL_BYTES", 6_500_000)
    store = MagicMock()
    store.put.side_effect = lambda _, blocks, **__: sum(len(block) for block in blocks)
    intake = Intake(MagicMock(), store, MagicMock(), bucket="raw-images", max_bytes=10**9)

    async def scene() -> None:
        large = Receiving(intake, None)
        for _ in range(40):
            await large.write(PIECE)
            # Its beginning, a block that waits, and one that waits for that.
            assert intake.held_bytes <= 5_000_000
        await large.abandon()
        assert intake.held_bytes == 0

    monkeypatch.setattr(module, "read_header", MagicMock())
    asyncio.run(scene())
    intake.close()


def test_what_no_thread_has_taken_yet_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELD_IN_ALL_BYTES", 20_000_000)
    monkeypatch.setattr(module, "_STREAM_THREADS", 2)
    monkeypatch.setattr(module, "read_header", MagicMock())
    slow = Event()
    store = MagicMock()

    def put(_: str, blocks: Iterator[bytes], **__: Any) -> int:
        slow.wait(60)
        return sum(len(block) for block in blocks)

    store.put.side_effect = put
    intake = Intake(MagicMock(), store, MagicMock(), bucket="raw-images", max_bytes=10**9)

    async def scene() -> None:
        large = [Receiving(intake, None) for _ in range(6)]
        for one in large:
            for _ in range(3):
                await one.write(PIECE)
        assert intake.held_bytes == 18 * len(PIECE)
        late = Receiving(intake, None)
        await late.write(PIECE)
        await late.write(PIECE)
        with pytest.raises(Rejected):
            await late.write(PIECE)
        await late.abandon()
        # Who never came to a thread makes room at once.
        await large[5].abandon()
        assert intake.held_bytes == 15 * len(PIECE)
        slow.set()
        for one in large[:5]:
            await one.take(Terms(None, None, ()))
        assert (intake.held_bytes, intake.streams) == (0, 0)

    asyncio.run(scene())
    intake.close()


def test_large_pictures_that_wait_leave_room_for_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STREAM_THREADS", 1)
    monkeypatch.setattr(module, "_STREAMS_WAITING", 2)
    monkeypatch.setattr(module, "read_header", MagicMock())
    slow = Event()
    intake = intake_with_slow_store(slow)

    async def scene() -> None:
        large = [Receiving(intake, None) for _ in range(4)]
        for one in large[:3]:
            for _ in range(3):
                await one.write(PIECE)
        for _ in range(2):
            await large[3].write(PIECE)
        with pytest.raises(Rejected) as refused:
            await large[3].write(PIECE)
        assert refused.value.code == "too_many_uploads"
        small = Receiving(intake, None)
        await small.write(PIECE)
        slow.set()
        await small.take(Terms(None, None, ()))
        for one in large:
            await one.abandon()
        assert (intake.held_bytes, intake.streams) == (0, 0)

    asyncio.run(scene())
    intake.close()


def test_what_a_thread_that_failed_has_left_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_header", MagicMock(side_effect=Rejected("not_an_image", "No.")))
    intake = Intake(MagicMock(), MagicMock(), MagicMock(), bucket="raw-images", max_bytes=10**9)

    async def endless(broken: Receiving) -> None:
        while True:
            await broken.write(PIECE)

    async def scene() -> None:
        broken = Receiving(intake, None)
        with pytest.raises(Rejected):
            await endless(broken)
        await broken.abandon()
        assert (intake.held_bytes, intake.streams) == (0, 0)

    asyncio.run(scene())
    intake.close()
