"""How long a lock lay idle where the times are exact: when it was free at the server, and nothing was in the way.

A lock that nobody holds may still be somebody's at the server: a dead holder's until its lease is over there, or
granted to a process that has died, stands still or is cut off, and has never heard of it. Each of these is an excuse
for as long as docs/locks.md says that it lasts, and no longer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.holds import Hold
from tests.chaos.checks.promises import ALIVE_MS, CLAIM_MS, CLOCK_RATES, MARGIN_MS, MS, SLOT_MS, TAKEOVER_MS, YIELD_MS
from tests.chaos.checks.quiet import AWAKE_NS, LINK_RECOVERED_NS, STORE_RECOVERED_NS, concerned_of, newborn_of
from tests.chaos.checks.spans import NO_SPANS, Spans
from tests.chaos.checks.waits import Process, waiting_of

# A release that its script could not settle is asked for again; who is handed the lock may confirm it first.
DELAYS = 8
PROMPT_MS = 10
LAZY_MS = 50  # whoever waits behind a lease that its process had looks for it again
# Whoever is offered a lock, or has it as a claim, and does not answer: it is the next one's after that.
UNANSWERED_NS = (ALIVE_MS + CLAIM_MS) * MS

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
        covered = Spans([*_occupied(holds, evidence), *excuses.of_all(name)])
        unsettled = _unsettled(name, evidence)
        prompt_ns, slow_ns = _bounds_ns(holds, evidence)
        for wait in waits:
            for span in covered.uncovered(wait.began, min(wait.ended, evidence.last_t)):
                for began, ended in excuses.of_waiter(wait.process[0]).uncovered(*span):
                    is_prompt = began in released and not unsettled.touch(began, ended)
                    yield IdleSpan(name, wait.process, began, ended, prompt_ns if is_prompt else slow_ns)


def _bounds_ns(holds: list[Hold], evidence: Evidence) -> tuple[int, int]:
    """After a release to whoever waits; and where a lease ended by itself, or somebody had left the line."""
    on_the_way_ns = DELAYS * evidence.slack.delay_ns
    has_programs = any(hold.fence is None for hold in holds)  # which the queue lets go first
    yields_ns = YIELD_MS * MS * has_programs
    return PROMPT_MS * MS + on_the_way_ns + yields_ns, (TAKEOVER_MS + LAZY_MS) * MS + on_the_way_ns + yields_ns


def _occupied(holds: list[Hold], evidence: Evidence) -> Iterator[Span]:
    """When somebody held it, or his lease was not over at the server."""
    longer_ns = round(2 * CLOCK_RATES * evidence.lease_ttl_ns) + MARGIN_MS * MS + evidence.slack.delay_ns
    left_of = {
        (death["i"], death["life"], lock["name"], lock.get("fence")): death["t"] + round(lock["left_ms"] * MS)
        for death in evidence.by_kind["died"]
        for lock in death.get("held") or ()
        if lock.get("left_ms") is not None
    }
    adopted = {(hold.name, hold.fence): hold.began for hold in holds if hold.is_adopted}
    for hold in holds:
        ended = hold.ended
        if hold.until is not None and hold.how != "releasing" and ended >= hold.until - 2 * SLOT_MS * MS:
            ended = hold.until + longer_ns
        elif hold.how == "exported":
            ended = adopted.get((hold.name, hold.fence), (hold.until or ended) + longer_ns)
        elif hold.how == "died":
            ended = (hold.until or ended) + longer_ns
        ended = max(ended, left_of.get((hold.i, hold.life, hold.name, hold.fence), 0))
        yield hold.began, ended


def _unsettled(name: str, evidence: Evidence) -> Spans:
    """Around the moments in which somebody left the line: what was given to him is given back first."""
    around_ns = DELAYS * evidence.slack.delay_ns + PROMPT_MS * MS
    return Spans(
        (point["t"] - around_ns, point["t"] + around_ns)
        for kind in ("gave_up", "lost", "forced", "forcing")
        for point in evidence.points.get(kind, ())
        if point["name"] == name
    )


class _Excuses:
    """When a lock that is free for all who tell may not be so at the server, or a waiter not be able to take it."""

    def __init__(self, evidence: Evidence) -> None:
        self._lease_ns = evidence.lease_ttl_ns
        self._of_store: list[Span] = []
        self._of_others: dict[str, list[Span]] = defaultdict(list)
        self._of_waiters: dict[str, list[Span]] = defaultdict(list)
        self._concerned = concerned_of(evidence)
        self._spans: dict[str, Spans] = {}
        self._read_faults(evidence)
        self._read_processes(evidence)

    def of_all(self, name: str) -> Iterator[Span]:
        """Of the store, and of the processes that have had to do with this lock."""
        yield from self._of_store
        for who in self._concerned.get(name, ()):
            yield from self._of_others.get(who, ())

    def of_waiter(self, who: int | str) -> Spans:
        """Of this one, who waits."""
        key = str(who)
        if key not in self._of_waiters:
            return NO_SPANS
        if key not in self._spans:
            self._spans[key] = Spans(self._of_waiters[key])
        return self._spans[key]

    def _read_faults(self, evidence: Evidence) -> None:
        lease_ns = self._lease_ns
        for fault in evidence.faults:
            kind, _, of = fault.scope.partition(":")
            instance, _, link = of.partition(":")
            if kind == "instance":
                self._stands_still(instance, fault.began, fault.ended)
            elif kind == "link":
                # What it had asked for is carried out late, for nobody, and lasts for a lease.
                if link == "redis":
                    span = fault.began, fault.ended + LINK_RECOVERED_NS + lease_ns
                    self._of_others[instance].append(span)
            elif kind == "clock" and of == "redis":
                # A lease lasts for longer by what the clock was set back, until somebody cuts it to a lease.
                self._of_store.append((fault.began, fault.ended + STORE_RECOVERED_NS + 2 * lease_ns))
            elif kind == "clock":
                self._stands_still(of.rpartition(":")[2], fault.began, fault.ended)
            else:
                self._of_store.append((fault.began, fault.ended + STORE_RECOVERED_NS + lease_ns))

    def _read_processes(self, evidence: Evidence) -> None:
        for stall in evidence.by_kind["stall"]:
            self._stands_still(str(stall["i"]), stall["from"], stall["to"])
        for kind in ("died", "closing"):
            for end in evidence.by_kind[kind]:
                # It may have been given the lock, and never heard of it.
                last = end["t"] + max(self._lease_ns, UNANSWERED_NS) + AWAKE_NS
                self._of_others[str(end["i"])].append((end["t"], last))
        for who, newborn in newborn_of(evidence).items():
            self._of_waiters[who] += newborn

    def _stands_still(self, who: str, began: int, ended: int) -> None:
        self._of_waiters[who].append((began, ended + AWAKE_NS))
        # What it had asked for in its last moment it has for a lease; the others go past it.
        last = min(ended, began + max(self._lease_ns, UNANSWERED_NS))
        self._of_others[who].append((began, last + AWAKE_NS))
