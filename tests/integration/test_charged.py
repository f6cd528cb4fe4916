"""Which appointments a process knows to be charged: what it was told, and what it finds in a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import closing

import pytest

from db.charging import Charges
from db.decisions import ChargeRequest, Outcome
from service.charged import ChargedAppointments
from tests.harness import Rows, wait_until_async
from tests.integration.charging_helpers import ANN, BOB, ENTRANT_PAYS, PATIENT, outcomes_of
from tests.proxy import Proxy, Way


class Asked(Charges):
    """Charges that remember what they were asked for."""

    def __init__(self, url: str) -> None:
        super().__init__(url, ENTRANT_PAYS, limits=PATIENT)
        self.questions: list[set[int]] = []

    async def charged_among(self, appointment_ids: Collection[int]) -> list[int]:
        self.questions.append(set(appointment_ids))
        return await super().charged_among(appointment_ids)


class Knowing:
    """What a process knows, and whom it has told."""

    def __init__(self, charges: Asked, *, size: int = 1000) -> None:
        self.charges = charges
        self.found: list[int] = []
        self.charged = ChargedAppointments(charges, size=size, on_found=self.found.append)


@pytest.fixture
async def knowing(proxied: tuple[Proxy, str]) -> AsyncIterator[Knowing]:
    with closing(Asked(proxied[1])) as charges:
        knowing = Knowing(charges)
        yield knowing
        await knowing.charged.close()


async def charge(knowing: Knowing, rows: Rows) -> int:
    """A charged appointment's id."""
    rows.grant(ANN, 1)
    id_ = rows.appointment(ANN, BOB)
    assert outcomes_of(await knowing.charges.charge_batch([ChargeRequest(id_, ANN)])) == [Outcome.CHARGED]
    return id_


async def looked(knowing: Knowing, count: int) -> None:
    """Returns once so many questions were asked, and all of them answered."""

    async def nothing_is_asked() -> bool:
        return len(knowing.charges.questions) >= count and knowing.charged._looking is None

    await wait_until_async(nothing_is_asked, what=f"{count} questions")


# What it is told


async def test_it_knows_what_it_was_told_until_it_is_told_otherwise(knowing: Knowing) -> None:
    knowing.charged.add(1)
    knowing.charged.add(2)
    knowing.charged.forget(1)
    knowing.charged.forget(3)  # harmless

    assert [id_ in knowing.charged for id_ in (1, 2, 3)] == [False, True, False]
    assert knowing.found == []


@pytest.mark.parametrize("size", [1, 2, 3, 10, 11])
async def test_it_keeps_the_newest_and_no_more_than_it_may(knowing: Knowing, size: int) -> None:
    charged = ChargedAppointments(knowing.charges, size=size, on_found=lambda id_: None)

    for newest in range(1, 101):
        charged.add(newest)
        known = [id_ for id_ in range(1, newest + 1) if id_ in charged]

        assert len(known) <= size
        at_least = max(1, size // 2)  # of the newest
        assert known[-at_least:] == list(range(max(1, newest + 1 - at_least), newest + 1))


async def test_one_that_is_heard_of_again_and_again_stays_known(knowing: Knowing) -> None:
    charged = ChargedAppointments(knowing.charges, size=10, on_found=lambda id_: None)

    for other in range(100, 200):
        charged.add(7)
        charged.add(other)

    assert 7 in charged


# What it finds


async def test_a_look_finds_what_is_charged_tells_of_it_and_remembers_it(knowing: Knowing, rows: Rows) -> None:
    id_, open_ = await charge(knowing, rows), rows.appointment(ANN, BOB)

    knowing.charged.look(id_)
    knowing.charged.look(open_)
    await looked(knowing, 1)

    assert knowing.found == [id_]
    assert id_ in knowing.charged
    assert open_ not in knowing.charged


async def test_looks_of_one_tick_are_one_question_and_those_that_come_meanwhile_are_one_more(
    knowing: Knowing, proxied: tuple[Proxy, str], rows: Rows
) -> None:
    proxy, _ = proxied
    charged = [await charge(knowing, rows) for _ in range(3)]
    for id_ in charged[:2] * 10:
        knowing.charged.look(id_)
    proxy.hold(Way.REPLIES)
    await asked(knowing, 1)
    for id_ in [charged[2], *charged[:1]] * 10:
        knowing.charged.look(id_)
        await asyncio.sleep(0)
    assert knowing.charges.questions == [set(charged[:2])]
    proxy.let_through(Way.REPLIES)
    await looked(knowing, 2)

    assert knowing.charges.questions == [set(charged[:2]), {charged[2], charged[0]}]
    assert sorted(knowing.found) == sorted([*charged, charged[0]])


async def test_a_look_in_vain_costs_nothing_but_itself(
    knowing: Knowing, proxied: tuple[Proxy, str], rows: Rows
) -> None:
    proxy, _ = proxied
    id_ = await charge(knowing, rows)
    proxy.go_away()
    knowing.charged.look(id_)
    await looked(knowing, 1)
    assert id_ not in knowing.charged
    proxy.come_back()

    knowing.charged.look(id_)
    await looked(knowing, 2)

    assert knowing.found == [id_]


async def test_closed_it_looks_no_more(knowing: Knowing, proxied: tuple[Proxy, str], rows: Rows) -> None:
    proxy, _ = proxied
    id_ = await charge(knowing, rows)
    proxy.hold(Way.REPLIES)
    knowing.charged.look(id_)
    await asked(knowing, 1)

    await knowing.charged.close()
    await knowing.charged.close()  # harmless twice
    proxy.let_through(Way.REPLIES)

    assert knowing.found == []


# Helpers


async def asked(knowing: Knowing, count: int) -> None:
    """Returns once so many questions are under way or answered."""

    async def is_asked() -> bool:
        return len(knowing.charges.questions) >= count

    await wait_until_async(is_asked, what=f"{count} questions")
