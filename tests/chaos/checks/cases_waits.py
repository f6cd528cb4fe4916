"""Hand-written histories with exact times: locks that lie idle, and dead holders' locks. The lease is 600 ms.

Each excuse has a pair: a history that it excuses, and one that differs from it in that alone, and is broken.
"""

from __future__ import annotations

from typing import Any

from tests.chaos.checks.cases import Case
from tests.chaos.checks.cases_exact import JOB, stands_still
from tests.chaos.checks.cases_locks import IDLE, TAKEOVER
from tests.chaos.checks.histories import MS, HandWritten

# Everything before is over by then: what a fault or a birth may leave behind lasts for less.
AT = 20_000.0
LONG_MS = 40_000.0


def waits(history: HandWritten, *, got_ms: float | None, came_ms: float = 0, fence: int = 6) -> HandWritten:
    """p1 comes, and has the lock at got_ms, until the end; all after AT. None: it gives up at 3000."""
    history.point("waiting", "p1", at_ms=AT + came_ms, name=JOB)
    if got_ms is None:
        return history.point("gave_up", "p1", at_ms=AT + 3000, name=JOB, outcome="busy", queued=True, waited_s=3.0)
    got: dict[str, Any] = {"queued": True, "waited_s": (got_ms - came_ms) / 1000, "takeover": False}
    at_ms = AT + got_ms
    return history.leased("p1", JOB, fence, from_ms=at_ms, to_ms=at_ms + 5, until_ms=at_ms + 590, **got)


def released(got_ms: float | None, **run: Any) -> HandWritten:
    """p0 lets go at 10, and p1, which waits, has it at got_ms."""
    history = HandWritten(exact=True, **run).event("end", at_ms=AT + 4000, why="time")
    return waits(history.leased("p0", JOB, 5, from_ms=AT - 50, to_ms=AT + 10, until_ms=AT + 500), got_ms=got_ms)


def lapsed(got_ms: float) -> HandWritten:
    """p0's lease is over at 500 by its own clock, and p1 has the lock at got_ms."""
    history = HandWritten(exact=True).event("end", at_ms=AT + 4000, why="time")
    facts: dict[str, Any] = {"name": JOB, "fence": 5, "until": round((AT + 500) * MS)}
    history.point("acquired", "p0", at_ms=AT - 80, queued=False, waited_s=0.001, **facts)
    return waits(history.point("lost", "p0", at_ms=AT + 500, **facts), got_ms=got_ms)


def stopped(who: str, *, got_ms: float, to_ms: float = 100, **more: Any) -> HandWritten:
    """`who` stands still from 5 on, p2 has had the lock some time before, and p1 has it at got_ms."""
    history = released(got_ms).leased("p2", JOB, 4, from_ms=AT - 99, to_ms=AT - 90, until_ms=AT + 400)
    return stands_still(history, who, from_ms=AT + 5, to_ms=AT + to_ms, **more)


def fault(history: HandWritten, scope: str, *, from_ms: float = 5, to_ms: float = 50) -> HandWritten:
    """Something is amiss from 5 on, or another time."""
    return history.fault(1, "amiss", scope, from_ms=AT + from_ms, to_ms=AT + to_ms, forgets=False)


def knows(history: HandWritten, who: str) -> HandWritten:
    """This process has had to do with the lock."""
    return history.leased(who, JOB, 3, from_ms=AT - 99, to_ms=AT - 95, until_ms=AT + 400)


def ends(history: HandWritten, who: str, *, e: str = "died", at_ms: float = 5, **more: Any) -> HandWritten:
    """A process ends, which had nothing."""
    return history.event(e, at_ms=AT + at_ms, i=who, life=1, held=[], **more)


def clock_right(history: HandWritten, *, at_ms: float) -> HandWritten:
    """The store's clock is set back as the lock is released, and put right then."""
    fault(history, "clock:redis")
    return history.fault(3, "amiss", "clock:redis", from_ms=AT + at_ms, to_ms=AT + at_ms, forgets=True)


def lapsed_beside(*, died_ms: float) -> HandWritten:
    """A lease is over at 500, or up to 15 ms later; p2, which knows the lock, dies then, and p1 has it at 900."""
    return ends(knows(lapsed(900), "p2"), "p2", at_ms=died_ms)


def asked_and_died(*, got_ms: float) -> HandWritten:
    """p2 asks for the free lock, and dies at -200; p1 comes at 0."""
    history = HandWritten(exact=True).event("end", at_ms=AT + 4000, why="time")
    history.point("invoked", "p2", at_ms=AT - 201, name=JOB)
    return ends(waits(history, got_ms=got_ms), "p2", at_ms=-200)


def dies(*, took_ms: float | None, left_ms: float = 500, **death: Any) -> HandWritten:
    """p0 dies at 10, with so much left of its lease at the server; p1 has the lock so long after the death."""
    history = HandWritten(exact=True).event("end", at_ms=AT + 4000, why="time")
    facts: dict[str, Any] = {"name": JOB, "fence": 5, "until": round((AT + 500) * MS)}
    history.point("acquired", "p0", at_ms=AT - 80, queued=False, waited_s=0.001, **facts)
    lock = {"name": JOB, "fence": 5, "left_ms": left_ms, "waiters": 1}
    history.event("died", at_ms=AT + 10, i="p0", life=1, held=[lock], **death)
    return waits(history, got_ms=None if took_ms is None else 10 + took_ms)


def cut_before(i: str, kind: str, *, born_ms: float = AT - 9500) -> HandWritten:
    """p0 dies, born then, and the lock is had 300 ms later than that takes; a connection was cut long before."""
    history = dies(took_ms=856).event("born", at_ms=born_ms, i="p0", life=1)
    at_ms = AT - 9000
    return history.fault(1, kind, f"link:{i}:redis", from_ms=at_ms, to_ms=at_ms + 1000, forgets=False)


IDLE_CASES = (
    Case("exact: had as soon as it was free", released(11)),
    Case("exact: had at the last moment after a release", released(28)),
    Case("exact: had too late after a release", released(28.1), {IDLE}),
    Case("exact: had too late after a release, on a slow network", released(59.9, longest_delay_s=0.005)),
    Case(
        "exact: had too late after a release, on a network that is not so slow",
        released(60.1, longest_delay_s=0.005),
        {IDLE},
    ),
    Case("exact: never had", released(None), {IDLE}),
    Case("exact: a lease ended by itself", lapsed(622)),
    Case("exact: a lease ended by itself, and was not taken", lapsed(624), {IDLE}),
    Case(
        "exact: a lease ended as its holder went on, which then asked for more",
        stands_still(lapsed(1223), "p0", from_ms=AT + 100, to_ms=AT + 505),
    ),
    Case(
        "exact: a lease ended as its holder went on, and was not taken",
        stands_still(lapsed(1223.1), "p0", from_ms=AT + 100, to_ms=AT + 505),
        {IDLE},
    ),
    Case(
        "exact: a lease ended long before its holder went on",
        stands_still(lapsed(1223), "p0", from_ms=AT + 100, to_ms=AT + 516),
        {IDLE},
    ),
    Case(
        "exact: somebody left the line as it was free",
        released(118).point("gave_up", "p1", at_ms=AT + 12, name=JOB, outcome="busy", queued=False, waited_s=0.001),
    ),
    Case(
        "exact: somebody left the line as it was free, and nobody took it",
        released(118.1).point("gave_up", "p1", at_ms=AT + 12, name=JOB, outcome="busy", queued=False, waited_s=0.001),
        {IDLE},
    ),
    Case(
        "exact: somebody left another line",
        released(118).point("gave_up", "p1", at_ms=AT + 12, name="n:1", outcome="busy", queued=False, waited_s=0.001),
        {IDLE},
    ),
    Case("exact: the waiter stood still", stopped("p1", got_ms=508, to_ms=200)),
    Case("exact: the waiter went on, and did not take it", stopped("p1", got_ms=508.1, to_ms=200), {IDLE}),
    Case("exact: one who had had it stood still", stopped("p2", got_ms=400, to_ms=200)),
    Case("exact: one who has nothing to do with it stood still", stopped("p3", got_ms=400, to_ms=200), {IDLE}),
    Case("exact: one who stands still for very long holds up nobody", stopped("p2", got_ms=1722.1, to_ms=2900), {IDLE}),
    Case("exact: one who stands still for long", stopped("p2", got_ms=1722, to_ms=2900)),
    Case("exact: the waiter's connection was cut", fault(released(2867), "link:p1:redis")),
    Case("exact: the waiter's connection had been cut long ago", fault(released(2867.1), "link:p1:redis"), {IDLE}),
    Case(
        "exact: the waiter's connection was cut, and it stood still before it could find out",
        stands_still(fault(released(3057), "link:p1:redis"), "p1", from_ms=AT + 40, to_ms=AT + 240),
    ),
    Case(
        "exact: the waiter's connection had been cut long ago, though it stood still",
        stands_still(fault(released(3057.1), "link:p1:redis"), "p1", from_ms=AT + 40, to_ms=AT + 240),
        {IDLE},
    ),
    Case("exact: its connection to elsewhere was cut", fault(released(2000), "link:p1:database"), {IDLE}),
    Case("exact: the connection of one who knows it was cut", fault(knows(released(2000), "p2"), "link:p2:redis")),
    Case("exact: the connection of a stranger was cut", fault(released(2000), "link:p2:redis"), {IDLE}),
    Case("exact: the server had dropped what it tracks", fault(released(421), "tracking:redis", to_ms=305)),
    Case("exact: it had dropped that long ago", fault(released(422.1), "tracking:redis", to_ms=305), {IDLE}),
    Case("exact: the server paused", fault(released(2267), "redis")),
    Case("exact: the server had paused long ago", fault(released(2267.1), "redis"), {IDLE}),
    Case("exact: the server's clock was moved", fault(released(2976), "clock:redis")),
    Case(
        "exact: the server's clock was moved while somebody had it",
        fault(lapsed(1880), "clock:redis", from_ms=-1000, to_ms=-930),
    ),
    Case(
        "exact: the server's clock had been moved before anybody had it",
        fault(lapsed(1880), "clock:redis", from_ms=-2000, to_ms=-1600),
        {IDLE},
    ),
    Case("exact: the server's clock had been moved long ago", fault(released(2976.1), "clock:redis"), {IDLE}),
    Case(
        "exact: the server's clock was moved, a key dropped, and the clock put right",
        clock_right(released(3950), at_ms=3900).fault(2, "evict", "redis", from_ms=AT - 9000, to_ms=AT - 9000),
    ),
    Case(
        "exact: the server's clock was moved beside a python-redis-lock program, and put right",
        clock_right(released(3950), at_ms=3900)
        .point("acquired", "sync-1", at_ms=AT - 8000, name=JOB, until=round((AT - 7500) * MS))
        .point("releasing", "sync-1", at_ms=AT - 7900, name=JOB),
    ),
    Case("exact: the server's clock was moved, and put right", clock_right(released(3950), at_ms=3900), {IDLE}),
    Case("exact: one who knows it died as the lease may have been over", lapsed_beside(died_ms=505)),
    Case("exact: one who knows it died before the lease was over", lapsed_beside(died_ms=490), {IDLE}),
    Case("exact: one who knows it died", ends(knows(released(831), "p2"), "p2")),
    Case(
        "exact: one who knows it died, and somebody should have it by now",
        ends(knows(released(831.1), "p2"), "p2"),
        {IDLE},
    ),
    Case("exact: one who knows it died long before", ends(knows(released(831), "p2"), "p2", at_ms=-5), {IDLE}),
    Case(
        "exact: one who knows it died as the server did not hear", ends(knows(released(1722), "p2"), "p2", silent=True)
    ),
    Case(
        "exact: one who knows it died unheard, and somebody should have it by now",
        ends(knows(released(1722.1), "p2"), "p2", silent=True),
        {IDLE},
    ),
    Case(
        "exact: one who knows it died unheard long before",
        ends(knows(released(1722), "p2"), "p2", silent=True, at_ms=-895),
        {IDLE},
    ),
    Case(
        "exact: one who had only asked died",
        ends(released(831).point("invoked", "p2", at_ms=AT + 4, name=JOB), "p2"),
    ),
    Case("exact: one who had only asked died before anybody waited", asked_and_died(got_ms=626)),
    Case(
        "exact: one who had only asked died, and somebody should have it by now", asked_and_died(got_ms=626.1), {IDLE}
    ),
    Case("exact: a stranger died", ends(released(831), "p2"), {IDLE}),
    Case("exact: one who knows it was closed", ends(knows(released(1722), "p2"), "p2", e="closing")),
    Case(
        "exact: the waiter has only just begun to live, and is there",
        released(1400).event("born", at_ms=AT + 1, i="p1", life=1).point("store_up", "p1", at_ms=AT + 2),
        {IDLE},
    ),
    Case("exact: the waiter has only just begun to live", released(1400).event("born", at_ms=AT + 1, i="p1", life=1)),
    Case(
        "exact: another has only just begun to live", released(1400).event("born", at_ms=AT + 1, i="p2", life=1), {IDLE}
    ),
    Case(
        "exact: a lease that was exported lies with nobody",
        waits(
            HandWritten(exact=True)
            .event("end", at_ms=AT + 4000, why="time")
            .point(
                "acquired",
                "p0",
                at_ms=AT - 80,
                name=JOB,
                fence=5,
                queued=False,
                waited_s=0.001,
                until=round((AT + 500) * MS),
            )
            .point("exported", "p0", at_ms=AT - 70, name=JOB, fence=5, until=round((AT + 500) * MS)),
            got_ms=600,
        ),
    ),
    Case(
        "exact: a lease that was exported is adopted and released",
        waits(
            HandWritten(exact=True)
            .event("end", at_ms=AT + 4000, why="time")
            .point(
                "acquired",
                "p0",
                at_ms=AT - 80,
                name=JOB,
                fence=5,
                queued=False,
                waited_s=0.001,
                until=round((AT + 500) * MS),
            )
            .point("exported", "p0", at_ms=AT - 70, name=JOB, fence=5, until=round((AT + 500) * MS))
            .point("adopted", "p2", at_ms=AT - 60, name=JOB, fence=5, until=round((AT + 500) * MS))
            .point("releasing", "p2", at_ms=AT - 50, name=JOB, fence=5, until=round((AT + 500) * MS)),
            got_ms=600,
        ),
        {IDLE},
    ),
    Case(
        "exact: a program's lock is let go, and programs go first",
        waits(
            HandWritten(exact=True)
            .event("end", at_ms=AT + 4000, why="time")
            .point("acquired", "sync-1", at_ms=AT - 80, name=JOB, until=round((AT + 500) * MS))
            .point("releasing", "sync-1", at_ms=AT + 10, name=JOB),
            got_ms=48,
        ),
    ),
    Case(
        "exact: a program's lock is let go, and nobody takes it",
        waits(
            HandWritten(exact=True)
            .event("end", at_ms=AT + 4000, why="time")
            .point("acquired", "sync-1", at_ms=AT - 80, name=JOB, until=round((AT + 500) * MS))
            .point("releasing", "sync-1", at_ms=AT + 10, name=JOB),
            got_ms=48.1,
        ),
        {IDLE},
    ),
)

TAKEOVER_CASES = (
    Case(
        "exact: the waiter had stood still before the lease's end",
        stands_still(dies(took_ms=590), "p1", from_ms=AT + 295, to_ms=AT + 300),
        {TAKEOVER},
    ),
    Case(
        "exact: one who knows it had died unheard",
        ends(knows(dies(took_ms=590), "p2"), "p2", at_ms=-398, silent=True),
    ),
    Case(
        "exact: one who knows it had died unheard long before",
        ends(knows(dies(took_ms=590), "p2"), "p2", at_ms=-400, silent=True),
        {TAKEOVER},
    ),
    Case("exact: taken over in time", dies(took_ms=510)),
    Case("exact: taken over at the last moment", dies(took_ms=556)),
    Case("exact: taken over too late", dies(took_ms=556.1), {TAKEOVER}),
    Case("exact: the server was not told of the death", dies(took_ms=856, silent=True)),
    Case("exact: nor of the end of a connection before", cut_before("p0", "half-open")),
    Case("exact: a connection before was reset", cut_before("p0", "reset"), {IDLE, TAKEOVER}),
    Case("exact: a connection of another was cut before", cut_before("p2", "half-open"), {IDLE, TAKEOVER}),
    Case(
        "exact: a connection was cut before it was born",
        cut_before("p0", "black-hole", born_ms=AT - 8000),
        {IDLE, TAKEOVER},
    ),
    Case(
        "exact: the server was not told of the death, and nobody took over",
        dies(took_ms=856.1, silent=True),
        {TAKEOVER},
    ),
    Case(
        "exact: the server was not told of the death, and passed the lock on by force",
        dies(took_ms=1041, silent=True).point("forced", "p2", at_ms=AT + 300, name=JOB, fence=5),
    ),
    Case(
        "exact: the server was not told of the death, and passed another lock on by force",
        dies(took_ms=1041, silent=True).point("forced", "p2", at_ms=AT + 300, name="n:1", fence=5),
        {TAKEOVER},
    ),
    Case(
        "exact: the lock of a dead one was passed on by force, and not taken",
        dies(took_ms=1041).point("forced", "p2", at_ms=AT + 300, name=JOB, fence=5),
        {TAKEOVER, IDLE},
    ),
    Case("exact: never taken over", dies(took_ms=None), {TAKEOVER, IDLE}),
    Case(
        "exact: the waiter stood still as the lease was about to end",
        stands_still(dies(took_ms=590), "p1", from_ms=AT + 295, to_ms=AT + 302),
    ),
    Case(
        "exact: a stranger stood still",
        stands_still(dies(took_ms=590), "p2", from_ms=AT + 295, to_ms=AT + 302),
        {TAKEOVER},
    ),
    Case(
        "exact: one who knows it stood still",
        stands_still(knows(dies(took_ms=590), "p2"), "p2", from_ms=AT + 295, to_ms=AT + 302),
    ),
    Case("exact: one who knows it died as well", ends(knows(dies(took_ms=590), "p2"), "p2", at_ms=502)),
    Case("exact: a stranger died as well", ends(dies(took_ms=590), "p2", at_ms=502), {TAKEOVER}),
    Case(
        "exact: one who knows it had died long before",
        ends(knows(dies(took_ms=590), "p2"), "p2", at_ms=500),
        {TAKEOVER},
    ),
    Case("exact: the server was away", fault(dies(took_ms=590), "redis")),
    Case("exact: the connection of the dead one had been cut", fault(dies(took_ms=590), "link:p0:redis", to_ms=6)),
    Case(
        "exact: the connection of a stranger had been cut",
        fault(dies(took_ms=590), "link:p2:redis", to_ms=6),
        {TAKEOVER},
    ),
)

WAIT_CASES = (*IDLE_CASES, *TAKEOVER_CASES)
