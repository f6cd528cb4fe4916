"""A dead holder's lock is taken over in time: what was left of its lease, and 50 ms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.chaos.checks import promises
from tests.chaos.checks.causes import was_forced
from tests.chaos.checks.evidence import Event, Evidence
from tests.chaos.checks.holds import Hold
from tests.chaos.checks.quiet import (
    LINK_RECOVERED_NS,
    STORE,
    around_ns_of,
    concerned_of,
    is_disturbed,
    is_untold,
    newborn_of,
)
from tests.chaos.checks.spans import NO_SPANS
from tests.chaos.checks.verdict import Counts, Example, Verdict, found
from tests.chaos.checks.waits import Process, Waiting, waiting_of

GRACE_MS = 50.0
DELAYS = 6  # a look that comes a moment too early, another one, and the confirmation of what it got
HARNESS = "harness"  # whose loop has the proxies that instances reach their servers by


class Takeover(NamedTuple):
    """One lock of a dead holder, for which another instance waited, undisturbed. `excess_ms`: beyond the lease's rest.

    None where nobody took it over. `grace_ms`: of these it may take so many.
    """

    name: str
    died: int
    left_ms: float
    took_ms: float | None
    grace_ms: float

    @property
    def excess_ms(self) -> float | None:
        """How long after the end of the lease."""
        return None if self.took_ms is None else self.took_ms - self.left_ms


def takeover_in_time(evidence: Evidence) -> Verdict:
    """Where another instance waited, undisturbed, it had the lock within the rest of the dead one's lease + 50 ms."""
    takeovers, excluded = takeovers_of(evidence)
    late = [takeover for takeover in takeovers if takeover.excess_ms is None or takeover.excess_ms > takeover.grace_ms]
    excesses = sorted(takeover.excess_ms for takeover in takeovers if takeover.excess_ms is not None)
    counts: Counts = {f"excluded_{reason}": count for reason, count in sorted(excluded.items())}
    counts["takeovers"] = len(takeovers)
    if excesses:
        counts |= {
            "excess_ms_p50": _quantile(excesses, 0.5),
            "excess_ms_p99": _quantile(excesses, 0.99),
            "excess_ms_max": excesses[-1],
        }
    missing = None if takeovers else "nobody died holding a lock for which another instance waited undisturbed"
    return found(
        "takeover_in_time", [_example(it) for it in late], checked=len(takeovers), counts=counts, missing=missing
    )


def grace_ms_of(evidence: Evidence) -> float:
    """How long after the lease's end is in time: what the run was made with, for a machine that others use too."""
    grace_ms: float = evidence.run.get("takeover_grace_ms", GRACE_MS)
    return grace_ms + DELAYS * evidence.slack.delay_ns / 1e6


def _offered_ms(death: Event, evidence: Evidence) -> float:
    """Where the server was not told of the death, the lock is offered to those who wait in the dead process first."""
    return promises.GRACE_MS if is_untold(death, evidence) else 0.0


def takeovers_of(evidence: Evidence) -> tuple[list[Takeover], Counter[str]]:
    """The takeovers that count, and how many were left out, by reason."""
    waiting = waiting_of(evidence)
    takeovers, excluded = [], Counter[str]()
    for death in evidence.by_kind["died"]:
        for lock in death.get("held") or ():
            outcome = _takeover(death, lock, waiting, evidence)
            if isinstance(outcome, str):
                excluded[outcome] += 1
            else:
                takeovers.append(outcome)
    return takeovers, excluded


def _takeover(death: Event, lock: Event, waiting: Waiting, evidence: Evidence) -> Takeover | str:
    name, left_ms, died = lock["name"], lock.get("left_ms"), death["t"]
    if left_ms is None:
        return "rest_unknown"
    # Who stands in line some time before the lease is over: it need not have come before the death.
    waiters = waiting.at(name, died + round(left_ms * 1e6) - evidence.slack.settled_ns) - {(death["i"], death["life"])}
    if not waiters:
        return "no_other_instance_waits"
    grace_ms = grace_ms_of(evidence) + _offered_ms(death, evidence)
    due = died + round((left_ms + grace_ms) * 1e6)
    if evidence.slack.is_exact:
        reason = _amiss(lock, death, waiters, due, evidence)
    else:
        reason = _disturbed(waiters, died, due, evidence) or _held_up(death["i"], died, due, evidence)
    if reason is not None:
        return reason
    following = _following(evidence.holds_by_name.get(name, ()), lock.get("fence"), died)
    if following is None or following.began > due:
        if not waiting.at(name, due) & waiters:
            return "waiters_left"
        if due > evidence.last_t:
            return "history_ended"
    took_ms = None if following is None else (following.began - died) / 1e6
    return Takeover(name, died, left_ms, took_ms, grace_ms)


def _disturbed(waiters: set[Process], begin: int, end: int, evidence: Evidence) -> str | None:
    """Why the waiters could not take it in time; whoever stands first in line holds up the others."""
    if evidence.spans_of("redis").touch(begin, end):
        return "store_fault"
    if any(scope.startswith("clock:") and spans.touch(begin, end) for scope, spans in evidence.fault_spans.items()):
        return "clock_fault"
    if any(evidence.spans_of(f"link:{i}:redis").touch(begin, end) for i, _ in waiters):
        return "link_fault"
    if any(evidence.standstills_of(i).touch(begin, end) for i, _ in waiters):
        return "waiter_stood_still"
    if evidence.standstills_of(HARNESS).touch(begin, end):
        return "proxies_stood_still"
    deaths = evidence.by_kind["died"]
    if any((death["i"], death["life"]) in waiters and begin <= death["t"] <= end for death in deaths):
        return "waiter_died"
    return None


def _amiss(lock: Event, death: Event, waiters: set[Process], due: int, evidence: Evidence) -> str | None:
    """Why it could not be taken in time, where the history has everything that has to do with this lock.

    Until the lease's end the lock is the dead one's: only what is amiss from then on can hold up the others.
    """
    over = death["t"] + round(lock["left_ms"] * 1e6) - around_ns_of(evidence)
    if is_disturbed(evidence, STORE, over, due):
        return "store_fault"
    # What the dead one had asked for may be carried out later: its lease ends later too.
    if evidence.spans_of(f"link:{death['i']}:redis").touch(death["t"] - LINK_RECOVERED_NS, due):
        return "link_fault"
    # By force the lock goes to whoever is next, and that may be a waiter in the dead process, for its claim.
    if is_untold(death, evidence) and was_forced(lock["name"], lock.get("fence"), death["t"], due, evidence):
        return "ended_by_force"
    others = concerned_of(evidence)[lock["name"]] - {str(death["i"])}
    if any(is_disturbed(evidence, who, over, due) for who in others):
        return "another_disturbed"
    if all(newborn_of(evidence).get(str(who), NO_SPANS).touch(over, due) for who, _ in waiters):
        return "waiters_newborn"
    return "another_died" if any(_holds_up(end, others, over, due, evidence) for end in _ends_of(evidence)) else None


def _ends_of(evidence: Evidence) -> Iterator[Event]:
    yield from evidence.by_kind["died"]
    yield from evidence.by_kind["closing"]


def _holds_up(end: Event, others: set[str], over: int, due: int, evidence: Evidence) -> bool:
    """Whether this process may have got the lock in its last moment, or been offered it after that."""
    is_known = end["e"] == "died" and not is_untold(end, evidence)
    stands_until = end["t"] + (0 if is_known else promises.ALIVE_MS * promises.MS)
    return str(end["i"]) in others and end["t"] <= due and stands_until >= over


def _held_up(dead: int | str, died: int, due: int, evidence: Evidence) -> str | None:
    """Another instance under a fault may stand first in line though nobody knows: it has not heard that it waits."""
    begin = died - evidence.lease_ttl_ns
    scopes = (scope for scope in evidence.fault_spans if scope.startswith("instance:") and scope != f"instance:{dead}")
    return (
        "another_instance_under_a_fault"
        if any(evidence.spans_of(scope).touch(begin, due) for scope in scopes)
        else None
    )


def _following(holds: Sequence[Hold], fence: int | None, died: int) -> Hold | None:
    """The first hold after this one's: with a greater token, or where there is none, later than the death."""
    for hold in holds:
        if hold.began > died or (fence is not None and hold.fence is not None and hold.fence > fence):
            return hold
    return None


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


def _example(takeover: Takeover) -> Example:
    took = "by nobody" if takeover.took_ms is None else f"after {takeover.took_ms:.1f} ms"
    text = f"{takeover.name}: its holder died with {takeover.left_ms} ms left, and it was taken over {took}"
    return Example(text, takeover.died)
