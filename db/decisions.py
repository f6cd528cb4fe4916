"""Who pays, who enters, who is refused: pure functions over locked rows, thousands of cases a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from db.records import ChargeRecord
from db.tables import CHAMPAGNE, AppointmentStatus


class Payer(StrEnum):
    """Who pays for a meeting."""

    ENTRANT = "entrant"  # whoever enters first
    INVITER = "inviter"  # only the inviter's entry charges; the invitee enters free


class Outcome(StrEnum):
    """What became of an entry that was let in."""

    CHARGED = "charged"
    ALREADY_CHARGED = "already_charged"
    FREE = "free"


class Refusal(Exception):
    """The entry is refused, nothing is written for it, and nobody else in its batch is affected."""


class IllegalRequest(Refusal):
    """The caller is no participant, named another partner, or there is no such appointment: one answer for all."""


class AppointmentNotOpen(Refusal):
    """The appointment has ended or was cancelled."""

    def __init__(self, status: AppointmentStatus) -> None:
        super().__init__(f"the appointment is {status.name.lower()}")
        self.status = status


class InsufficientCoupons(Refusal):
    """The payer has fewer coupons than the meeting costs."""

    def __init__(self, *, required: int, available: int, coupon_id: int) -> None:
        super().__init__(f"the meeting costs {required} of coupon {coupon_id}, and {available} are there")
        self.required = required
        self.available = available
        self.coupon_id = coupon_id


class StaleHolder(Refusal):
    """A later holder of the lock has written to this row already: this one's lease is over."""


class ChargeRequest(NamedTuple):
    """One entry. `fencing_token` is None where it comes without a lease: then the row lock alone decides."""

    appointment_id: int
    user_id: int
    fencing_token: int | None = None
    other_user_id: int | None = None


class AppointmentRow(NamedTuple):
    """A locked row of appointment_info, with what meeting each of its two people costs (None: the default price)."""

    id: int
    user_id: int
    invitee_user_id: int
    status: int
    is_consume: bool
    lock_fence: int | None
    price_of_inviter: int | None
    price_of_invitee: int | None

    def partner_of(self, user_id: int) -> int | None:
        """The other participant; None for somebody who is none."""
        return _partner(user_id, self.user_id, self.invitee_user_id)


class Participants(NamedTuple):
    """The two people of an appointment, who never change."""

    user_id: int
    invitee_user_id: int

    def allow(self, request: ChargeRequest) -> bool:
        """Whether the caller is one of them, and names nobody but the other one."""
        partner = _partner(request.user_id, self.user_id, self.invitee_user_id)
        return partner is not None and request.other_user_id in (None, partner)


class LockedRows(NamedTuple):
    """What the transaction holds. `charges`: of the appointments consumed before; `balances`: coupons by payer."""

    appointments: Mapping[int, AppointmentRow]
    balances: Mapping[int, int]
    charges: Mapping[int, ChargeRecord]


@dataclass(slots=True)  # not frozen: that costs a microsecond each
class NewCharge:
    """A row of user_consume that is to be written."""

    appointment_id: int
    payer_id: int
    other_user_id: int
    count: int
    lock_fence: int | None


class LetIn(NamedTuple):
    """An entry that gets its ENTER row. `charge` is the new one, the earlier one, or None when it is free."""

    outcome: Outcome
    charge: NewCharge | ChargeRecord | None


@dataclass(slots=True)
class Decisions:
    """One verdict a request, in their order, and what is to be written."""

    verdicts: list[LetIn | Refusal] = field(default_factory=list)
    new_charges: dict[int, NewCharge] = field(default_factory=dict)
    spent: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator chose."""

    payer: Payer
    default_price: int


def decide(rows: LockedRows, requests: Sequence[ChargeRequest], rules: Rules) -> Decisions:
    """Judges the requests in their order, each as if those before it were done already."""
    decisions = Decisions()
    for request in requests:
        decisions.verdicts.append(_judge(request, rows, decisions, rules))
    return decisions


def _judge(request: ChargeRequest, rows: LockedRows, decisions: Decisions, rules: Rules) -> LetIn | Refusal:
    row = rows.appointments.get(request.appointment_id)
    partner = row.partner_of(request.user_id) if row else None
    if row is None or partner is None or request.other_user_id not in (None, partner):
        return IllegalRequest()
    new_charge = decisions.new_charges.get(row.id)
    if _is_stale(request.fencing_token, new_charge.lock_fence if new_charge else row.lock_fence):
        return StaleHolder()
    if row.status != AppointmentStatus.OPEN:
        return AppointmentNotOpen(AppointmentStatus(row.status))
    if new_charge is not None:
        return LetIn(Outcome.ALREADY_CHARGED, new_charge)
    if row.is_consume:
        return LetIn(Outcome.ALREADY_CHARGED, rows.charges.get(row.id))
    price = _price(row, request, rules)
    if price == 0:
        return LetIn(Outcome.FREE, None)
    spent = decisions.spent.get(request.user_id, 0)
    available = rows.balances.get(request.user_id, 0) - spent
    if available < price:
        return InsufficientCoupons(required=price, available=available, coupon_id=CHAMPAGNE)
    new_charge = NewCharge(row.id, request.user_id, partner, price, request.fencing_token)
    decisions.new_charges[row.id] = new_charge
    decisions.spent[request.user_id] = spent + price
    return LetIn(Outcome.CHARGED, new_charge)


def _partner(user_id: int, inviter_id: int, invitee_id: int) -> int | None:
    if user_id == inviter_id:
        return invitee_id
    return inviter_id if user_id == invitee_id else None


def _price(row: AppointmentRow, request: ChargeRequest, rules: Rules) -> int:
    """What this entry would cost: the price of meeting the other one; 0 for somebody who enters free."""
    enters_as_inviter = request.user_id == row.user_id
    if rules.payer is Payer.INVITER and not enters_as_inviter:
        return 0
    price = row.price_of_invitee if enters_as_inviter else row.price_of_inviter
    return rules.default_price if price is None else price


def _is_stale(token: int | None, fence: int | None) -> bool:
    return token is not None and fence is not None and token < fence
