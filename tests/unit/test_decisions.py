"""`decide` against a second telling of the rules, which judges one request at a time on plain dicts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.decisions import (
    AppointmentNotOpen,
    AppointmentRow,
    ChargeRequest,
    IllegalRequest,
    InsufficientCoupons,
    LetIn,
    LockedRows,
    NewCharge,
    Outcome,
    Payer,
    Refusal,
    Rules,
    StaleHolder,
    decide,
)
from db.records import ChargeRecord
from db.tables import AppointmentStatus

INVITER, INVITEE, STRANGER = 1, 2, 9
OPEN, ENDED, CANCELLED = 1, 2, 3
MISSING = 99
CHARGED_AT = datetime(2026, 1, 1, tzinfo=UTC)


# Examples, with numbers


def test_the_entrant_pays_the_price_of_the_other_one() -> None:
    decisions = decide(
        LockedRows({7: row(7, price_of_inviter=2, price_of_invitee=3)}, {INVITER: 10, INVITEE: 10}, {}),
        [ChargeRequest(7, INVITER, fencing_token=5)],
        Rules(Payer.ENTRANT, default_price=1),
    )

    charge = NewCharge(7, INVITER, INVITEE, 3, lock_fence=5)
    assert decisions.verdicts == [LetIn(Outcome.CHARGED, charge)]
    assert decisions.new_charges == {7: charge}
    assert decisions.spent == {INVITER: 3}


def test_of_two_in_one_batch_the_first_is_charged_and_the_second_is_a_repeat() -> None:
    decisions = judged([ChargeRequest(7, INVITEE), ChargeRequest(7, INVITER)], balances={INVITER: 1, INVITEE: 1})

    charge = NewCharge(7, INVITEE, INVITER, 1, lock_fence=None)
    assert decisions == [LetIn(Outcome.CHARGED, charge), LetIn(Outcome.ALREADY_CHARGED, charge)]


def test_coupons_for_two_meetings_of_three_refuse_the_third_with_what_is_left() -> None:
    decisions = decide(
        LockedRows({id_: row(id_) for id_ in (1, 2, 3)}, {INVITER: 5}, {}),
        [ChargeRequest(3, INVITER), ChargeRequest(1, INVITER), ChargeRequest(2, INVITER)],
        Rules(Payer.ENTRANT, default_price=2),
    )

    assert sorted(decisions.new_charges) == [1, 3]
    refused = decisions.verdicts[2]
    assert isinstance(refused, InsufficientCoupons)
    assert (refused.required, refused.available, refused.coupon_id) == (2, 1, 1)
    assert decisions.spent == {INVITER: 4}


def test_where_the_inviter_pays_the_invitee_enters_free_and_charges_nobody() -> None:
    rules = Rules(Payer.INVITER, default_price=1)
    requests = [ChargeRequest(7, INVITEE), ChargeRequest(7, INVITER), ChargeRequest(7, INVITEE)]

    verdicts = judged(requests, balances={INVITER: 1}, rules=rules)

    charge = NewCharge(7, INVITER, INVITEE, 1, lock_fence=None)
    assert verdicts == [
        LetIn(Outcome.FREE, None),
        LetIn(Outcome.CHARGED, charge),
        LetIn(Outcome.ALREADY_CHARGED, charge),
    ]


def test_a_meeting_that_costs_nothing_is_free_and_leaves_the_appointment_unconsumed() -> None:
    decisions = decide(
        LockedRows({7: row(7, price_of_invitee=0)}, {}, {}), [ChargeRequest(7, INVITER)], Rules(Payer.ENTRANT, 1)
    )

    assert decisions.verdicts == [LetIn(Outcome.FREE, None)]
    assert decisions.new_charges == {}


@pytest.mark.parametrize(
    "request_",
    [ChargeRequest(7, STRANGER), ChargeRequest(8, INVITER), ChargeRequest(7, INVITER, other_user_id=STRANGER)],
    ids=["a stranger", "a missing appointment", "a wrong partner"],
)
def test_strangers_missing_appointments_and_wrong_partners_get_one_answer(request_: ChargeRequest) -> None:
    (verdict,) = judged([request_], balances={INVITER: 1})

    assert type(verdict) is IllegalRequest
    assert str(verdict) == ""


def test_naming_oneself_as_the_partner_is_illegal() -> None:
    (verdict,) = judged([ChargeRequest(7, INVITER, other_user_id=INVITER)], balances={INVITER: 1})

    assert type(verdict) is IllegalRequest


@pytest.mark.parametrize(
    ("token", "fence", "outcome"),
    [(4, 5, StaleHolder), (5, 5, LetIn), (6, 5, LetIn), (None, 5, LetIn), (4, None, LetIn), (None, None, LetIn)],
)
def test_only_a_token_below_the_rows_fence_is_stale(token: int | None, fence: int | None, outcome: type) -> None:
    (verdict,) = judged(
        [ChargeRequest(7, INVITER, fencing_token=token)], balances={INVITER: 1}, lock_fence=fence, is_consume=False
    )

    assert type(verdict) is outcome


def test_an_older_token_behind_a_newer_charge_of_its_own_batch_is_stale() -> None:
    verdicts = judged([ChargeRequest(7, INVITER, 9), ChargeRequest(7, INVITEE, 8)], balances={INVITER: 1, INVITEE: 1})

    assert [type(verdict) for verdict in verdicts] == [LetIn, StaleHolder]


@pytest.mark.parametrize("status", [AppointmentStatus.ENDED, AppointmentStatus.CANCELLED])
@pytest.mark.parametrize("is_consume", [False, True])
def test_nobody_enters_an_appointment_that_is_not_open(status: AppointmentStatus, is_consume: bool) -> None:
    (verdict,) = judged([ChargeRequest(7, INVITER)], balances={INVITER: 1}, status=status, is_consume=is_consume)

    assert isinstance(verdict, AppointmentNotOpen)
    assert verdict.status is status


# The property


@dataclass(frozen=True)
class World:
    """What the tables hold, and who asks for what."""

    payer: str
    default_price: int
    appointments: dict[int, dict[str, Any]]
    prices: dict[int, int]
    coupons: dict[int, int]
    requests: list[ChargeRequest]


def told_one_by_one(world: World) -> tuple[list[tuple[object, ...]], dict[int, int], dict[int, tuple[object, ...]]]:
    """The rules again: outcomes, the coupons left, and the charges made, by appointment."""
    table = {id_: dict(each) for id_, each in world.appointments.items()}
    coupons = dict(world.coupons)
    charges: dict[int, tuple[object, ...]] = {}
    outcomes = [_tell_one(world, request, table, coupons, charges) for request in world.requests]
    return outcomes, coupons, charges


def _tell_one(
    world: World,
    request: ChargeRequest,
    table: dict[int, dict[str, Any]],
    coupons: dict[int, int],
    charges: dict[int, tuple[object, ...]],
) -> tuple[object, ...]:
    if request.appointment_id not in table:
        return ("illegal",)
    meeting = table[request.appointment_id]
    people = [meeting["inviter"], meeting["invitee"]]
    if request.user_id not in people:
        return ("illegal",)
    people.remove(request.user_id)
    other = people[0]
    if request.other_user_id is not None and request.other_user_id != other:
        return ("illegal",)
    if request.fencing_token is not None and meeting["fence"] is not None and meeting["fence"] > request.fencing_token:
        return ("stale",)
    if meeting["status"] != OPEN:
        return ("not open", meeting["status"])
    if meeting["consumed"]:
        return ("repeat", meeting["charge"])
    due = world.prices.get(other, world.default_price)
    if world.payer == "inviter" and request.user_id == meeting["invitee"]:
        due = 0
    if due == 0:
        return ("free",)
    if coupons.get(request.user_id, 0) < due:
        return ("poor", due, coupons.get(request.user_id, 0))
    coupons[request.user_id] -= due
    charge = (request.appointment_id, request.user_id, other, due, request.fencing_token)
    charges[request.appointment_id] = charge
    meeting.update(consumed=True, charge=charge, fence=request.fencing_token)
    return ("charged", charge)


class Choices:
    """Choices spelt as bytes: drawing one string is ten times as fast as drawing each choice."""

    def __init__(self, spelling: bytes) -> None:
        self._spelling = iter(spelling)

    def of(self, *options: Any) -> Any:
        return options[next(self._spelling, 0) % len(options)]


def world_spelt(spelling: bytes) -> World:
    """A small world, in which everything collides; None has no row."""
    choose = Choices(spelling).of
    payer, default_price = choose("entrant", "inviter"), choose(1, 0, 2, 3)
    appointments = {}
    for id_ in range(1, choose(2, 3, 4)):
        inviter, invitee = choose((1, 2), (2, 1), (1, 3), (3, 2), (4, 1))
        consumed = choose(*[None] * 7, "charge", "lost charge")
        appointments[id_] = {
            "inviter": inviter,
            "invitee": invitee,
            "status": choose(*[OPEN] * 7, ENDED, CANCELLED),
            "consumed": consumed is not None,
            "charge": ("earlier", id_) if consumed == "charge" else None,
            "fence": choose(None, None, None, 5, 7),
        }
    requests = []
    for _ in range(choose(2, 1, 3, 4, 5, 6, 7)):
        id_ = choose(*appointments, *appointments, *appointments, MISSING)
        people = appointments.get(id_, {"inviter": 1, "invitee": 2})
        user_id = choose(*[people["inviter"], people["invitee"]] * 4, choose(1, 2, 3, 4, 5))
        other_user_id = choose(*[None] * 8, people["inviter"], people["invitee"])
        requests.append(ChargeRequest(id_, user_id, choose(None, 9, 7, 6, 5, 4), other_user_id))
    prices = {user: choose(None, None, 0, 1, 2) for user in (1, 2, 3, 4)}
    coupons = {user: choose(2, None, 0, 1, 3, 5) for user in (1, 2, 3, 4)}
    return World(
        payer,
        default_price,
        appointments,
        {user: price for user, price in prices.items() if price is not None},
        {user: count for user, count in coupons.items() if count is not None},
        requests,
    )


def rows_of(world: World) -> dict[int, AppointmentRow]:
    return {
        id_: AppointmentRow(
            id_,
            each["inviter"],
            each["invitee"],
            each["status"],
            each["consumed"],
            each["fence"],
            world.prices.get(each["inviter"]),
            world.prices.get(each["invitee"]),
        )
        for id_, each in world.appointments.items()
    }


def payers_as_locked(world: World) -> set[int]:
    """Whose coupons the locking statement reads: participants who ask for what is open and not consumed."""
    return {
        request.user_id
        for request in world.requests
        if (each := world.appointments.get(request.appointment_id)) is not None
        and each["status"] == OPEN
        and not each["consumed"]
        and request.user_id in (each["inviter"], each["invitee"])
    }


def charges_of(world: World) -> dict[int, ChargeRecord]:
    return {
        id_: ChargeRecord(id_ * 100, each["inviter"], 1, 1, 1, CHARGED_AT)
        for id_, each in world.appointments.items()
        if each["charge"] is not None
    }


def as_told(verdict: LetIn | Refusal) -> tuple[object, ...]:
    """The product's verdict in the oracle's words."""
    match verdict:
        case LetIn(Outcome.CHARGED, NewCharge() as charge):
            return ("charged", charge_as_told(charge))
        case LetIn(Outcome.ALREADY_CHARGED, NewCharge() as charge):
            return ("repeat", charge_as_told(charge))
        case LetIn(Outcome.ALREADY_CHARGED, ChargeRecord() as charge):
            return ("repeat", ("earlier", charge.id // 100))
        case LetIn(Outcome.ALREADY_CHARGED, None):
            return ("repeat", None)
        case LetIn(Outcome.FREE, None):
            return ("free",)
        case InsufficientCoupons():
            assert verdict.coupon_id == 1
            return ("poor", verdict.required, verdict.available)
        case AppointmentNotOpen():
            return ("not open", int(verdict.status))
        case StaleHolder():
            return ("stale",)
        case IllegalRequest():
            return ("illegal",)
    raise AssertionError(verdict)


def charge_as_told(charge: NewCharge) -> tuple[object, ...]:
    return (charge.appointment_id, charge.payer_id, charge.other_user_id, charge.count, charge.lock_fence)


@given(st.binary(min_size=62, max_size=62).map(world_spelt))
@settings(max_examples=10_000, deadline=None)
def test_a_batch_is_decided_as_if_its_requests_came_one_by_one(world: World) -> None:
    rules = Rules(Payer(world.payer), world.default_price)
    appointments, charges = rows_of(world), charges_of(world)

    due = payers_as_locked(world)
    # Only the coupons of those who may have to pay are locked and read: decide must not need any others.
    balances = {user: count for user, count in world.coupons.items() if user in due}
    decisions = decide(LockedRows(appointments, balances, charges), world.requests, rules)

    outcomes, coupons_left, new_charges = told_one_by_one(world)
    assert [as_told(verdict) for verdict in decisions.verdicts] == outcomes
    assert {id_: charge_as_told(charge) for id_, charge in decisions.new_charges.items()} == new_charges
    left = {user: count - decisions.spent.get(user, 0) for user, count in world.coupons.items()}
    assert left == coupons_left
    assert min(left.values(), default=0) >= 0
    assert set(decisions.spent) <= due
    for payer in {*decisions.spent, *(charge.payer_id for charge in decisions.new_charges.values())}:
        paid = [charge.count for charge in decisions.new_charges.values() if charge.payer_id == payer]
        assert decisions.spent[payer] == sum(paid) > 0

    # Without those who are refused, everybody else gets the same.
    let_in = [verdict for verdict in decisions.verdicts if isinstance(verdict, LetIn)]
    welcome = [
        request
        for request, verdict in zip(world.requests, decisions.verdicts, strict=True)
        if isinstance(verdict, LetIn)
    ]
    alone = decide(LockedRows(appointments, balances, charges), welcome, rules)
    assert (alone.verdicts, alone.new_charges, alone.spent) == (let_in, decisions.new_charges, decisions.spent)


# Helpers


def row(
    id_: int,
    *,
    status: int = OPEN,
    is_consume: bool = False,
    lock_fence: int | None = None,
    price_of_inviter: int | None = None,
    price_of_invitee: int | None = None,
) -> AppointmentRow:
    return AppointmentRow(id_, INVITER, INVITEE, status, is_consume, lock_fence, price_of_inviter, price_of_invitee)


def judged(
    requests: list[ChargeRequest],
    *,
    balances: dict[int, int],
    rules: Rules | None = None,
    status: int = OPEN,
    is_consume: bool = False,
    lock_fence: int | None = None,
) -> list[LetIn | Refusal]:
    """The verdicts on requests for appointment 7 of INVITER and INVITEE, at a price of 1."""
    rows = {7: row(7, status=status, is_consume=is_consume, lock_fence=lock_fence)}
    return decide(LockedRows(rows, balances, {}), requests, rules or Rules(Payer.ENTRANT, 1)).verdicts
