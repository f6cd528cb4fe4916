"""Hand-written histories of what callers are told, when, and of how much is asked for it. The lease is 600 ms."""

from __future__ import annotations

from typing import Any

from tests.chaos.checks.cases import Case
from tests.chaos.checks.cases_exact import FLUSH, JOB, exact, set_back, stands_still
from tests.chaos.checks.cases_locks import ASKED, BUSY, LOSSES, OUTAGES
from tests.chaos.checks.histories import MS, HandWritten


def told(reason: str, *, lost_ms: float = 300, **fault: Any) -> HandWritten:
    """p0 has the lock from 10 on, under a lease that ends at 603, and is told that it is lost."""
    facts: dict[str, Any] = {"name": JOB, "fence": 5, "until": 603 * MS}
    history = exact().point("acquired", "p0", at_ms=10, queued=False, waited_s=0.001, **facts)
    history.point("lost", "p0", at_ms=lost_ms, reason=reason, **facts)
    return history.fault(1, **{**FLUSH, **fault}) if fault else history


def forced(reason: str, *, at_ms: float = 299.5, fence: int = 5, **fault: Any) -> HandWritten:
    """The same, and a lease was ended by force."""
    return told(reason, **fault).point("forced", "p2", at_ms=at_ms, name=JOB, fence=fence)


def lent(left_ms: float, fence: int = 5, lent_ms: float = 10) -> HandWritten:
    """Whoever has lent a lease with token 5 is told at 300 that one is lost, of which so much is left."""
    facts: dict[str, Any] = {"name": JOB, "fence": 5, "until": 603 * MS, "outside": True}
    history = (
        exact().point("adopted", "c1", at_ms=lent_ms, **facts).point("releasing", "c1", at_ms=500, name=JOB, fence=5)
    )
    return history.point("keeper_lost", "p0", at_ms=300, name=JOB, fence=fence, left_ms=left_ms)


def busy(
    *, since_ms: float = 0, to_ms: float = 5000, name: str = JOB, asked_ms: float = 2000, outcome: str = "LockBusy"
) -> HandWritten:
    """p1 is told at 2050 that a lock is busy, which was free for a while."""
    history = exact().event("free", at_ms=to_ms, name=name, since=round(since_ms * MS))
    history.point("invoked", "p1", at_ms=asked_ms, name=JOB, ask=1, wait_s=0)
    facts: dict[str, Any] = {"outcome": outcome, "waited_s": (2050 - asked_ms) / 1000}
    return history.point("answered", "p1", at_ms=2050, name=JOB, ask=1, **facts)


def in_line(*, since_ms: float, from_ms: float = 1990, to_ms: float = 2060, i: str = "p1") -> HandWritten:
    """The same, and another caller stood in line for a while."""
    facts: dict[str, Any] = {"outcome": "cancelled", "queued": True, "waited_s": (to_ms - from_ms) / 1000}
    history = busy(since_ms=since_ms).point("waiting", i, at_ms=from_ms, name=JOB)
    return history.point("gave_up", i, at_ms=to_ms, name=JOB, **facts)


def outage(
    answered_ms: float | None, *, up_ms: float | None = None, i: str = "p1", lost: str = "store_lost"
) -> HandWritten:
    """p1 asks at 50, and is answered then (None: never); it has no connection from 100 on."""
    history = exact().point(lost, i, at_ms=100)
    if up_ms is not None:
        history.point("store_up", i, at_ms=up_ms)
    history.point("invoked", "p1", at_ms=50, name=JOB, ask=1, wait_s=None)
    if answered_ms is None:
        return history
    facts: dict[str, Any] = {"outcome": "LockStoreDown", "waited_s": (answered_ms - 50) / 1000}
    return history.point("answered", "p1", at_ms=answered_ms, name=JOB, ask=1, **facts)


def born(answered_ms: float) -> HandWritten:
    """p1 is born at 40, asks at 50, and never has a connection."""
    return outage(answered_ms, lost="store_up", i="p2").event("born", at_ms=40, i="p1", life=1)


def dies(at_ms: float, kind: str = "died") -> HandWritten:
    """p1 is never answered, and dies."""
    return outage(None).event(kind, at_ms=at_ms, i="p1", life=1, held=[])


def asked(commands: int, connections: int = 0, *, happened_ms: tuple[float, ...] = ()) -> HandWritten:
    """p0 has sent so many commands in the second from 1000 on, and made so many connections."""
    history = exact().event("asked", at_ms=1000, i="p0", commands=commands, connections=connections)
    for at_ms in happened_ms:
        history.point("store_up", "p1", at_ms=at_ms)
    return history


PAUSE: dict[str, Any] = {"kind": "pause", "forgets": False}

REASON_CASES = (
    Case("told that it is over, at the last moment of its slot", told("expired", lost_ms=598.97)),
    Case("told that it is over, before", told("expired", lost_ms=598.95), {LOSSES}),
    Case("told that the store is away, before it is over", told("unreachable"), {LOSSES}),
    Case("told of force", forced("forced")),
    Case("told of force that nobody used", told("forced"), {LOSSES}),
    Case("told of force that ended another lease", forced("forced", fence=6), {LOSSES}),
    Case("told of force that was used before it had the lock", forced("forced", at_ms=5), {LOSSES}),
    Case("told that the key is gone, as the data is", told("deleted", **FLUSH)),
    Case("told that the key is gone, which it is not", told("deleted"), {LOSSES}),
    Case("told that the key is gone as its lease is over", told("deleted", lost_ms=598.97)),
    Case("told that another has it, since the data is gone", told("taken", **FLUSH)),
    Case("told that another has it, which nobody has", told("taken", **PAUSE), {LOSSES}),
    Case("told that the key is gone, which force has ended", forced("deleted"), {LOSSES}),
    Case("told that the key is gone, which force has ended while the store was away", forced("deleted", **PAUSE)),
    Case("told of the loss of what it has lent", lent(1.0)),
    Case("told of the loss of what it was about to lend, as that was over by its own clock", lent(500.0, fence=6)),
    Case("told of the loss of what it lends all the same", lent(500.0, lent_ms=301)),
    Case("told of the loss of what it has lent, and what is held", lent(1.1), {LOSSES}),
    Case("told of the loss of what it has lent, and the data is gone", lent(500.0).fault(1, **FLUSH)),
    Case(
        "told of the loss of what it has lent, and the data was gone long before",
        lent(500.0).fault(1, **{**FLUSH, "from_ms": -301, "to_ms": -301}),
        {LOSSES},
    ),
    Case(
        "told of the loss of what it has lent, and the store has paused",
        lent(500.0).fault(1, **{**FLUSH, **PAUSE}),
        {LOSSES},
    ),
    Case("told of the loss of what it has lent, and the clock was set back", set_back(lent(500.0), 299)),
)

BUSY_CASES = (
    Case("busy: it was free", busy(), {BUSY}),
    Case("busy: it was free from a moment after that on", busy(since_ms=2000.1)),
    Case("busy: it was free until a moment before", busy(to_ms=2049.9)),
    Case("busy: another lock was free", busy(name="n:1")),
    Case("busy: told that nobody knows", busy(outcome="LockStoreDown")),
    Case("busy: its process stood in line, and had heard a heartbeat ago", in_line(since_ms=1740.1)),
    Case("busy: its process stood in line, and had heard since", in_line(since_ms=1740), {BUSY}),
    Case("busy: its process stands in line only now", in_line(since_ms=1740.1, from_ms=2001), {BUSY}),
    Case("busy: its process stood in line before", in_line(since_ms=1740.1, to_ms=1999), {BUSY}),
    Case("busy: another process stood in line", in_line(since_ms=1740.1, i="p2"), {BUSY}),
    Case("busy: its process had it", busy().leased("p1", JOB, 5, from_ms=1500, to_ms=2000, until_ms=2100)),
    Case(
        "busy: its process had it before", busy().leased("p1", JOB, 5, from_ms=1500, to_ms=1999, until_ms=2100), {BUSY}
    ),
    Case(
        "busy: its process had it afterwards",
        busy().leased("p1", JOB, 5, from_ms=2051, to_ms=2060, until_ms=2600),
        {BUSY},
    ),
    Case(
        "busy: another process had given it back",
        busy(since_ms=1600).leased("p2", JOB, 5, from_ms=1500, to_ms=1600, until_ms=2100),
        {BUSY},
    ),
    Case("busy: the store has just lost its data", busy().fault(1, **{**FLUSH, "from_ms": 1200, "to_ms": 1200})),
    Case("busy: the store had lost its data", busy().fault(1, **{**FLUSH, "from_ms": 1199, "to_ms": 1199}), {BUSY}),
    Case("busy: the clock was set back just before", set_back(busy(), 1200)),
    Case("busy: the clock had been set back", set_back(busy(), 1199), {BUSY}),
    Case("busy: the store had paused", busy().fault(1, **{**FLUSH, **PAUSE, "to_ms": 1999}), {BUSY}),
)

OUTAGE_CASES = (
    Case("outage: told at the last moment", outage(610)),
    Case("outage: told too late", outage(610.1), {OUTAGES}),
    Case("outage: over before", outage(4000, up_ms=610)),
    Case("outage: over too late", outage(4000, up_ms=610.1), {OUTAGES}),
    Case("outage: two short ones", outage(1000, up_ms=500).point("store_lost", "p1", at_ms=510)),
    Case("outage: another process'", outage(4000, i="p2")),
    Case("outage: of one who asks for several", outage(600).point("invoked", "p1", at_ms=50, name=JOB)),
    Case("outage: it stood still", stands_still(outage(1300), "p1", from_ms=200, to_ms=890)),
    Case("outage: another stood still", stands_still(outage(1300), "p2", from_ms=200, to_ms=890), {OUTAGES}),
    Case("outage: it was suspended", stands_still(outage(1380), "p1", from_ms=200, to_ms=890, suspended=True)),
    Case("outage: it stood still as long", stands_still(outage(1380), "p1", from_ms=200, to_ms=890), {OUTAGES}),
    Case("outage: never told", outage(None), {OUTAGES}),
    Case("outage: died in time", dies(610)),
    Case("outage: died later", dies(611), {OUTAGES}),
    Case("outage: was being closed", dies(610, "closing")),
    Case("outage: since its birth, told in time", born(560)),
    Case("outage: since its birth, told too late", born(560.1), {OUTAGES}),
)

ASKED_CASES = (
    Case("asked: little", asked(100, 20)),
    Case("asked: one command more", asked(101), {ASKED}),
    Case("asked: one command more, for something that has happened", asked(101, happened_ms=(0.1,))),
    Case("asked: one command more, for something that is about to happen", asked(101, happened_ms=(2999,))),
    Case("asked: one command more, long after that", asked(101, happened_ms=(-1,)), {ASKED}),
    Case("asked: one command more, long before that", asked(101, happened_ms=(3000.1,)), {ASKED}),
    Case("asked: one connection more", asked(0, 21, happened_ms=(1500,)), {ASKED}),
)

ANSWER_CASES = (*REASON_CASES, *BUSY_CASES, *OUTAGE_CASES, *ASKED_CASES)
