"""The guards that the product is compared with: they answer as it does, and charge as is said of them."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import aiohttp
import psycopg2
import pytest

from db.database import Database
from db.events import ChargeEvent, Committed, Committing, Decided, RowsLocked
from locks.events import Acquired, LockEvent, Released, Releasing
from service.listeners import NOBODY, Listeners
from service.settings import load_settings
from tests.chaos.guards import GUARDS, SCHEMA_OF_GUARD, serve_guard
from tests.harness import APP_CERTIFICATE, APP_ID, SECRET, Rows, bearer, wait_for_lock_waiters

PLAIN_GUARDS = GUARDS[:3]  # lock-and-row is the product, which has tests of its own


class Answer(NamedTuple):
    """What a client gets."""

    status: int
    body: dict[str, Any]
    request_id: str


Enter = Callable[..., Any]


@pytest.fixture(autouse=True)
def waits_of_this_process() -> Iterator[None]:
    """A guard bounds the waits of all psycopg2 connections of its process, which here is the tests'."""
    yield
    psycopg2.extensions.set_wait_callback(None)


@pytest.fixture(params=PLAIN_GUARDS)
def guard(request: pytest.FixtureRequest, rows: Rows) -> str:
    """Each of them, on its own schema."""
    for statement in SCHEMA_OF_GUARD[request.param]:
        rows.run(statement)
    return str(request.param)


@pytest.fixture
def people(rows: Rows) -> tuple[int, int]:
    """Two people who both have coupons."""
    first = random.randrange(10**6, 10**12)
    for each in (first, first + 1):
        rows.grant(each, 5)
    return first, first + 1


@asynccontextmanager
async def served(
    guard: str, database_url: str, redis_url: str, listeners: Listeners = NOBODY
) -> AsyncIterator[Callable[..., Any]]:
    """The guard over a socket: await enter(appointment_id, user_id)."""
    settings = load_settings(
        database_url=database_url,
        redis_url=redis_url,
        jwt_secret=SECRET,
        agora_app_id=APP_ID,
        agora_app_certificate=APP_CERTIFICATE,
    )
    ready, over = asyncio.Event(), asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        serving = asyncio.create_task(
            serve_guard(
                guard,
                settings,
                instance_id="guard",
                listening=listening,
                until=over.wait,
                on_ready=ready.set,
                listeners=listeners,
            )
        )
        await ready.wait()
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

                async def enter(appointment_id: object, user_id: int | None) -> Answer:
                    headers = {"X-Request-Id": "mine"} | ({} if user_id is None else bearer(user_id))
                    path = f"/v1/appointments/{appointment_id}/entries"
                    async with session.post(path, headers=headers) as response:
                        return Answer(
                            response.status, json.loads(await response.text()), response.headers["X-Request-Id"]
                        )

                yield enter
        finally:
            over.set()
            await serving


async def test_the_first_entry_is_charged_and_later_ones_are_told_of_that_charge(
    guard: str, database_url: str, redis_url: str, rows: Rows, people: tuple[int, int]
) -> None:
    appointment_id = rows.appointment(*people)
    async with served(guard, database_url, redis_url) as enter:
        first = await enter(appointment_id, people[0])
        later = [await enter(appointment_id, user_id) for user_id in people]
    assert (first.status, first.body["outcome"], first.request_id) == (201, "charged", "mine")
    assert first.body["room"]["token"].startswith("007")
    assert [(each.status, each.body["outcome"]) for each in later] == [(200, "already_charged")] * 2
    assert {each.body["charge"]["id"] for each in later} == {first.body["charge"]["id"]}
    assert first.body["charge"]["payer_id"] == people[0]
    assert rows.balance(people[0]) == 5 - first.body["charge"]["count"]
    assert rows.number("SELECT count(*) FROM appointment_action WHERE appointment_id = %s", appointment_id) == 3
    assert rows.one("SELECT is_consume FROM appointment_info WHERE id = %s", appointment_id) is True


async def test_what_is_refused_is_refused_as_by_the_product_and_writes_nothing(
    guard: str, database_url: str, redis_url: str, rows: Rows, people: tuple[int, int]
) -> None:
    poor, stranger = people[1] + 1, people[1] + 2
    unpaid = rows.appointment(poor, people[1])
    ended = rows.appointment(*people)
    rows.run("UPDATE appointment_info SET status = 2 WHERE id = %s", ended)
    async with served(guard, database_url, redis_url) as enter:
        refused = {
            "insufficient-coupons": await enter(unpaid, poor),
            "appointment-not-open": await enter(ended, people[0]),
            "illegal-request": await enter(unpaid, stranger),
            "unauthenticated": await enter(unpaid, None),
            "invalid-request": await enter("x", poor),
            "not-found": await enter("1/2", poor),
        }
    assert {each.body["code"] for each in refused.values()} == set(refused)
    assert [each.status for each in refused.values()] == [402, 409, 403, 401, 400, 404]
    assert all(each.body["charged"] is False and each.body["request_id"] == "mine" for each in refused.values())
    short = refused["insufficient-coupons"].body
    assert (short["required"], short["available"]) == (1, 0)
    assert rows.number("SELECT count(*) FROM appointment_action") == 0
    assert rows.number("SELECT count(*) FROM user_consume") == 0


async def test_each_point_of_a_charge_is_told_in_the_event_loop(
    guard: str, database_url: str, redis_url: str, rows: Rows, people: tuple[int, int]
) -> None:
    told: list[LockEvent | ChargeEvent] = []
    threads: set[threading.Thread] = set()

    def hear(event: LockEvent | ChargeEvent) -> None:
        told.append(event)
        threads.add(threading.current_thread())

    appointment_id = rows.appointment(*people)
    async with served(guard, database_url, redis_url, Listeners(hear, hear)) as enter:
        await enter(appointment_id, people[0])
    charge = [RowsLocked, Decided, Committing, Committed]
    wanted = [Acquired, *charge, Releasing, Released] if guard == "lock-only" else charge
    assert [type(event) for event in told if type(event) in wanted] == wanted
    committed = next(event for event in told if isinstance(event, Committed))
    assert (committed.entries, committed.charges, list(committed.appointment_ids)) == (1, 1, [appointment_id])
    assert threads == {threading.main_thread()}


# Who is first past the guard waits for coupons that somebody else has locked; so many sessions then wait in Postgres.
SESSIONS_WAITING = {"entry-log": 2, "lock-only": 1, "row-only": 2}
CHARGES = {"entry-log": 2, "lock-only": 1, "row-only": 1}


async def test_two_who_enter_before_either_has_committed_are_both_charged_by_the_entry_log_alone(
    guard: str, database_url: str, redis_url: str, rows: Rows, people: tuple[int, int], database: Database
) -> None:
    appointment_id = rows.appointment(*people)
    async with served(guard, database_url, redis_url) as enter:
        with _locked_coupons(database_url):
            entries = [asyncio.create_task(enter(appointment_id, user_id)) for user_id in people]
            await asyncio.to_thread(wait_for_lock_waiters, database, SESSIONS_WAITING[guard])
        answers = await asyncio.gather(*entries)
    assert sorted(each.status for each in answers) == sorted([201] * CHARGES[guard] + [200] * (2 - CHARGES[guard]))
    charges = rows.number("SELECT count(*) FROM user_consume WHERE appointment_id = %s", appointment_id)
    assert charges == CHARGES[guard]


async def test_a_guard_without_its_database_says_so_and_charges_nobody(
    guard: str, database_url: str, redis_url: str, rows: Rows, people: tuple[int, int]
) -> None:
    appointment_id = rows.appointment(*people)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        away = f"postgresql://nobody@127.0.0.1:{nobody.getsockname()[1]}/nothing"
    async with served(guard, away, redis_url) as enter:
        answer = await enter(appointment_id, people[0])
    assert (answer.status, answer.body["code"], answer.body["charged"]) == (503, "database-down", False)


@contextmanager
def _locked_coupons(database_url: str) -> Iterator[None]:
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM user_coupon FOR UPDATE")
        yield
    finally:
        connection.close()
