"""Turns at places: each caller's in their order, callers one after the other, and no place is ever lost."""

from __future__ import annotations

import asyncio
import random

import pytest

from service.turns import Turns

LONG_S = 60.0


async def take_and_tell(turns: Turns, caller: int, told: list[int]) -> None:
    await turns.take(caller, wait_s=LONG_S)
    told.append(caller)


async def settle() -> None:
    """Everything that can run has run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_take_turns_however_much_one_has_asked_for() -> None:
    turns, told = Turns(1), list[int]()
    await turns.take(1, wait_s=LONG_S)
    tasks = [asyncio.create_task(take_and_tell(turns, caller, told)) for caller in (1, 1, 1, 1, 2, 2, 3)]
    await settle()
    assert (turns.taken_count, turns.waiting_count) == (1, 7)

    for _ in tasks:
        turns.give_back()
        await settle()

    assert told == [1, 2, 3, 1, 2, 1, 1]
    assert (turns.taken_count, turns.waiting_count) == (1, 0)


async def test_whoever_has_waited_too_long_or_is_cancelled_has_no_place() -> None:
    turns = Turns(1)
    await turns.take(1, wait_s=LONG_S)
    gone = asyncio.create_task(turns.take(2, wait_s=LONG_S))
    await settle()
    with pytest.raises(TimeoutError):
        await turns.take(2, wait_s=0.01)
    gone.cancel()
    await asyncio.wait([gone])

    assert turns.waiting_count == 0
    turns.give_back()
    assert turns.taken_count == 0


async def test_a_place_given_to_somebody_cancelled_in_the_same_moment_is_the_next_ones() -> None:
    turns, told = Turns(1), list[int]()
    await turns.take(1, wait_s=LONG_S)
    gone = asyncio.create_task(turns.take(2, wait_s=LONG_S))
    waits = asyncio.create_task(take_and_tell(turns, 3, told))
    await settle()

    turns.give_back()
    gone.cancel()
    await asyncio.wait([gone, waits], timeout=LONG_S)

    assert gone.cancelled()
    assert told == [3]
    turns.give_back()
    assert turns.taken_count == 0


@pytest.mark.parametrize("seed", range(20))
async def test_no_place_is_lost_or_had_twice(seed: int) -> None:
    chosen, turns, has = random.Random(seed), Turns(3), 0

    async def work(caller: int) -> None:
        nonlocal has
        try:
            await turns.take(caller, wait_s=chosen.choice((0.0, 0.001, LONG_S)))
        except TimeoutError:
            return
        has += 1
        assert has <= 3
        try:
            for _ in range(chosen.randrange(4)):
                await asyncio.sleep(0)
        finally:
            has -= 1
            turns.give_back()

    tasks = [asyncio.create_task(work(chosen.randrange(4))) for _ in range(200)]
    for task in chosen.sample(tasks, 80):
        await asyncio.sleep(0)
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)

    assert [error for error in ended if isinstance(error, Exception)] == []
    assert (turns.taken_count, turns.waiting_count) == (0, 0)
