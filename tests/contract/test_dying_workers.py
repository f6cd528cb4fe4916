"""Workers killed in the middle of charges: the books stay right, the same request again charges once in all."""

from __future__ import annotations

import http.client
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.api import (
    Answer,
    assert_audit_passes,
    assert_books_right,
    charge_rows,
    crowd,
    entry_rows,
    held_row,
    in_background,
    statuses,
    waits_for_row,
    worker_behind,
)
from tests.contract.conftest import World
from tests.harness import Service, wait_until


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {
        "lock_wait_s": "40",
        "row_lock_timeout_s": "40",
        "statement_timeout_s": "40",
        "charge_timeout_s": "50",
        "idle_in_transaction_timeout_s": "40",
    }


def replaced(world: World, killed: int) -> bool:
    """Whether another worker has taken the dead one's place and serves."""
    pids = world.service.worker_pids()
    return len(pids) == 2 and killed not in pids and world.api.get("/readyz").status == 200


def test_a_worker_killed_in_mid_charge_costs_nothing_and_the_same_request_again_charges_once(world: World) -> None:
    id_, inviter, invitee = world.meeting()
    connection = world.api.connection()
    with in_background() as start, held_row(world.database_url, id_) as release:
        entering = start(world.api.enter, id_, inviter, on=connection)
        wait_until(lambda: waits_for_row(world.rows), what="the charge waits for the row")
        killed = worker_behind(world.service, connection)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            entering.result()
        release()
    connection.close()
    assert (charge_rows(world.rows, id_), world.rows.balance(inviter)) == (0, 5)

    answers = [world.api.enter(id_, person) for person in (inviter, inviter, invitee)]

    assert [answer.status for answer in answers] == [201, 200, 200]
    assert (charge_rows(world.rows, id_), entry_rows(world.rows, id_)) == (1, 3)
    assert (world.rows.balance(inviter), world.rows.balance(invitee)) == (4, 5)
    assert_audit_passes(world.database_url)
    wait_until(lambda: replaced(world, killed), what="a new worker")
    assert str(killed) in world.service.logged(), "the log says who died"


def test_a_worker_killed_under_a_crowd_leaves_the_books_right_and_everybody_gets_in_when_trying_again(
    world: World,
) -> None:
    meetings = [world.meeting(coupons=2) for _ in range(40)]
    entries = [(id_, person) for _ in range(5) for id_, *pair in meetings for person in pair]
    written = world.rows.number("SELECT count(*) FROM appointment_action")
    wait_until(lambda: len(world.service.worker_pids()) == 2)
    killed = world.service.worker_pids()[0]
    with in_background() as start:
        crowding = start(crowd, world.api.url, entries, at_once=100)
        wait_until(lambda: world.rows.number("SELECT count(*) FROM appointment_action") >= written + 60)
        os.kill(killed, signal.SIGKILL)
    answers: list[Answer | None] = crowding.result()
    count = statuses(answers)
    assert set(count) <= {200, 201, None}, count
    assert count[None], "the worker died too late for this test to say anything"
    assert_books_right(world.database_url)
    for (id_, *_), charged in zip(meetings, [charge_rows(world.rows, id_) for id_, *_ in meetings], strict=True):
        told = [answer for answer in answers if answer and answer.json["appointment_id"] == id_]
        assert sum(answer.status == 201 for answer in told) <= charged <= 1
        assert len(told) <= entry_rows(world.rows, id_)

    again = crowd(world.api.url, entries)

    assert set(statuses(again)) <= {200, 201}
    assert [charge_rows(world.rows, id_) for id_, *_ in meetings] == [1] * 40
    assert sum(world.rows.balance(person) for _, *pair in meetings for person in pair) == 40 * 3
    assert_books_right(world.database_url)
    wait_until(lambda: replaced(world, killed), what="a new worker")


def test_what_a_killed_supervisor_left_is_removed_by_the_next_start(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    killed = start_service(workers=1)
    workers = killed.worker_pids()
    left = {path.name for path in tmp_path.glob("chargeonce-metrics-*")}
    assert left

    killed.process.kill()
    killed.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), what="the workers' end")
    start_service(workers=1)

    now = {path.name for path in tmp_path.glob("chargeonce-metrics-*")}
    assert now
    assert now.isdisjoint(left)
