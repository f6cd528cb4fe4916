"""Hand-written histories of who came first, and who got the lock. The lease is 600 ms; times are in ms."""

from __future__ import annotations

from typing import Any

from tests.chaos.checks.cases import Case
from tests.chaos.checks.cases_exact import JOB, exact, stands_still
from tests.chaos.checks.cases_locks import IDLE, ORDER
from tests.chaos.checks.histories import HandWritten

FIRST_MS = 3000.0  # what is amiss before is over by then


def line(*turns: tuple[str, float, float], facts: dict[str, Any] | None = None) -> HandWritten:
    """Process, when it came, when it had the lock, of each; p9 has it before them. `facts`: of who comes second."""
    history = exact().leased("p9", JOB, 1000, from_ms=FIRST_MS - 90, to_ms=FIRST_MS + 50, until_ms=FIRST_MS + 500)
    for place, (i, came_ms, got_ms) in enumerate(sorted(turns, key=lambda turn: turn[2])):
        more = facts if facts and i == turns[1][0] else {}
        history.point("waiting", i, at_ms=FIRST_MS + came_ms, name=JOB, **more)
        got = {"queued": True, "waited_s": (got_ms - came_ms) / 1000, **more}
        at_ms = FIRST_MS + got_ms
        history.leased(i, JOB, 2000 + 1000 * place, from_ms=at_ms, to_ms=at_ms + 1, until_ms=at_ms + 590, **got)
    return history


def overtaken(second_ms: float = 10, **more: Any) -> HandWritten:
    """p0 comes at 0 and has it at 54, p1 comes at second_ms and has it at 51."""
    return line(("p0", 0, 54), ("p1", second_ms, 51), **more)


def run_beside(turns: int) -> HandWritten:
    """p0 comes first, somebody leaves the line, and so many turns of p1 go before it."""
    many = [("p1", 20 + place / 10, 51 + 2 * place) for place in range(turns)]
    return (
        line(("p0", 0, 51 + 2 * turns), *many)
        .point("gave_up", "p1", at_ms=FIRST_MS + 49, name=JOB, outcome="cancelled", queued=True, waited_s=0.03)
        .point("waiting", "p1", at_ms=FIRST_MS + 19, name=JOB)
    )


ORDER_CASES = (
    Case("in the order of coming", line(("p0", 0, 51), ("p1", 10, 54))),
    Case("out of the order of coming", overtaken(), {ORDER}),
    Case("out of order, within the slack", overtaken(second_ms=9)),
    Case("overtaken by one who came anew", overtaken(facts={"retry": True})),
    Case("overtaken by one who does not wait", overtaken(facts={"wait_s": 0})),
    Case("out of order, and it stood still", stands_still(overtaken(), "p0", from_ms=FIRST_MS + 1, to_ms=FIRST_MS + 9)),
    Case(
        "out of order, and another stood still long ago", stands_still(overtaken(), "p0", from_ms=1, to_ms=9), {ORDER}
    ),
    Case("overtaken in another line", overtaken().point("gave_up", "p3", at_ms=FIRST_MS + 20, name="n:1"), {ORDER}),
    Case(
        "out of order, and its connection was cut",
        overtaken().fault(1, "cut", "link:p0:redis", from_ms=FIRST_MS + 1, to_ms=FIRST_MS + 9, forgets=False),
    ),
    Case(
        "out of order, and the server paused",
        overtaken().fault(1, "pause", "redis", from_ms=FIRST_MS + 1, to_ms=FIRST_MS + 9, forgets=False),
    ),
    Case(
        "out of order, and the server paused thereafter",
        overtaken().fault(1, "pause", "redis", from_ms=FIRST_MS + 52, to_ms=FIRST_MS + 59, forgets=False),
        {ORDER},
    ),
    Case("as many turns of a run as there may be", run_beside(16)),
    Case("more turns than a run has", run_beside(17), {ORDER}),
    Case(
        "more turns than a run has, and it was cut off",
        run_beside(17).fault(1, "cut", "link:p0:redis", from_ms=FIRST_MS + 1, to_ms=FIRST_MS + 9, forgets=False),
    ),
    Case(
        "more turns than a run has, and another was cut off",
        run_beside(17).fault(1, "cut", "link:p1:redis", from_ms=FIRST_MS + 1, to_ms=FIRST_MS + 9, forgets=False),
        {ORDER},
    ),
    Case("more turns than a run has, and it stood still", stands_still(run_beside(17), "p0", from_ms=3001, to_ms=3009)),
    Case(
        "more turns than a run has, and the server paused",
        run_beside(17).fault(1, "pause", "redis", from_ms=FIRST_MS + 1, to_ms=FIRST_MS + 9, forgets=False),
    ),
    Case(
        "never had it, and one who came later has",
        line(("p1", 20, 54)).point("waiting", "p0", at_ms=FIRST_MS, name=JOB),
        {ORDER, IDLE},
    ),
    Case(
        "left before one who came later had it",
        line(("p1", 20, 54))
        .point("waiting", "p0", at_ms=FIRST_MS, name=JOB)
        .point("gave_up", "p0", at_ms=FIRST_MS + 53, name=JOB, outcome="busy", queued=True, waited_s=0.053),
    ),
    Case(
        "a newcomer who did not wait at all",
        line(("p0", 0, 54)).leased(
            "p1", JOB, 1500, from_ms=FIRST_MS + 51, to_ms=FIRST_MS + 52, until_ms=FIRST_MS + 600, waited_s=0.001
        ),
        {ORDER},
    ),
)
