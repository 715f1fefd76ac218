"""A few callers at a time, and not too many behind."""

from __future__ import annotations

import asyncio

import pytest

from visionmesh.errors import Rejected
from visionmesh.turn import Turn


def test_eight_wait_for_their_turn_and_a_ninth_is_turned_away() -> None:
    asyncio.run(crowd())


async def crowd() -> None:
    turn, gate, ended = Turn(), asyncio.Event(), []

    async def caller(number: int) -> None:
        async with turn.taken():
            await gate.wait()
            ended.append(number)

    callers = [asyncio.create_task(caller(number)) for number in range(9)]
    await asyncio.sleep(0)
    with pytest.raises(Rejected) as refused:
        await caller(9)
    assert refused.value.code == "too_many_waiting"
    # Who goes away makes place.
    callers[5].cancel()
    await asyncio.sleep(0)
    callers.append(asyncio.create_task(caller(10)))
    gate.set()
    await asyncio.gather(*callers, return_exceptions=True)
    assert ended == [0, 1, 2, 3, 4, 6, 7, 8, 10]
    await caller(11)


def test_as_many_at_once_as_there_are_places() -> None:
    asyncio.run(pairs())


async def pairs() -> None:
    turn, gate, inside = Turn(at_once=2, most_waiting=1), asyncio.Event(), []

    async def caller(number: int) -> None:
        async with turn.taken():
            inside.append(number)
            await gate.wait()

    callers = [asyncio.create_task(caller(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert inside == [0, 1]
    with pytest.raises(Rejected):
        await caller(3)
    gate.set()
    await asyncio.gather(*callers)
    assert inside == [0, 1, 2]
