"""What must hold after every order: pure functions over the answers, the trace and the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .handler import Answer
from .stepper import Played

LET_IN = ("charged", "already_charged")
BEFORE_COMMIT = ("waiting", "acquired", "rows_locked", "decided", "committing")


class Charge(NamedTuple):
    """A row of user_consume."""

    id: int
    appointment_id: int
    payer_id: int
    price: int
    fence: int | None


class EntryRow(NamedTuple):
    """A row of appointment_action."""

    appointment_id: int
    user_id: int
    created_at: Any


@dataclass(slots=True)
class Tables:
    """What Postgres holds of one order's appointments and people. `marks`: is_consume and lock_fence by appointment."""

    charges: list[Charge] = field(default_factory=list)
    entries: list[EntryRow] = field(default_factory=list)
    marks: dict[int, tuple[bool, int | None]] = field(default_factory=dict)
    balances: dict[int, int] = field(default_factory=dict)


def judge(played: Played, tables: Tables) -> list[str]:
    """What is wrong, a sentence each; empty when everything holds."""
    if played.is_stuck:
        return ["nobody can go on: each waits for another"]
    answers = [answer for part in played.parts for answer in part.answers if not _is_victim(played, answer)]
    return [
        *[f"{name} is still locked, or waited for" for name in played.left_locked],
        *_charged_once(played, tables),
        *_balances(played, tables),
        *_answers(played, answers, tables),
        *_entries(played, answers, tables),
        *_fences(played, tables),
        *_lock_before_row(played),
    ]


def _is_victim(played: Played, answer: Answer) -> bool:
    return played.died_at is not None and played.case.crash is not None and answer.handler == played.case.crash.victim


def _charged_once(played: Played, tables: Tables) -> Iterator[str]:
    charges = Counter(charge.appointment_id for charge in tables.charges)
    for appointment_id, (is_consume, fence) in tables.marks.items():
        count = charges[appointment_id]
        if count > 1:
            yield f"appointment {appointment_id} is charged {count} times"
        if is_consume != (count > 0):
            yield f"appointment {appointment_id}: is_consume is {is_consume} with {count} charges"
        if count and fence not in [each.fence for each in tables.charges if each.appointment_id == appointment_id]:
            yield f"appointment {appointment_id}: its fence {fence} is not that of its charge"
    if len(charges) != played.cast.charges:
        yield f"{len(charges)} appointments are charged, and not {played.cast.charges}"


def _balances(played: Played, tables: Tables) -> Iterator[str]:
    for user_id, granted in played.cast.purses.items():
        spent = sum(charge.price for charge in tables.charges if charge.payer_id == user_id)
        left = tables.balances[user_id]
        if granted - spent != left or left < 0:
            yield f"user {user_id}: granted {granted}, spent {spent}, left {left}"


def _answers(played: Played, answers: Sequence[Answer], tables: Tables) -> Iterator[str]:
    charges = {charge.id: charge for charge in tables.charges}
    for answer in answers:
        if answer.outcome not in LET_IN:
            may_be_short = played.cast.purses.get(answer.ask.user_id, 0) < len(played.cast.appointments)
            if answer.outcome != "InsufficientCoupons" or not may_be_short:
                yield f"handler {answer.handler} was answered {answer.outcome}"
            continue
        charge = charges.get(answer.charge_id or 0)
        if charge is None or (charge.appointment_id, charge.payer_id) != (answer.ask.appointment_id, answer.payer_id):
            yield f"handler {answer.handler} was told of charge {answer.charge_id}, which is not there"
    told = Counter(answer.charge_id for answer in answers if answer.outcome == "charged")
    for charge in tables.charges:
        if told[charge.id] > 1 or (told[charge.id] == 0 and not _may_be_the_victims(played, charge)):
            yield f"charge {charge.id} was answered 'charged' {told[charge.id]} times"


def _may_be_the_victims(played: Played, charge: Charge) -> bool:
    if played.died_at is None or played.died_at in BEFORE_COMMIT or played.case.crash is None:
        return False
    asks = played.parts[played.case.crash.victim].asks
    return (charge.appointment_id, charge.payer_id) in asks


def _entries(played: Played, answers: Sequence[Answer], tables: Tables) -> Iterator[str]:
    rows = Counter(tables.entries)
    answered = Counter(
        EntryRow(answer.ask.appointment_id, answer.ask.user_id, answer.entered_at)
        for answer in answers
        if answer.outcome in LET_IN
    )
    for missing in (answered - rows).elements():
        yield f"user {missing.user_id} was let in, and the ENTER row is not there"
    more = list((rows - answered).elements())
    may_be_victims = 0
    if played.died_at is not None and played.died_at not in BEFORE_COMMIT and played.case.crash is not None:
        may_be_victims = len(played.parts[played.case.crash.victim].asks)
    if len(more) > may_be_victims:
        yield f"{len(more)} ENTER rows without an answer, and {may_be_victims} may be there"


def _fences(played: Played, tables: Tables) -> Iterator[str]:
    """Tokens rise; nobody is inside at the same time, where leases last; who comes with an old token writes nothing.

    Whoever finds the row held elsewhere enters an appointment that is charged without the lock, whatever its token.
    """
    fences = {charge.appointment_id: charge.fence for charge in tables.charges}
    last_token: dict[str, int] = {}
    inside: dict[str, int] = {}
    token_of: dict[int, int] = {}
    charged_before: dict[int, bool] = {}  # by handler that has locked its rows: whether somebody had charged
    is_charged = False
    for seen in played.trace:
        match seen.point:
            case "acquired":
                name, token = seen.event.name, seen.event.fencing_token
                if token <= last_token.get(name, 0):
                    yield f"the fencing token of {name} does not rise: {token} after {last_token[name]}"
                if played.case.guard == "lock" and name in inside:
                    yield f"handlers {inside[name]} and {seen.handler} hold {name} at the same time"
                last_token[name] = token_of[seen.handler] = token
                inside[name] = seen.handler
            case "releasing" | "lost":
                token_of.pop(seen.handler, None)
                if inside.get(seen.event.name) == seen.handler:
                    del inside[seen.event.name]
            case "died":
                for name in [name for name, holder in inside.items() if holder == seen.handler]:
                    del inside[name]
            case "rows_locked" if not seen.event.held_elsewhere:
                charged_before[seen.handler] = is_charged
            case "committed":
                ids, token = seen.event.appointment_ids, token_of.get(seen.handler)
                was_charged = charged_before.pop(seen.handler, False)
                writes_more = was_charged and bool(seen.event.entries)
                if writes_more and token is not None and any((fences.get(id_) or 0) > token for id_ in ids):
                    yield f"handler {seen.handler} has written with token {token} after a newer one"
                is_charged = is_charged or bool(seen.event.charges)


def _lock_before_row(played: Played) -> Iterator[str]:
    """Where leases last the crowd stands at the lock: whoever is inside finds the rows free."""
    if played.case.guard == "lock":
        for seen in played.trace:
            if seen.point == "rows_locked" and seen.event.held_elsewhere:
                yield f"handler {seen.handler} had the lock, and another one its row"
