"""Locks: those that are held or waited for now, and one of them from close by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from db.errors import DatabaseError
from db.row_locks import RowLocks, row_locks
from locks.contention import PastHold
from locks.inspection import LockView
from locks.keys import check_name
from locks.listing import ListedLock
from service.dashboard.asked import Asked
from service.dashboard.looking import Looking
from service.dashboard.views.incident_groups import grouped
from service.dashboard.views.kinds import rows_of
from service.entering import appointment_of
from service.models import MAX_ID
from service.refusals import InvalidRequest, Overloaded

PAGE_SIZE = 100
SORTS = {"waiters": "most waiters", "held": "held longest", "name": "name"}
SHOWN_HOLDS = 20
SHOWN_WAITERS = 100
SHOWN_INCIDENTS = 10  # when those that say the same are one
LOOKED_AT_INCIDENTS = 200
# Pages are cut by what instances have told; each lock is then looked at, so a page is put in order again.
_ORDERS: Mapping[str, Callable[[ListedLock], Any]] = {
    "waiters": lambda lock: (-lock.waiters, lock.name),
    "held": lambda lock: (-(lock.held_s or 0.0), lock.name),
    "name": lambda lock: lock.name,
}
STRIP_WIDTH = 1000.0
THINNEST_BAR = 2.0


async def locks(looking: Looking, asked: Asked) -> Mapping[str, Any]:
    """A page of the locks."""
    sort, search = asked.choice("sort", SORTS), asked.text("search")
    cursor = asked.text("cursor", max_length=1000) or None
    try:
        page = await looking.lists.page(
            sort=sort,  # type: ignore[arg-type]
            limit=PAGE_SIZE,
            cursor=cursor,
            search=search,
            caller=asked.caller,
        )
    except ValueError as error:
        raise InvalidRequest("cursor", str(error)) from error
    return {
        "page": page,
        "locks": sorted(page.locks, key=_ORDERS[sort]),
        "sort": sort,
        "sorts": SORTS,
        "search": search,
        "cursor": cursor,
        "export": {"sort": sort, "search": search},
    }


async def one_lock(looking: Looking, asked: Asked) -> Mapping[str, Any]:
    """Its holder, its waiters in order, its last holders, and who waits for its row in Postgres."""
    name = lock_name_of(asked)
    view = await looking.locker.inspect(name)
    holds = (await looking.contention.holds_of(name))[:SHOWN_HOLDS]
    incidents = await looking.contention.incidents(name=name, limit=LOOKED_AT_INCIDENTS)
    appointment_id = appointment_of_lock(name)
    return {
        "title": name,
        "name": name,
        "lock": view,
        "waiters": view.waiters[:SHOWN_WAITERS] if view else [],
        "unshown_waiters": max(0, view.waiter_count - SHOWN_WAITERS) if view else 0,
        "holds": holds,
        "strip": strip_of(holds, view, now_s=asked.now_s),
        "incidents": grouped(rows_of(incidents, now_s=asked.now_s))[:SHOWN_INCIDENTS],
        "appointment_id": appointment_id,
        "row_locks": None
        if appointment_id is None
        else await row_locks_of(looking, appointment_id, caller=asked.caller),
        "may_force": asked.session.may_force,
        "now_s": asked.now_s,
        "done": asked.choice("done", ("", "released")),
    }


def appointment_of_lock(name: str) -> int | None:
    """The appointment that a lock is for, if there can be such a one."""
    appointment_id = appointment_of(name)
    return appointment_id if appointment_id is not None and 1 <= appointment_id <= MAX_ID else None


def lock_name_of(asked: Asked) -> str:
    """The lock whose page it is. Raises InvalidRequest."""
    name = asked.values.get("name", "")
    try:
        check_name(name)
    except ValueError as error:
        raise InvalidRequest("name", str(error)) from error
    return name


@dataclass(frozen=True, slots=True)
class Bar:
    """One hold on its instance's lane, from 0 to STRIP_WIDTH. `end` is "held" while it lasts."""

    x: float
    width: float
    tone: str
    words: str


@dataclass(frozen=True, slots=True)
class Strip:
    """The last holds over time, a lane for each instance."""

    from_s: float
    until_s: float
    lanes: Mapping[str, Sequence[Bar]]


def strip_of(holds: Sequence[PastHold], view: LockView | None, *, now_s: float) -> Strip | None:
    """The holds as bars; None where there are none."""
    current = view if view is not None and view.holder is not None and view.held_s is not None else None
    if not holds and current is None:
        return None
    began = [hold.began_at for hold in holds]
    ends = [hold.began_at + hold.held_s for hold in holds]
    if current is not None:
        assert current.held_s is not None
        began.append(now_s - current.held_s)
        ends.append(now_s)
    from_s, until_s = min(began), max(*ends, min(began) + 0.001)
    scale = STRIP_WIDTH / (until_s - from_s)
    lanes: dict[str, list[Bar]] = defaultdict(list)

    def add(instance_id: str, began_at: float, held_s: float, tone: str, words: str) -> None:
        width = max(THINNEST_BAR, held_s * scale)
        x = min((began_at - from_s) * scale, STRIP_WIDTH - width)
        lanes[instance_id].append(Bar(round(x, 1), round(width, 1), tone, words))

    for hold in sorted(holds, key=lambda each: each.began_at):
        add(hold.instance_id, hold.began_at, hold.held_s, _tone(hold.end), hold.end)
    if current is not None and current.holder is not None and current.held_s is not None:
        add(current.holder.instance_id, now_s - current.held_s, current.held_s, "now", "held now")
    return Strip(from_s, until_s, dict(sorted(lanes.items())))


def _tone(end: str) -> str:
    return "calm" if end in ("released", "exported") else "bad"


async def row_locks_of(looking: Looking, appointment_id: int, *, caller: int) -> RowLocks | str:
    """What Postgres says, or why it says nothing: the lock itself is shown either way."""
    try:
        return await looking.reading.run(lambda database: row_locks(database, appointment_id), caller=caller)
    except (DatabaseError, Overloaded) as error:
        return str(error) or "Postgres did not answer"
