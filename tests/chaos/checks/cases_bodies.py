"""Hand-written histories of bodies that went on after a loss, and of who waited for how long. The lease is 600 ms."""

from __future__ import annotations

from typing import Any

from tests.chaos.checks.cases import Case
from tests.chaos.checks.cases_exact import JOB, exact, loses, stands_still
from tests.chaos.checks.cases_locks import BODIES, FENCES, LOCK, LOSSES, PATIENCE, TOLD
from tests.chaos.checks.histories import MS, HandWritten

AT = 20_000.0  # when nothing can still be of what was before


def runs_on(to_ms: float | None, *, from_ms: float = 10.1, i: str = "p0", fence: int = 5) -> HandWritten:
    """p0 is told at 300 that its lease is lost; its body ends then. None: never."""
    history = loses("p0", 5, from_ms=10, until_ms=603, lost_ms=300)
    history.point("body_began", i, at_ms=from_ms, name=JOB, fence=fence)
    return history if to_ms is None else history.point("body_ended", i, at_ms=to_ms, name=JOB, fence=fence)


def limited(to_ms: float, *, max_hold_s: float | None = 0.3) -> HandWritten:
    """A body from 10 on that may hold its lock for 0.3 s."""
    history = exact().leased("p0", JOB, 5, from_ms=9.9, to_ms=to_ms + 0.1, until_ms=603)
    history.point("body_began", "p0", at_ms=10, name=JOB, fence=5, max_hold_s=max_hold_s)
    return history.point("body_ended", "p0", at_ms=to_ms, name=JOB, fence=5)


def released() -> HandWritten:
    """A body that goes on to 400, and then gives its lease back."""
    history = exact().leased("p0", JOB, 5, from_ms=10, to_ms=400, until_ms=603)
    history.point("body_began", "p0", at_ms=10.1, name=JOB, fence=5)
    return history.point("body_ended", "p0", at_ms=399, name=JOB, fence=5)


def waits(
    answered_ms: float | None,
    *,
    wait_s: float | None = 0.2,
    stood_ms: float | None = 11,
    outcome: str = "LockBusy",
    waited_s: float | None = None,
) -> HandWritten:
    """p1 asks at 10, and stands in line from 11 on (None: never), while p0 has the lock; answered at. None: never."""
    history = exact().leased("p0", JOB, 5, from_ms=5, to_ms=4990, until_ms=5580)
    history.point("invoked", "p1", at_ms=10, name=JOB, ask=1, wait_s=wait_s)
    if stood_ms is not None:
        history.point("waiting", "p1", at_ms=stood_ms, name=JOB, ask=1)
    if answered_ms is None:
        return history
    waited_s = (answered_ms - 10) / 1000 if waited_s is None else waited_s
    gave_up: dict[str, Any] = {"outcome": "busy", "queued": stood_ms is not None, "waited_s": waited_s}
    history.point("gave_up", "p1", at_ms=answered_ms - 0.01, name=JOB, **gave_up)
    return history.point("answered", "p1", at_ms=answered_ms, name=JOB, ask=1, outcome=outcome, waited_s=waited_s)


def kept(*, kept_s: float | None = 0.6, lost_ms: float = 900, **run: Any) -> HandWritten:
    """p0 is told at AT + lost_ms that the lease is lost under which a body has begun, and was to be kept."""
    history = HandWritten(exact=True, **run).event("end", at_ms=AT + 5000, why="time")
    facts: dict[str, Any] = {"name": JOB, "fence": 5, "until": round((AT + 1203) * MS)}
    history.point("acquired", "p0", at_ms=AT + 10, queued=False, waited_s=0.001, **facts)
    history.point("lost", "p0", at_ms=AT + lost_ms, **facts)
    history.point("body_began", "p0", at_ms=AT + 10.1, name=JOB, fence=5, kept_s=kept_s)
    return history.point("body_ended", "p0", at_ms=AT + lost_ms + 0.1, name=JOB, fence=5)


def amiss(scope: str, *, to_ms: float) -> HandWritten:
    """The same, and something was amiss until so many ms before."""
    return kept().fault(1, "amiss", scope, from_ms=AT - 9000, to_ms=AT + 900 - to_ms, forgets=False)


def forced(*, before_ms: float, name: str = JOB, fence: int = 5) -> HandWritten:
    """The same, and a lease was ended by force so many ms before."""
    return kept().point("forced", "p2", at_ms=AT + 900 - before_ms, name=name, fence=fence)


def ends(history: HandWritten, kind: str, at_ms: float, i: str = "p1") -> HandWritten:
    """A process dies, or is being closed."""
    return history.event(kind, at_ms=at_ms, i=i, life=1, held=[])


BODY_CASES = (
    Case("a body ends as it is told of the loss", runs_on(300)),
    Case("a body ends at the last moment", runs_on(302)),
    Case("a body goes on after the loss", runs_on(302.1), {BODIES}),
    Case("a body goes on for ever", runs_on(None), {BODIES}),
    Case("a body under another lease goes on", runs_on(400, fence=6)),
    Case("a body elsewhere goes on", runs_on(400, i="p1")),
    Case("a body goes on, and its process stands still", stands_still(runs_on(400), "p0", from_ms=301, to_ms=399.5)),
    Case(
        "a body goes on, and another process stands still",
        stands_still(runs_on(400), "p1", from_ms=301, to_ms=399.5),
        {BODIES},
    ),
    Case("a body whose process dies", ends(runs_on(None), "died", 301, "p0")),
    Case("a body whose process dies later", ends(runs_on(None), "died", 310, "p0"), {BODIES}),
    Case("a body whose process is being closed", ends(runs_on(None), "closing", 301, "p0")),
    Case("a body whose process is being closed later", ends(runs_on(None), "closing", 310, "p0"), {BODIES}),
    Case(
        "a body whose process is closed first, and dies later",
        ends(ends(runs_on(None), "closing", 301, "p0"), "died", 400, "p0"),
    ),
    Case("a body whose lease is given back", released()),
    Case("a body that begins under a lost lease", runs_on(400, from_ms=310), {BODIES}),
    Case("a body that begins under a lost lease, and ends at once", runs_on(311, from_ms=310)),
    Case(
        "a body that begins when the token has come again",
        runs_on(340, from_ms=320).leased("p0", JOB, 5, from_ms=310, to_ms=350, until_ms=900),
        {FENCES},
    ),
    Case(
        "a body that goes on when the token has come again: the loss may be the other's",
        runs_on(340).leased("p0", JOB, 5, from_ms=250, to_ms=350, until_ms=840),
        {FENCES, "holders_do_not_overlap", "overlaps_are_explained"},
    ),
    Case(
        "bodies and losses of a history that is not exact",
        HandWritten()
        .point("acquired", "p0", at_ms=10, name=JOB, fence=5)
        .point("body_began", "p0", at_ms=11, name=JOB, fence=5)
        .point("lost", "p0", at_ms=300, name=JOB, fence=5)
        .event("end", at_ms=5000, why="time"),
    ),
)

LIMIT_CASES = (
    Case("a body holds for as long as it may", limited(310)),
    Case("a body holds for as long as it may, by a clock that may be slow", limited(319)),
    Case("a body holds for longer than it may", limited(320.5), {BODIES}),
    Case("a body may hold for ever", limited(390, max_hold_s=None)),
    Case(
        "a body may hold for no longer, and its process stands still",
        stands_still(limited(390), "p0", from_ms=312, to_ms=389),
    ),
    Case(
        "a body may hold for no longer, and its machine was suspended",
        stands_still(limited(490), "p0", from_ms=200, to_ms=390, suspended=True),
    ),
    Case(
        "a body holds for longer than it may, and its process stood still before",
        stands_still(limited(490), "p0", from_ms=200, to_ms=390),
        {BODIES},
    ),
)

LOSS_CASES = (
    Case("a lease is lost, and nothing is the cause", kept(), {LOSSES}),
    Case("a lease is lost that is not kept for as long as its body lasts", kept(kept_s=None)),
    Case("a lease is lost that is shorter than an answer takes", kept(longest_delay_s=0.15)),
    Case("a lease is lost on a slow network that is not as slow as that", kept(longest_delay_s=0.149), {LOSSES}),
    Case("a claim is lost that is shorter than an answer takes", kept(lost_ms=710, longest_delay_s=0.059)),
    Case(
        "a claim is lost on a network that is not as slow as that", kept(lost_ms=710, longest_delay_s=0.058), {LOSSES}
    ),
    Case("a lease is lost that is a claim no more", kept(lost_ms=711, longest_delay_s=0.059), {LOSSES}),
    Case("a lease is lost, and the server has just paused", amiss("redis", to_ms=1900)),
    Case("a lease is lost, and the server had paused long ago", amiss("redis", to_ms=2001), {LOSSES}),
    Case("a lease is lost, and its process has just gone on", amiss("instance:p0", to_ms=799)),
    Case("a lease is lost, and its process had stood still long ago", amiss("instance:p0", to_ms=801), {LOSSES}),
    Case("a lease is lost, and another process has just gone on", amiss("instance:p1", to_ms=100), {LOSSES}),
    Case("a lease is lost, and somebody has ended it by force", forced(before_ms=1)),
    Case("a lease is lost, and an earlier turn of its run was ended by force", forced(before_ms=1, fence=4)),
    Case("a lease is lost, and a later one was ended by force", forced(before_ms=1, fence=6), {LOSSES}),
    Case("a lease is lost, and another lock's was ended by force", forced(before_ms=1, name="n:1"), {LOSSES}),
    Case("a lease is lost that was ended by force long before", forced(before_ms=601), {LOSSES, TOLD}),
    Case(
        "a lease is lost where the token has come again: the loss may be the other's",
        kept().leased("p0", JOB, 5, from_ms=AT + 250, to_ms=AT + 950, until_ms=AT + 1300),
        {FENCES, "holders_do_not_overlap", "overlaps_are_explained"},
    ),
)

PATIENCE_CASES = (
    Case("told that it is busy when the time is over", waits(210)),
    Case("told that it is busy at the last moment", waits(215)),
    Case("told too late that it is busy", waits(215.1), {PATIENCE}),
    Case("told too late that nobody knows", waits(400, outcome="LockStoreDown"), {PATIENCE}),
    Case("told before that nobody knows", waits(60, outcome="LockStoreDown")),
    Case("cancelled before", waits(60, outcome="CancelledError")),
    Case("told before that it is busy", waits(209), {PATIENCE}),
    Case("told that it is busy by a slow clock", waits(212, waited_s=0.2)),
    Case("told before that it is busy, by a slow clock", waits(211, waited_s=0.199), {PATIENCE}),
    Case("told too late, by a fast clock", waits(214, waited_s=0.2051), {PATIENCE}),
    Case("waits for ever, and is told", waits(4000, wait_s=None)),
    Case("does not wait, and is told", waits(60, wait_s=0, stood_ms=None)),
    Case("the first answer took longer", waits(300, stood_ms=296)),
    Case("told too late after the first answer", waits(301.1, stood_ms=296), {PATIENCE}),
    Case("never stood in line", waits(400, stood_ms=None)),
    Case("it stood still as its time was over", stands_still(waits(400), "p1", from_ms=100, to_ms=399)),
    Case(
        "it stood still as its time was over, by a fast clock",
        stands_still(waits(2400, waited_s=2.3998), "p1", from_ms=208, to_ms=2399),
    ),
    Case(
        "it stood still, and waited on, by a slow clock",
        stands_still(waits(2400, waited_s=2.3802), "p1", from_ms=200, to_ms=2383),
        {PATIENCE},
    ),
    Case("it stood still and then waited on", stands_still(waits(400), "p1", from_ms=100, to_ms=284.9), {PATIENCE}),
    Case(
        "another one stood still as its time was over",
        stands_still(waits(400), "p0", from_ms=300, to_ms=399),
        {PATIENCE},
    ),
    Case(
        "it stood still before it stood in line", stands_still(waits(400, stood_ms=390), "p1", from_ms=100, to_ms=389)
    ),
    Case(
        "its machine was suspended, so its time was over later",
        stands_still(waits(490), "p1", from_ms=200, to_ms=390, suspended=True),
    ),
    Case(
        "its machine was suspended, and it waited on",
        stands_still(waits(506), "p1", from_ms=200, to_ms=390, suspended=True),
        {PATIENCE},
    ),
    Case(
        "told too soon, though it stood still while it set its timer",
        stands_still(waits(180), "p1", from_ms=11, to_ms=41.5),
        {PATIENCE},
    ),
    Case("never answered", waits(None), {PATIENCE}),
    Case("never answered, and waits for ever", waits(None, wait_s=None)),
    Case("died in time", ends(waits(None), "died", 214)),
    Case("died in time by a clock that may be slow", ends(waits(None), "died", 216.5)),
    Case("died in line when its time was over", ends(waits(None), "died", 230), {PATIENCE}),
    Case("was being closed in time", ends(waits(None), "closing", 214)),
    Case(
        "waits for so long, in a history that is not exact",
        HandWritten()
        .hold(1, LOCK, 5, from_ms=5, to_ms=450)
        .point("invoked", 2, at_ms=10, name=LOCK, ask=1, wait_s=0.2)
        .point("waiting", 2, at_ms=11, name=LOCK, ask=1)
        .point("gave_up", 2, at_ms=400, name=LOCK, outcome="busy", queued=True, waited_s=0.39)
        .point("answered", 2, at_ms=400, name=LOCK, ask=1, outcome="LockBusy", waited_s=0.39)
        .event("end", at_ms=5000, why="time"),
    ),
)
