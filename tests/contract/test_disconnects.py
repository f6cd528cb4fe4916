"""Clients that hang up while they wait, or while COMMIT is under way: nothing is left of them, nothing is half done."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest
import redis

from tests.contract.api import (
    assert_audit_passes,
    assert_books_right,
    charge_rows,
    entry_rows,
    everything,
    held_row,
    waits_for_row,
)
from tests.contract.conftest import World
from tests.contract.holding_proxy import HoldingProxy
from tests.contract.pressure import (
    footprints,
    has_hung_up,
    held_lock,
    is_free,
    is_quiet,
    processes_in_line,
    wait_until_not_grown,
    waiter_count,
)
from tests.contract.under_way import entering
from tests.harness import bearer, wait_until

SOON_S = 20.0  # far below the waits below: what is gone by then did not go because its time was over


@pytest.fixture(scope="module")
def proxy(module_database_url: str) -> Iterator[HoldingProxy]:
    """What the module's service takes for Postgres."""
    proxy = HoldingProxy(module_database_url)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def settings(proxy: HoldingProxy) -> dict[str, str]:
    return {
        "database_url": proxy.url,
        "lock_wait_s": "100",
        "lease_ttl_s": "2",
        "row_lock_timeout_s": "100",
        "statement_timeout_s": "100",
        "charge_timeout_s": "120",
        "idle_in_transaction_timeout_s": "100",
        "drain_timeout_s": "1",
    }


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """As python-redis-lock needs it: no timeout of the socket's own under its BLPOP."""
    with redis.Redis.from_url(redis_url, socket_timeout=None) as client:
        yield client


class Visitor:
    """A client that sends an entry, and hangs up without having read anything."""

    def __init__(self, world: World, appointment_id: int, user_id: int) -> None:
        self._api = world.api
        self._connection: http.client.HTTPConnection = world.api.connection()
        self._connection.request("POST", f"/v1/appointments/{appointment_id}/entries", headers=bearer(user_id))
        assert self._connection.sock is not None
        self._port: int = self._connection.sock.getsockname()[1]

    def hang_up(self) -> None:
        """As a browser does that is closed."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def is_noticed(self) -> bool:
        """Whether the service has noticed and closed its end."""
        return has_hung_up(self._api, self._port)


def hang_up(visitors: Sequence[Visitor]) -> None:
    """All of them; returns once the service has noticed."""
    for visitor in visitors:
        visitor.hang_up()
    wait_until(lambda: all(visitor.is_noticed() for visitor in visitors), what="the service's ends to be closed")


def test_a_client_that_hangs_up_while_waiting_leaves_no_lease_no_queue_entry_and_no_thread(
    world: World, client: redis.Redis
) -> None:
    id_, inviter, _ = world.meeting()
    before_rows, before, waiting = everything(world.rows), footprints(world.service), waiter_count(world.api)
    with held_lock(client, id_):
        visitor = Visitor(world, id_, inviter)
        wait_until(lambda: processes_in_line(client, id_) == 1, what="the place in line")

        hang_up([visitor])

        wait_until(lambda: processes_in_line(client, id_) == 0, patience_s=SOON_S, what="its place in line to be free")
        wait_until(lambda: waiter_count(world.api) == waiting, patience_s=SOON_S, what="the gauge of waiters")
        wait_until_not_grown(world.service, before)
        assert everything(world.rows) == before_rows
    assert is_free(client, id_), "the lock was handed to somebody who is gone"
    assert world.api.enter(id_, inviter).status == 201
    assert (charge_rows(world.rows, id_), entry_rows(world.rows, id_)) == (1, 1)
    assert_books_right(world.database_url)


def test_of_a_crowd_that_waits_most_hang_up_and_only_those_who_stayed_enter(world: World, client: redis.Redis) -> None:
    id_, inviter, invitee = world.meeting()
    before, waiting = footprints(world.service), waiter_count(world.api)
    with held_lock(client, id_) as release, entering(world.api.url, [(id_, invitee)] * 5) as stayed:
        visitors = [Visitor(world, id_, inviter) for _ in range(30)]
        wait_until(lambda: processes_in_line(client, id_) == 2, what="both workers in line")

        hang_up(visitors)
        release()

        answers = stayed.wait_for_all()
    assert sorted(answer.status for answer in answers) == [200] * 4 + [201]
    wait_until(lambda: is_free(client, id_) and not processes_in_line(client, id_), patience_s=SOON_S)
    wait_until(lambda: waiter_count(world.api) == waiting, patience_s=SOON_S, what="the gauge of waiters")
    entered = world.rows.run("SELECT user_id FROM appointment_action WHERE appointment_id = %s", id_)
    assert entered == [(invitee,)] * 5
    assert (world.rows.balance(inviter), world.rows.balance(invitee)) == (5, 4)
    wait_until_not_grown(world.service, before)
    assert_audit_passes(world.database_url)


def test_a_crowd_of_clients_that_all_hang_up_costs_the_next_one_no_wait(world: World, client: redis.Redis) -> None:
    id_, inviter, invitee = world.meeting()
    with held_lock(client, id_):
        visitors = [Visitor(world, id_, inviter) for _ in range(60)]
        wait_until(lambda: processes_in_line(client, id_) == 2, what="both workers in line")
        hang_up(visitors)
    answer = world.api.enter(id_, invitee)
    assert (answer.status, answer.json["charge"]["payer_id"]) == (201, invitee)
    assert entry_rows(world.rows, id_) == 1, "nobody entered who was gone"
    assert world.rows.balance(inviter) == 5
    assert_books_right(world.database_url)


def test_a_client_that_hangs_up_during_commit_is_charged_or_not_and_never_half(
    world: World, proxy: HoldingProxy, client: redis.Redis
) -> None:
    id_, inviter, _ = world.meeting()
    before = footprints(world.service)
    proxy.hold_next_commit()
    try:
        visitor = Visitor(world, id_, inviter)
        assert proxy.held.wait(60)
        hang_up([visitor])
        assert charge_rows(world.rows, id_) == 0
    finally:
        proxy.let_go()
    assert_whole(world, id_, inviter)
    assert_books_right(world.database_url)
    wait_until(lambda: is_free(client, id_), what="its lease's end")
    wait_until_not_grown(world.service, before)


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_client_that_hangs_up_while_its_commit_is_lost_is_charged_or_not_and_never_half(
    world: World, proxy: HoldingProxy, how: str
) -> None:
    id_, inviter, _ = world.meeting()
    proxy.hold_next_commit()
    try:
        visitor = Visitor(world, id_, inviter)
        assert proxy.held.wait(60)
        hang_up([visitor])
        proxy.cut_at_commit = "before" if how == "before" else "after"
    finally:
        proxy.let_go()
    wait_until(lambda: proxy.cut_at_commit is None, what="the cut")
    assert_whole(world, id_, inviter)
    assert_books_right(world.database_url)


def test_a_client_that_hangs_up_while_its_row_is_held_is_charged_or_not_and_never_half(
    world: World, client: redis.Redis
) -> None:
    id_, inviter, _ = world.meeting()
    with held_row(world.database_url, id_) as release:
        visitor = Visitor(world, id_, inviter)
        wait_until(lambda: waits_for_row(world.rows), what="the charge waits for the row")
        hang_up([visitor])
        release()
        assert_whole(world, id_, inviter)
    assert_books_right(world.database_url)
    wait_until(lambda: is_free(client, id_), what="its lease's end")


def test_clients_that_hang_up_during_their_common_commit_are_each_charged_or_not_and_never_half(
    world: World, proxy: HoldingProxy
) -> None:
    """Those who shared the transaction and those who wait behind it; half of them stay, and are answered."""
    meetings = [world.meeting() for _ in range(40)]
    gone, stayed = meetings[:20], meetings[20:]
    proxy.hold_next_commit()
    with ExitStack() as stack:
        stack.callback(proxy.let_go)
        visitors = [Visitor(world, id_, inviter) for id_, inviter, _ in gone]
        sent = stack.enter_context(entering(world.api.url, [(id_, inviter) for id_, inviter, _ in stayed]))
        assert proxy.held.wait(60)
        hang_up(visitors)
        proxy.let_go()
        answers = sent.wait_for_all()
    assert {answer.status for answer in answers} == {201}
    for id_, inviter, _ in gone:
        assert_whole(world, id_, inviter)
    assert_audit_passes(world.database_url)


def assert_whole(world: World, appointment_id: int, payer_id: int) -> None:
    """The visitor who is gone was charged, with all belonging to it, or nothing was written; asking again is right."""
    answer = world.api.enter(appointment_id, payer_id)
    wait_until(lambda: is_quiet(world.rows), what="the end of all transactions")
    [[charge_id]] = world.rows.run("SELECT id FROM user_consume WHERE appointment_id = %s", appointment_id)
    assert answer.json["charge"]["id"] == charge_id
    assert world.rows.balance(payer_id) == 4
    # Charged by this request: of the visitor's there is nothing. Charged before: it was theirs, with its ENTER row.
    assert (answer.status, entry_rows(world.rows, appointment_id)) in ((201, 1), (200, 2))
    assert world.api.enter(appointment_id, payer_id).status == 200
