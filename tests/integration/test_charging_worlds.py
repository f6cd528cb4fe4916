"""Small worlds of a real Postgres, in which everything collides, against the oracle of test_decisions.py."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from db.charging import Entry, Verdict
from db.decisions import (
    AppointmentNotOpen,
    ChargeRequest,
    IllegalRequest,
    InsufficientCoupons,
    Outcome,
    Payer,
    Rules,
    StaleHolder,
)
from tests.harness import Rows
from tests.integration.charging_helpers import patient_charges
from tests.unit.test_decisions import World, told_one_by_one, world_spelt

WORLDS = 60
SPELLING_BYTES = 62


@pytest.mark.parametrize("waiting", [False, True], ids=["charge_batch", "charge_waiting"])
async def test_a_batch_comes_out_as_if_its_requests_came_one_by_one(
    database_url: str, rows: Rows, waiting: bool
) -> None:
    """What is locked and read is what the decision needs, and what is decided is what stands in the tables."""
    kinds = set()
    for number in range(WORLDS):
        world = world_spelt(random.Random(number).randbytes(SPELLING_BYTES))
        people = {user: 10 * (number + 1) + user for user in range(1, 10)}
        ids = settled(world, rows, people)
        requests = [asked(request, ids, people) for request in world.requests]
        outcomes, coupons_left, charges_made = told_one_by_one(world)

        with patient_charges(database_url, rules=Rules(Payer(world.payer), world.default_price)) as charges:
            verdicts = await (charges.charge_waiting if waiting else charges.charge_batch)(requests)

        assert [as_told(verdict) for verdict in verdicts] == [in_short(outcome) for outcome in outcomes], number
        assert {user: rows.balance(people[user]) for user in world.coupons} == coupons_left, number
        assert new_charges(rows, world, ids) == in_real_ids(charges_made, ids, people), number
        kinds |= {outcome[0] for outcome in outcomes}
        let_in = sum(isinstance(verdict, Entry) for verdict in verdicts)
        assert rows.number("SELECT count(*) FROM appointment_action") == let_in, number
        rows.run("DELETE FROM appointment_action")
        rows.run("DELETE FROM coupon_price")
    assert kinds == {"charged", "repeat", "free", "poor", "not open", "stale", "illegal"}


def settled(world: World, rows: Rows, people: Mapping[int, int]) -> dict[int, int]:
    """Puts the world into the tables; the real id of each appointment."""
    for user, price in world.prices.items():
        rows.run("INSERT INTO coupon_price VALUES (%s, %s)", people[user], price)
    for user, count in world.coupons.items():
        rows.run("INSERT INTO user_coupon (user_id, coupon_id, count) VALUES (%s, 1, %s)", people[user], count)
    ids = {}
    for id_, each in world.appointments.items():
        ids[id_] = rows.appointment(people[each["inviter"]], people[each["invitee"]])
        rows.run(
            "UPDATE appointment_info SET status = %s, is_consume = %s, lock_fence = %s WHERE id = %s",
            each["status"],
            each["consumed"],
            each["fence"],
            ids[id_],
        )
        if each["charge"] is not None:
            rows.run(
                "INSERT INTO user_consume (appointment_id, user_id, other_user_id, coupon_id, prop_id, count)"
                " VALUES (%s, %s, %s, 1, 1, 1)",
                ids[id_],
                people[each["inviter"]],
                people[each["invitee"]],
            )
    return ids


def asked(request: ChargeRequest, ids: Mapping[int, int], people: Mapping[int, int]) -> ChargeRequest:
    return ChargeRequest(
        ids.get(request.appointment_id, max(ids.values()) + 10**6),
        people[request.user_id],
        request.fencing_token,
        None if request.other_user_id is None else people[request.other_user_id],
    )


def as_told(verdict: Verdict) -> tuple[object, ...]:
    """The verdict in the oracle's words, as far as both know them."""
    match verdict:
        case Entry(Outcome.CHARGED):
            return ("charged", verdict.charge is not None)
        case Entry(Outcome.ALREADY_CHARGED):
            return ("repeat", verdict.charge is not None)
        case Entry(Outcome.FREE):
            return ("free",)
        case InsufficientCoupons():
            return ("poor", verdict.required, verdict.available)
        case AppointmentNotOpen():
            return ("not open", int(verdict.status))
        case StaleHolder():
            return ("stale",)
        case IllegalRequest():
            return ("illegal",)
    raise AssertionError(verdict)


def in_short(outcome: tuple[object, ...]) -> tuple[object, ...]:
    """The oracle's outcome, of a charge no more than whether there is one."""
    if outcome[0] in ("charged", "repeat"):
        return (outcome[0], outcome[1] is not None)
    return outcome


def new_charges(rows: Rows, world: World, ids: Mapping[int, int]) -> list[tuple[object, ...]]:
    """The charges of this world that were not there before."""
    earlier = [ids[id_] for id_, each in world.appointments.items() if each["charge"] is not None]
    return rows.run(
        "SELECT appointment_id, user_id, other_user_id, count, lock_fence FROM user_consume"
        " WHERE appointment_id = ANY(%s) AND appointment_id <> ALL(%s::bigint[]) ORDER BY appointment_id",
        list(ids.values()),
        earlier,
    )


def in_real_ids(
    charges: Mapping[int, tuple[object, ...]], ids: Mapping[int, int], people: Mapping[int, int]
) -> list[tuple[object, ...]]:
    made: list[tuple[object, ...]] = []
    for id_, (_, payer, other, count, fence) in sorted(charges.items()):
        assert isinstance(payer, int)
        assert isinstance(other, int)
        made.append((ids[id_], people[payer], people[other], count, fence))
    return made
