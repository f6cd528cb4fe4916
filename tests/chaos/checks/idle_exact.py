"""How long a lock lay idle where the times are exact: when it was free at the server, and nothing was in the way.

A lock that nobody holds may still be somebody's at the server: a dead holder's until its lease is over there, or
granted to a process that has died, stands still or is cut off, and has never heard of it. Each of these is an excuse
for as long as docs/locks.md says that it lasts, and no longer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from tests.chaos.checks.evidence import FOREVER, Event, Evidence
from tests.chaos.checks.holds import Hold
from tests.chaos.checks.promises import ALIVE_MS, CLAIM_MS, CLOCK_RATES, MARGIN_MS, MS, SLOT_MS, TAKEOVER_MS, YIELD_MS
from tests.chaos.checks.quiet import (
    AWAKE_NS,
    FORGOTTEN,
    STORE_RECOVERED_NS,
    around_ns_of,
    concerned_of,
    is_untold,
    link_recovered_at,
    newborn_of,
)
from tests.chaos.checks.spans import NO_SPANS, Fault, Spans
from tests.chaos.checks.waits import Process, waiting_of

# A release that its script could not settle is asked for again; who is handed the lock may confirm it first.
DELAYS = 8
PROMPT_MS = 10
HEARTBEAT_NS = ALIVE_MS * MS // 3
LAZY_MS = 50  # whoever waits behind a lease that its process had looks for it again

EVICTED, CLOCK_OF_STORE = "evict", "clock:redis"

Span = tuple[int, int]


class IdleSpan(NamedTuple):
    """A lock was free from `began` to `ended` (ns), while this process waited for it; `most_ns` is in time."""

    name: str
    process: Process
    began: int
    ended: int
    most_ns: int


def idle_spans_of(evidence: Evidence) -> Iterator[IdleSpan]:
    """Every time in which a lock was free and waited for, without what may be the reason of it."""
    excuses = _Excuses(evidence)
    for name, waits in waiting_of(evidence).by_name.items():
        holds = evidence.holds_by_name.get(name, [])
        released = {hold.ended for hold in holds if hold.how == "releasing"}
        occupied = Spans([*_occupied(holds, evidence), *_lent_unheard(name, evidence)])
        unsettled = _unsettled(name, evidence)
        prompt_ns, slow_ns = _bounds_ns(holds, evidence)
        unheard = _unheard_heads(name, holds, evidence)
        windows = list(excuses.windows(name))
        # Whoever comes may find a lock that was given to nobody before he came; and it may have been free before it is
        # certain to be.
        free = occupied.uncovered(evidence.first_t, evidence.last_t)
        excused = [
            span
            for began, ended in free
            if ended - began > prompt_ns
            for span in _excused(began - _longer_ns(evidence), ended, windows)
        ]
        covered = Spans([*occupied, *excused])
        for wait in waits:
            for span in covered.uncovered(wait.began, min(wait.ended, evidence.last_t)):
                for began, ended in excuses.of_waiter(wait.process[0]).uncovered(*span):
                    is_prompt = began in released and not unsettled.touch(began, ended)
                    most_ns = prompt_ns if is_prompt else slow_ns
                    if unheard.touch(began, ended):
                        most_ns = slow_ns + HEARTBEAT_NS
                    yield IdleSpan(name, wait.process, began, ended, most_ns)


def _excused(began: int, ended: int, windows: list[_Window]) -> list[Span]:
    spans = (window.excuses(began, ended) for window in windows)
    return [span for span in spans if span is not None]


def _bounds_ns(holds: list[Hold], evidence: Evidence) -> tuple[int, int]:
    """After a release to whoever waits; and where a lease ended by itself, or somebody had left the line."""
    on_the_way_ns = DELAYS * evidence.slack.delay_ns
    has_programs = any(hold.fence is None for hold in holds)  # which the queue lets go first
    yields_ns = YIELD_MS * MS * has_programs
    return PROMPT_MS * MS + on_the_way_ns + yields_ns, (TAKEOVER_MS + LAZY_MS) * MS + on_the_way_ns + yields_ns


def _occupied(holds: list[Hold], evidence: Evidence) -> Iterator[Span]:
    """When somebody held it, or his lease was not over at the server."""
    longer_ns = _longer_ns(evidence)
    left_of = {
        (death["i"], death["life"], lock["name"], lock.get("fence")): death["t"] + round(lock["left_ms"] * MS)
        for death in evidence.by_kind["died"]
        for lock in death.get("held") or ()
        if lock.get("left_ms") is not None
    }
    adopted: dict[int | None, list[int]] = defaultdict(list)
    for hold in holds:
        if hold.is_adopted:
            adopted[hold.fence].append(hold.began)
    for hold in holds:
        ended = hold.ended
        if hold.until is not None and hold.how != "releasing" and ended >= hold.until - 2 * SLOT_MS * MS:
            ended = hold.until + longer_ns
            if _asks_for_more(hold, ended, evidence):
                ended += evidence.lease_ttl_ns
        elif hold.how == "exported":
            went_on = (began for began in adopted[hold.fence] if began >= hold.ended)
            ended = next(went_on, max(hold.kept_until or 0, (hold.until or ended) + longer_ns))
        elif hold.how == "died":
            ended = (hold.until or ended) + longer_ns
        ended = max(ended, left_of.get((hold.i, hold.life, hold.name, hold.fence), 0))
        yield hold.began, ended


def _longer_ns(evidence: Evidence) -> int:
    """For how much longer a lease may last at the server than by its holder's clock."""
    return round(2 * CLOCK_RATES * evidence.lease_ttl_ns) + MARGIN_MS * MS + evidence.slack.delay_ns


def _lent_unheard(name: str, evidence: Evidence) -> Iterator[Span]:
    """When a client had it who has not heard so."""
    for point in evidence.points.get("lent_unheard", ()):
        if point["name"] == name:
            yield point["t"], point["kept_until"] + MARGIN_MS * MS


def _asks_for_more(hold: Hold, over: int, evidence: Evidence) -> bool:
    """Whether its process went on between the lease's end by its own clock and that at the server.

    What it was about to do is done first: to extend its lease, which it then finds over.
    """
    stood_still, woke = evidence.standstills_of(hold.i), (hold.until or 0) - around_ns_of(evidence)
    return stood_still.touch(woke, over) and not stood_still.within(over, over + 1)


def _unsettled(name: str, evidence: Evidence) -> Spans:
    """Around the moments in which somebody left the line: what was given to him is given back first."""
    around_ns = DELAYS * evidence.slack.delay_ns + PROMPT_MS * MS
    return Spans(
        (point["t"] - around_ns, point["t"] + around_ns)
        for kind in ("gave_up", "lost", "forced", "forcing")
        for point in evidence.points.get(kind, ())
        if point["name"] == name
    )


def _unheard_heads(name: str, holds: list[Hold], evidence: Evidence) -> Spans:
    """When whoever stands first may hear nothing, beside a program that tells him nothing: a heartbeat finds out.

    A python-redis-lock program, and SafeLock, free the lock and tell nobody; only the first in line watches it.
    """
    if not any(hold.is_outside for hold in holds):
        return NO_SPANS
    waiting = {wait.process[0] for wait in waiting_of(evidence).by_name.get(name, ())}
    found = [(death["t"], death["t"]) for death in evidence.by_kind["died"] if death["i"] in waiting]
    for who in waiting:
        found += [*evidence.standstills_of(who), *evidence.spans_of(f"link:{who}:redis")]
    return Spans((began - evidence.slack.delay_ns, ended + ALIVE_MS * MS) for began, ended in found)


def _last_moved(evidence: Evidence) -> int:
    """When the store's clock was moved for the last time, which puts it right."""
    return max(fault.ended for fault in evidence.faults if fault.scope == CLOCK_OF_STORE)


class _Window(NamedTuple):
    """From `began` to `ended` somebody may have been given a free lock, and never heard of it: he has it so long.

    No longer than until `over`, where he hears of it by then.
    """

    began: int
    ended: int
    lasts_ns: int
    over: int = FOREVER

    def excuses(self, began: int, ended: int) -> Span | None:
        """What of a time in which the lock lay idle it may be the reason of."""
        if ended < self.began or began > self.ended:
            return None
        return max(began, self.began), min(min(ended, self.ended) + self.lasts_ns, self.over)


class _Excuses:
    """Why a lock that is free for all who tell may not be so at the server, or a waiter not be able to take it."""

    def __init__(self, evidence: Evidence) -> None:
        self._around_ns = around_ns_of(evidence)
        self._lease_ns = evidence.lease_ttl_ns
        self._unheard_ns = max(self._lease_ns, CLAIM_MS * MS) + self._around_ns
        self._of_store: list[_Window] = []
        self._of_others: dict[str, list[_Window]] = defaultdict(list)
        self._of_waiters: dict[str, list[Span]] = defaultdict(list)
        self._concerned = concerned_of(evidence)
        self._spans: dict[str, Spans] = {}
        for who, newborn in newborn_of(evidence).items():
            self._of_waiters[who] += newborn
        for fault in evidence.faults:
            self._read_fault(fault, evidence)
        for stall in evidence.by_kind["stall"]:
            self._stands_still(str(stall["i"]), stall["from"], stall["to"])
        for kind in ("died", "closing"):
            for end in evidence.by_kind[kind]:
                self._ends(end, is_known=kind == "died" and not is_untold(end, evidence))

    def windows(self, name: str) -> Iterator[_Window]:
        """Of the store, and of the processes that have had to do with this lock."""
        yield from self._of_store
        for who in self._concerned.get(name, ()):
            yield from self._of_others.get(who, ())

    def of_waiter(self, who: int | str) -> Spans:
        """When this one, who waits, could not take it."""
        key = str(who)
        if key not in self._spans:
            self._spans[key] = Spans(self._of_waiters.get(key, ()))
        return self._spans[key]

    def _read_fault(self, fault: Fault, evidence: Evidence) -> None:
        kind, _, of = fault.scope.partition(":")
        instance, _, link = of.partition(":")
        began = fault.began - self._around_ns
        if kind == "instance":
            self._stands_still(instance, fault.began, fault.ended)
        elif kind == "link":
            # What it had asked for is carried out late, for nobody.
            if link == "redis":
                window = _Window(began, link_recovered_at(instance, fault.ended, evidence), self._unheard_ns)
                self._of_others[instance].append(window)
        elif kind in FORGOTTEN:
            # What is no change is not looked at again at once, so that a change behind it is heard of later.
            self._of_store.append(_Window(began, fault.ended + self._around_ns, 0))
        elif kind == "clock" and of != "redis":
            self._stands_still(of.rpartition(":")[2], fault.began, fault.ended)
        else:
            # A lease lasts for longer by what the clock was set back, until somebody cuts it to a lease; where the
            # grant is not known, until the clock is put right.
            recovered, lasts_ns = fault.ended + STORE_RECOVERED_NS, self._unheard_ns
            if kind != "clock":
                self._of_store.append(_Window(began, recovered, lasts_ns))
                return
            lasts_ns = 2 * lasts_ns
            if self._grants_are_unknown(evidence):
                lasts_ns = max(lasts_ns, _last_moved(evidence) - fault.ended)
            # Whoever has it may count on it for a lease more, and only then it lies idle.
            self._of_store.append(_Window(began, recovered + self._lease_ns, lasts_ns, over=recovered + lasts_ns))

    @staticmethod
    def _grants_are_unknown(evidence: Evidence) -> bool:
        """The server may have forgotten one, and python-redis-lock programs write none down."""
        return any(fault.kind == EVICTED for fault in evidence.faults) or any(
            hold.fence is None for hold in evidence.holds
        )

    def _ends(self, end: Event, *, is_known: bool) -> None:
        """The server drops a process from a line when it knows of its end, or has heard nothing of it for long."""
        last = end["t"] + (self._around_ns if is_known else ALIVE_MS * MS)
        self._of_others[str(end["i"])].append(_Window(end["t"] - self._around_ns, last, self._unheard_ns))

    def _stands_still(self, who: str, began: int, ended: int) -> None:
        self._of_waiters[who].append((began, ended + AWAKE_NS))
        last = min(ended, began + ALIVE_MS * MS)
        window = _Window(began - self._around_ns, last, self._unheard_ns, over=ended + AWAKE_NS)
        self._of_others[who].append(window)
