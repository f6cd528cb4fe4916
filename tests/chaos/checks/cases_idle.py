"""Hand-written histories of locks that somebody waits for. The lease is 600 ms; times are in ms."""

from __future__ import annotations

from tests.chaos.checks.cases import Case
from tests.chaos.checks.cases_locks import IDLE, LOCK, held
from tests.chaos.checks.histories import HandWritten


def waited_for(*, got_ms: float | None, gave_up_ms: float = 4000) -> HandWritten:
    """Instance 1 lets go at 20, instance 2 waits and has it at `got_ms`; or gives up."""
    history = held((1, 5, 10, 20)).point("waiting", 2, at_ms=15, name=LOCK)
    if got_ms is None:
        history.point("gave_up", 2, at_ms=gave_up_ms, name=LOCK, outcome="busy", queued=True)
    else:
        history.point("acquired", 2, at_ms=got_ms, name=LOCK, fence=6, queued=True, waited_s=(got_ms - 15) / 1000)
        history.point("releasing", 2, at_ms=got_ms + 5, name=LOCK, fence=6)
    return history.event("end", at_ms=5000, why="time")


def program_dies(*, got_ms: float) -> HandWritten:
    """A python-redis-lock program dies at 20 holding the lock that instance 2 waits for."""
    end_ns = 1_010_000_000
    history = HandWritten().point("acquired", "sync-1", at_ms=10, name=LOCK, until=end_ns)
    history.point("waiting", 2, at_ms=15, name=LOCK)
    history.event("died", at_ms=20, i="sync-1", life=1, pid=9, held=[])
    history.point("acquired", 2, at_ms=got_ms, name=LOCK, fence=6, queued=True, waited_s=(got_ms - 15) / 1000)
    return history.point("releasing", 2, at_ms=got_ms + 5, name=LOCK, fence=6)


LOST_REPLY = ("lose_redis_reply", "link:1:redis")
IDLE_CASES = (
    Case("a lock that was free for half a lease", waited_for(got_ms=320)),
    Case("a lock that was free for longer", waited_for(got_ms=321), {IDLE}),
    Case("a lock that nobody ever got", waited_for(got_ms=None), {IDLE}),
    Case("whoever waited gave up soon", waited_for(got_ms=None, gave_up_ms=300)),
    Case(
        "two who waited, one after the other, neither of them for long",
        waited_for(got_ms=None, gave_up_ms=250)
        .point("waiting", 3, at_ms=240, name=LOCK)
        .point("gave_up", 3, at_ms=480, name=LOCK, outcome="busy", queued=True),
    ),
    Case("an answer was lost", waited_for(got_ms=440).fault(1, *LOST_REPLY, from_ms=12, to_ms=50)),
    Case(
        "an answer was lost some time ago", waited_for(got_ms=452).fault(1, *LOST_REPLY, from_ms=12, to_ms=50), {IDLE}
    ),
    Case(
        "an answer was lost that had to do with another lock",
        waited_for(got_ms=400).fault(1, "lose_redis_reply", "link:3:redis", from_ms=12, to_ms=390),
        {IDLE},
    ),
    Case(
        "an instance that was asked to enter is frozen",
        waited_for(got_ms=900).enter("a", 7, 1, at_ms=5, i=3).fault(1, "freeze", "instance:3", from_ms=12, to_ms=390),
    ),
    Case(
        "an instance that was asked to enter another appointment is frozen",
        waited_for(got_ms=900).enter("a", 8, 1, at_ms=5, i=3).fault(1, "freeze", "instance:3", from_ms=12, to_ms=890),
        {IDLE},
    ),
    Case(
        "the holder's database is out of reach",
        waited_for(got_ms=900).fault(1, "link_cut_database", "link:1:database", from_ms=12, to_ms=890),
        {IDLE},
    ),
    Case(
        "the store was emptied, and everybody asks anew",
        waited_for(got_ms=900).fault(1, "flush", "redis", from_ms=12, to_ms=30),
    ),
    Case(
        "the proxies stood still",
        waited_for(got_ms=700).event("stall", at_ms=400, i="harness", **{"from": 30_000_000, "to": 390_000_000}),
    ),
    Case(
        "the waiter stood still",
        waited_for(got_ms=700).event("stall", at_ms=90, i=2, **{"from": 30_000_000, "to": 90_000_000}),
    ),
    Case("a program died, and its lease runs out", program_dies(got_ms=1012)),
    Case("a program died, and its lease has run out long ago", program_dies(got_ms=1421), {IDLE}),
)
