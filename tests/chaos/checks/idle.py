"""No lock lies idle: somebody waits for it, nobody has it, and nothing that has happened says why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.holds import is_its_own
from tests.chaos.checks.idle_exact import IdleSpan, idle_spans_of
from tests.chaos.checks.spans import Spans
from tests.chaos.checks.takeover import HARNESS
from tests.chaos.checks.verdict import Counts, Example, Verdict, found
from tests.chaos.checks.waits import Process, waiting_of

# A handoff takes some milliseconds; whoever queues behind his own forgotten grant waits for a lease.
LONGEST_OF_LEASE = 0.5
RECONNECTED_NS = 100_000_000  # after a connection's fault there is another, and what was lost is asked again
LEASE_OF_PROGRAMS_NS = 1_000_000_000  # of the python-redis-lock programs, whose locks nobody gives back when they die
EVERYBODY = ""


class Idle(NamedTuple):
    """A lock was nobody's from `began` to `ended` (ns), while this process waited for it."""

    name: str
    process: Process
    began: int
    ended: int


def no_lock_lies_idle(evidence: Evidence) -> Verdict:
    """Whoever waits has the lock within half a lease of its being free, unless a fault or a death is in the way.

    Where times are exact: within some messages' time of a release, and 0.1 s of the end of a lease.
    """
    if evidence.slack.is_exact:
        idle = list(idle_spans_of(evidence))
    else:
        longest_ns = round(evidence.lease_ttl_ns * LONGEST_OF_LEASE)
        idle = [IdleSpan(*it, longest_ns) for it in idle_of(evidence)]
    counts: Counts = {"longest_ms": max((it.ended - it.began for it in idle), default=0) / 1e6}
    missing = None if idle else "nobody waited undisturbed for a lock that was free"
    too_long = [_example(it) for it in idle if it.ended - it.began > it.most_ns]
    return found("no_lock_lies_idle", too_long, checked=len(idle), counts=counts, missing=missing)


def idle_of(evidence: Evidence) -> Iterator[Idle]:
    """Every time in which a lock was free and waited for, without what a fault or a death may be the reason of."""
    excuses = excuses_of(evidence)
    concerned = _concerned(evidence)
    for name, waits in waiting_of(evidence).by_name.items():
        held = Spans((hold.began, hold.ended) for hold in evidence.holds_by_name.get(name, ()))
        spans = [held, *(excuses[who] for who in concerned[name] | {EVERYBODY} if who in excuses)]
        for _, process, began, ended in waits:
            if is_its_own(process[0], name):
                free = _covered_by_none(spans, began, min(ended, evidence.last_t))
                yield from (Idle(name, process, *span) for span in free)


def _covered_by_none(spans: Iterable[Spans], began: int, ended: int) -> list[tuple[int, int]]:
    left = [(began, ended)]
    for covering in spans:
        left = [part for span in left for part in covering.uncovered(*span)]
    return left


def _concerned(evidence: Evidence) -> dict[str, set[str]]:
    """Who may have to do with a lock: the instances that were asked to enter, the programs that held it."""
    found: dict[str, set[str]] = defaultdict(set)
    for operation in evidence.enters:
        found[f"appointment:{operation.appointment}"].add(str(operation.invocation.get("i", EVERYBODY)))
    for hold in evidence.holds:
        found[hold.name].add(str(hold.i))
    return found


def excuses_of(evidence: Evidence) -> dict[str, Spans]:
    """When the locks that somebody has to do with may be nobody's: he is broken, or what he has left still stands."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    lease_ns = evidence.lease_ttl_ns
    for death in evidence.by_kind["died"]:
        left_ns = LEASE_OF_PROGRAMS_NS if isinstance(death["i"], str) else lease_ns
        found[str(death["i"])].append((death["t"], death["t"] + left_ns + RECONNECTED_NS))
    for fault in evidence.faults:
        kind, _, of = fault.scope.partition(":")
        instance, _, link = of.partition(":")
        if kind in ("postgres", "session") or link == "database":
            continue  # its holder has it for longer
        who = instance if kind in ("instance", "link") else EVERYBODY
        stands_ns = 0 if kind == "link" else lease_ns
        found[who].append((fault.began, fault.ended + stands_ns + RECONNECTED_NS))
    for stall in evidence.by_kind["stall"]:
        who, stands_ns = (EVERYBODY, 0) if stall["i"] == HARNESS else (str(stall["i"]), lease_ns)
        found[who].append((stall["from"], stall["to"] + stands_ns + RECONNECTED_NS))
    return {who: Spans(spans) for who, spans in found.items()}


def _example(idle: IdleSpan) -> Example:
    lay_ms = (idle.ended - idle.began) / 1e6
    text = f"{idle.name}: nobody had it for {lay_ms:.0f} ms, while instance {idle.process[0]} waited for it"
    return Example(text, idle.began)
