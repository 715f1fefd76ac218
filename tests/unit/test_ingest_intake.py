"""What is held of pictures that are coming in."""

from __future__ import annotations

import asyncio
from unittest.mock import MagicMock

import pytest

from ingest_api import intake as module
from ingest_api.intake import Intake, Receiving, Terms
from visionmesh.errors import Rejected
from visionmesh.http import error_of

PIECE = memoryview(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(999_989))


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


def test_a_large_picture_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELD_IN_ALL_BYTES", 4_500_000)
    store = MagicMock()
    store.put.side_effect = lambda _, blocks, **__: sum(len(block) for block in blocks)
    intake = Intake(MagicMock(), store, MagicMock(), bucket="raw-images", max_bytes=10**9)

    async def scene() -> None:
        large = Receiving(intake, None)
        for _ in range(40):
            await large.write(PIECE)
            assert intake.held_bytes <= 3_000_000
        await large.abandon()
        assert intake.held_bytes == 0

    monkeypatch.setattr(module, "read_header", MagicMock())
    asyncio.run(scene())
    intake.close()
