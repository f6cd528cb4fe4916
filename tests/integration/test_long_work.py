"""Thousands of leases are told of, listed, looked at and exported a piece at a time: others have their turn between."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import itertools
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, closing
from typing import Any, TypeVar

import pytest
from prometheus_client import CollectorRegistry

from db.charging import Charges
from db.database import Database
from locks import Locker, pieces
from locks.clock import SYSTEM
from locks.contention import Contention
from locks.listing import matching, page_of, told_locks
from locks.loan import Loan
from locks.picture import Teller
from locks.pieces import PIECE, in_pieces
from locks.publishing import Publisher
from locks.seen import Seen
from service import lists as lists_module
from service.dashboard.exports import Table, as_csv, as_json
from service.gauges import SampledGauges, Sampling
from service.lists import Lists
from service.reading import Reading
from service.refusals import Overloaded
from service.settings import Settings
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.charging_helpers import ENTRANT_PAYS, one_lane

Result = TypeVar("Result")

LEASES = 5000
ENOUGH_TURNS = LEASES // PIECE  # where each piece is followed by one


@pytest.fixture(autouse=True)
def a_rest_after_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast this machine is."""
    monkeypatch.setattr(pieces, "WORK_S", 0.0)


async def turns_during(work: Coroutine[Any, Any, Result]) -> tuple[int, Result]:
    """How often somebody else had the loop meanwhile, and what came of it."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(others())
    await asyncio.sleep(0)
    turns = 0
    result = await work
    counted, _ = turns, counting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await counting
    return counted, result


@asynccontextmanager
async def lender(redis_url: str) -> AsyncIterator[Locker]:
    """A process that keeps very many leases, as far as it knows."""
    async with Locker.connect(redis_url, instance_id="test") as locker:
        now_s = SYSTEM.monotonic_s()
        for number in range(LEASES):
            loan = Loan(f"long:{number:05}", f"{number:032x}", number + 1, 1000.0, now_s, clock=SYSTEM)
            locker.lending.keep(loan, now_s, f"r-{number}", None)
        yield locker


async def test_what_is_held_is_told_in_pieces_and_found_again(redis_url: str) -> None:
    async with lender(redis_url) as locker:
        publisher = Publisher(locker, Seen(), version="1", also_held=lambda: locker.lending.all)

        turns, _ = await turns_during(publisher._listed([*locker.lending.all], {}))

        assert turns >= ENOUGH_TURNS
        publisher._next_list_at_s = 0.0
        await publisher.start()
        found = await Contention(locker).all_locks(sort="name", search="long:")
        assert [each.name for each in found] == [f"long:{number:05}" for number in range(LEASES)]
        await publisher.stop()


async def test_while_a_long_list_is_made_the_instance_is_told_of_and_then_the_list(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lender(redis_url) as locker, Locker.connect(redis_url, instance_id="looks on") as other:
        publisher = Publisher(locker, Seen(), version="1", also_held=lambda: locker.lending.all, interval_s=0.05)
        contention = Contention(other)
        made = asyncio.Event()
        made_in_pieces = publisher._listed

        async def slowly(*given: Any) -> str:
            await made.wait()
            return await made_in_pieces(*given)

        monkeypatch.setattr(publisher, "_listed", slowly)
        await publisher.start()
        told = await contention.snapshot()
        unlisted = await Contention(other).all_locks(sort="name", search="long:")
        made.set()

        async def is_listed() -> bool:
            return len(await Contention(other).all_locks(sort="name", search="long:")) == LEASES

        assert [(each.picture.instance_id, each.picture.held) for each in told.instances] == [("test", LEASES)]
        assert unlisted == []
        await wait_until_async(is_listed, what="the list")
        await publisher.stop()


async def test_a_page_is_sorted_in_pieces_and_is_the_one_that_follows() -> None:
    lines = [f"long:{number:05}\t{LEASES - number}\t0\t{number % 7}\t" for number in range(LEASES)]

    reading_turns, told = await turns_during(told_locks(0.0, [(Teller("api-1", "host", 1), "\n".join(lines))], SYSTEM))
    turns, (first, cursor, total) = await turns_during(
        page_of(told, SYSTEM, sort="waiters", limit=100, cursor=None, search="")
    )
    second, _, _ = await page_of(told, SYSTEM, sort="waiters", limit=100, cursor=cursor, search="")
    everything = [*await matching(told, SYSTEM, sort="waiters", search="")]
    found, _, found_total = await page_of(told, SYSTEM, sort="held", limit=3, cursor=None, search="99")

    assert min(turns, reading_turns) >= ENOUGH_TURNS
    assert total == LEASES
    assert [each.name for each in (*first, *second)] == [each.name for each in everything[:200]]
    assert [each.name for each in found] == ["long:04999", "long:04998", "long:04997"]
    assert found_total == sum("99" in line.split("\t")[0] for line in lines)


async def test_the_gauges_look_in_pieces(redis_url: str, database_url: str) -> None:
    settings = Settings()
    charges = Charges(database_url, ENTRANT_PAYS)
    charging = one_lane(charges)
    database, registry = Database(database_url), CollectorRegistry()
    with closing(Reading(database, name="read", threads=1, max_waiting=1, caller_share=1.0, timeout_s=1.0)) as reading:
        async with lender(redis_url) as locker:
            sampling = Sampling(
                SampledGauges(registry), locker, charging, reading, label_of=lambda name: "long", settings=settings
            )

            turns, _ = await turns_during(sampling._look())

    assert turns >= ENOUGH_TURNS
    assert registry.get_sample_value("chargeonce_lock_oldest_held_seconds", {"resource": "long"}) > 0  # type: ignore[operator]
    database.close()
    charges.close()


async def test_an_export_is_written_in_pieces_and_is_whole() -> None:
    rows = [(number, f"=name,{number}") for number in range(2 * PIECE + 1)]
    as_text = [piece async for piece in as_csv(Table(("id", "name"), rows))]
    as_objects = [piece async for piece in as_json(Table(("id", "name"), rows))]

    assert [piece.count(b"\r\n") for piece in as_text] == [1, PIECE, PIECE, 1]
    assert [piece.count(b'"id"') for piece in as_objects] == [PIECE, PIECE, 1, 0]
    read = list(csv.reader(io.StringIO(b"".join(as_text).decode())))
    assert read == [["id", "name"], *[[str(number), f"'{name}"] for number, name in rows]]
    assert json.loads(b"".join(as_objects)) == [{"id": number, "name": name} for number, name in rows]
    assert b"".join([piece async for piece in as_json(Table(("id",), []))]) == b"[]"


async def test_pieces_are_everything_in_order() -> None:
    assert [piece async for piece in in_pieces(list[int](), SYSTEM, on_request=True)] == []
    assert [len(piece) async for piece in in_pieces(range(PIECE + 1), SYSTEM, on_request=True)] == [PIECE, 1]
    assert [item async for piece in in_pieces(range(3 * PIECE), SYSTEM, on_request=True) for item in piece] == list(
        range(3 * PIECE)
    )


@pytest.mark.parametrize("works", [1, 4])
async def test_all_work_on_request_together_has_a_quarter_of_the_loops_time(works: int) -> None:
    worked_s = 0.0

    async def work() -> None:
        nonlocal worked_s
        async for _ in in_pieces(range(20 * PIECE), SYSTEM, on_request=True):
            worked_s += busy()

    began_at_s = time.monotonic()
    await asyncio.gather(*[work() for _ in range(works)])

    assert worked_s <= 0.5 * (time.monotonic() - began_at_s)


async def test_what_a_process_does_by_itself_waits_for_nothing_that_was_asked_for() -> None:
    askers, own_pieces, asked_pieces = 30, 20, 0

    async def ask() -> None:
        nonlocal asked_pieces
        async for _ in in_pieces(itertools.count(), SYSTEM, on_request=True):
            asked_pieces += 1
            busy()

    asking = [asyncio.create_task(ask()) for _ in range(askers)]
    await asyncio.sleep(0)
    begun = asked_pieces
    async for _ in in_pieces(range(own_pieces * PIECE), SYSTEM, on_request=False):
        busy()
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)

    assert asked_pieces - begun < 5 * own_pieces  # not all of theirs before each of its own


async def test_one_callers_lists_keep_no_other_waiting(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists_module, "WAIT_S", PATIENCE_S)
    ended: list[int] = []
    async with lender(redis_url) as locker:
        publisher = Publisher(locker, Seen(), version="1", also_held=lambda: locker.lending.all)
        await publisher.start()
        lists = Lists(Contention(locker))

        async def listed_for(caller: int) -> int:
            page = await lists.page(sort="held", limit=1, cursor=None, search="", caller=caller)
            ended.append(caller)
            return page.total

        totals = await asyncio.gather(*[listed_for(1) for _ in range(20)], listed_for(2))
        await publisher.stop()

    assert totals == [LEASES] * 21
    assert ended.index(2) <= 2 * lists_module.AT_ONCE


async def test_who_has_waited_too_long_for_a_list_is_told_so(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists_module, "WAIT_S", 0.0)
    async with lender(redis_url) as locker:
        lists = Lists(Contention(locker))
        asked = [lists.all(sort="name", search="", caller=caller) for caller in range(lists_module.AT_ONCE + 1)]
        told = await asyncio.gather(*asked, return_exceptions=True)
        again = await lists.all(sort="name", search="", caller=1)

    assert [type(each) for each in told] == [*[list] * lists_module.AT_ONCE, Overloaded]
    assert isinstance(again, list)


def busy() -> float:
    """Two milliseconds of this thread's time, which it returns in seconds."""
    began_at_s = time.thread_time()
    while time.thread_time() - began_at_s < 0.002:
        pass
    return time.thread_time() - began_at_s
