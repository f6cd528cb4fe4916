"""Whoever may not enter an appointment is refused before standing in line, with a real Postgres and a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import closing

import pytest

from db.charging import Charges
from db.decisions import ChargeRequest, IllegalRequest, Outcome, Participants
from locks import Lease, LockBusy, Locker
from locks.events import Acquired
from service.charged import ChargedAppointments
from service.entering import Entered, Entering, EntryRequest, lock_name
from service.outage import RefuseWithoutLock
from service.participants import REFUSED_AFTER_S, KnownParticipants
from service.rtc_token import RoomTokenMint
from tests.harness import PATIENCE_S, Rows, wait_until_async
from tests.integration.charging_helpers import ANN, BOB, ENTRANT_PAYS, EVE, PATIENT, one_lane
from tests.proxy import Proxy, Way

NOBODYS = 10**15
REMEMBERED = 10


class Asked(Charges):
    """Charges that remember whose participants they were asked for."""

    def __init__(self, url: str) -> None:
        super().__init__(url, ENTRANT_PAYS, limits=PATIENT)
        self.questions: list[set[int]] = []

    async def participants_of(self, appointment_ids: Collection[int]) -> dict[int, Participants]:
        self.questions.append(set(appointment_ids))
        return await super().participants_of(appointment_ids)


class Doors:
    """Entering, with what it was asked on the way."""

    def __init__(self, charges: Asked, locker: Locker, turns: list[str]) -> None:
        self.charges = charges
        self.locker = locker
        self.turns = turns  # the names of the locks that were had, one after the other
        self.participants = KnownParticipants(charges, size=REMEMBERED)
        self.charging = one_lane(charges)
        self._entering = Entering(
            locker,
            self.charging,
            ChargedAppointments(charges, size=10, on_found=lambda appointment_id: None),
            self.participants,
            RoomTokenMint("0" * 32, "1" * 32, 60),
            RefuseWithoutLock(),
            lease_ttl_s=PATIENCE_S,
            lock_wait_s=PATIENCE_S,
            on_stale_holder=lambda name, token: None,
        )

    def enter(self, appointment_id: int, user_id: int, other_user_id: int | None = None) -> asyncio.Task[Entered]:
        return asyncio.create_task(self._entering.enter(EntryRequest(appointment_id, user_id, other_user_id)))

    async def held(self, appointment_id: int) -> Lease:
        """Somebody of this process holds the appointment's lock."""
        return await self.locker.acquire(lock_name(appointment_id), lease_ttl_s=PATIENCE_S, wait_s=0)


@pytest.fixture
async def doors(proxied: tuple[Proxy, str], redis_url: str) -> AsyncIterator[Doors]:
    turns: list[str] = []

    def listen(event: object) -> None:
        if isinstance(event, Acquired):
            turns.append(event.name)

    async with Locker.connect(redis_url, instance_id="test", listener=listen) as locker:
        with closing(Asked(proxied[1])) as charges:
            doors = Doors(charges, locker, turns)
            yield doors
            await doors.participants.close()
            await doors.charging.close()


async def test_while_the_lock_is_held_an_outsider_is_refused_and_a_participant_waits(doors: Doors, rows: Rows) -> None:
    rows.grant(ANN, 1)
    id_ = rows.appointment(ANN, BOB)
    lease = await doors.held(id_)
    ann = doors.enter(id_, ANN)

    for task in (doors.enter(id_, EVE), doors.enter(id_, BOB, EVE), doors.enter(id_, EVE, ANN)):
        with pytest.raises(IllegalRequest):
            await task
    await stands_in_line(doors, 1)
    await lease.release()

    assert (await ann).timed.entry.outcome is Outcome.CHARGED


async def test_no_such_appointment_is_refused_likewise_and_found_once_it_is_made(doors: Doors, rows: Rows) -> None:
    lease = await doors.held(NOBODYS)
    with pytest.raises(IllegalRequest):
        await doors.enter(NOBODYS, ANN)
    rows.run(f"INSERT INTO appointment_info (id, user_id, invitee_user_id, status) VALUES ({NOBODYS}, {ANN}, {BOB}, 1)")
    rows.grant(ANN, 1)

    ann = doors.enter(NOBODYS, ANN)
    await stands_in_line(doors, 1)
    await lease.release()

    assert (await ann).timed.entry.outcome is Outcome.CHARGED


async def test_entries_that_need_not_wait_cost_no_question(doors: Doors, rows: Rows) -> None:
    rows.grant(ANN, 1)
    id_ = rows.appointment(ANN, BOB)

    await doors.enter(id_, ANN)
    await doors.enter(id_, BOB)
    with pytest.raises(IllegalRequest):
        await doors.enter(rows.appointment(ANN, BOB), EVE)

    assert doors.charges.questions == []


async def test_whoever_was_refused_takes_no_turn_of_a_free_lock_and_has_their_own(doors: Doors, rows: Rows) -> None:
    rows.grant(EVE, 1)
    anns, eves = rows.appointment(ANN, BOB), rows.appointment(EVE, BOB)
    for _ in range(3):
        with pytest.raises(IllegalRequest):
            await doors.enter(anns, EVE)

    entered = await doors.enter(eves, EVE)

    assert doors.turns == [lock_name(anns), lock_name(eves)]
    assert doors.charges.questions == [{anns}, {anns}, {eves}]
    assert entered.timed.entry.outcome is Outcome.CHARGED


async def test_a_refusal_takes_its_time_wherever_it_was_found(doors: Doors, rows: Rows) -> None:
    rows.grant(ANN, 1)
    charged, held, free = (rows.appointment(ANN, BOB) for _ in range(3))
    await doors.enter(charged, ANN)
    await doors.held(held)
    for asked_for in (charged, held, free, NOBODYS):
        for outsider in (EVE, EVE + 1 + asked_for):  # refused before, or never
            began_at_s = time.monotonic()
            with pytest.raises(IllegalRequest):
                await doors.enter(asked_for, outsider)
            assert time.monotonic() - began_at_s >= REFUSED_AFTER_S[0]


async def test_only_those_refused_last_are_remembered(doors: Doors, rows: Rows) -> None:
    id_, others = rows.appointment(ANN, BOB), range(EVE + 1, EVE + 1 + REMEMBERED)
    for crowd in ([EVE], others):
        await asyncio.gather(*[doors.enter(id_, user_id) for user_id in crowd], return_exceptions=True)

    assert [doors.participants.was_refused(each) for each in (EVE, *others)] == [False] + [True] * REMEMBERED


async def test_a_crowd_asks_once_and_participants_who_are_known_ask_no_more(
    doors: Doors, proxied: tuple[Proxy, str], rows: Rows
) -> None:
    proxy, _ = proxied
    id_, other = rows.appointment(ANN, BOB), rows.appointment(ANN, BOB)
    for each in (id_, other):
        await doors.held(each)
    proxy.hold(Way.REPLIES)
    first = doors.enter(id_, EVE)
    await asked(doors, 1)
    crowd = [doors.enter(each, user_id) for each in (id_, other) for user_id in [EVE] * 100 + [ANN] * 100]
    await asyncio.sleep(0)
    proxy.let_through(Way.REPLIES)
    for task in (first, *[task for task in crowd if not task.done()][:1]):
        with pytest.raises(IllegalRequest):
            await task
    await stands_in_line(doors, 200)

    later = [doors.enter(each, user_id) for each in (id_, other) for user_id in (ANN, BOB)]
    await stands_in_line(doors, 204)

    assert doors.charges.questions == [{id_}, {id_, other}]
    await given_up([*crowd, *later])


async def test_while_the_database_says_nothing_they_stand_in_line_as_ever(
    doors: Doors, proxied: tuple[Proxy, str], rows: Rows
) -> None:
    proxy, _ = proxied
    id_ = rows.appointment(ANN, BOB)
    await doors.held(id_)
    proxy.go_away()
    refused = doors.enter(id_, ANN)
    await stands_in_line(doors, 1)
    proxy.come_back()
    proxy.hold(Way.REPLIES)
    silent = doors.enter(id_, ANN)
    await stands_in_line(doors, 2)

    await given_up([refused, silent])
    proxy.let_through(Way.REPLIES)


async def test_only_what_this_process_wants_is_wanted(doors: Doors, name: str) -> None:
    locker = doors.locker
    assert not locker.is_wanted(name)
    asking = asyncio.create_task(locker.acquire(name, wait_s=PATIENCE_S))
    await asyncio.sleep(0)
    assert locker.is_wanted(name)
    lease = await asking
    assert locker.is_wanted(name)
    with pytest.raises(LockBusy):
        await locker.acquire(name, wait_s=0.01)
    await lease.release()
    assert not locker.is_wanted(name)


# What is asked, given up and closed


async def test_whoever_gives_up_as_the_answer_comes_does_not_go_on(doors: Doors, rows: Rows) -> None:
    request = ChargeRequest(rows.appointment(ANN, BOB), ANN)
    asking = asyncio.create_task(doors.participants.refuse_outsider(request))
    await asyncio.sleep(0)
    question = doors.participants._next
    assert question is not None
    question.answer.add_done_callback(lambda _: asking.cancel())

    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_whoever_asks_while_it_closes_is_not_left_waiting(
    doors: Doors, proxied: tuple[Proxy, str], rows: Rows
) -> None:
    proxy, _ = proxied
    proxy.hold(Way.REPLIES)
    asking = asyncio.create_task(doors.participants.refuse_outsider(ChargeRequest(rows.appointment(ANN, BOB), EVE)))
    await asked(doors, 1)

    await doors.participants.close()
    await doors.participants.close()  # harmless twice

    await asking
    proxy.let_through(Way.REPLIES)


# Helpers


async def asked(doors: Doors, count: int) -> None:
    """Returns once so many questions are under way or answered."""

    async def is_asked() -> bool:
        return len(doors.charges.questions) >= count

    await wait_until_async(is_asked, what=f"{count} questions")


async def stands_in_line(doors: Doors, count: int) -> None:
    """Returns once exactly so many wait for locks."""

    async def so_many_wait() -> bool:
        return doors.locker.waiter_count == count

    await wait_until_async(so_many_wait, what=f"{count} who wait, not {doors.locker.waiter_count}")


async def given_up(tasks: list[asyncio.Task[Entered]]) -> None:
    """They wait no longer."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
