"""When nothing befell a process, its way to the store, or the store: then everything has to go as promised."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache

from tests.chaos.checks.evidence import Event, Evidence
from tests.chaos.checks.promises import ALIVE_MS, COMMAND_TIMEOUT_MS, CONNECT_MS, MS, RECONNECT_MS, RESUMED_MS
from tests.chaos.checks.spans import NO_SPANS, Spans

STORE = "store"
# A connection that is silent is given up, and made anew.
LINK_RECOVERED_NS = (COMMAND_TIMEOUT_MS + CONNECT_MS + 2 * RECONNECT_MS) * MS
# Everybody stands in line again, and who does not is dropped.
STORE_RECOVERED_NS = (ALIVE_MS + 2 * RECONNECT_MS) * MS
BORN_NS = STORE_RECOVERED_NS
FORGOTTEN = frozenset({"tracking", "scripts"})  # by the server, which is told once more: that takes no longer
UNTOLD = frozenset({"half-open", "black-hole"})  # the server hears nothing of the end of such a connection
AROUND_DELAYS, AROUND_MS = 4, 5
AWAKE_NS = 2 * RESUMED_MS * MS


@lru_cache(maxsize=1)
def disturbances_of(evidence: Evidence) -> dict[str, Spans]:
    """By process, and for all under STORE: when something was amiss, until it has recovered."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for fault in evidence.faults:
        kind, _, of = fault.scope.partition(":")
        instance, _, link = of.partition(":")
        if kind == "instance":
            found[instance].append((fault.began, fault.ended + AWAKE_NS))
        elif kind == "link":
            if link == "redis":
                found[instance].append((fault.began, link_recovered_at(instance, fault.ended, evidence)))
        elif kind in FORGOTTEN:
            found[STORE].append((fault.began, fault.ended + around_ns_of(evidence)))
        elif kind == "clock" and of != "redis":
            found[of.rpartition(":")[2]].append((fault.began, fault.ended + AWAKE_NS))
        else:
            found[STORE].append((fault.began, fault.ended + STORE_RECOVERED_NS))
    for stall in evidence.by_kind["stall"]:
        found[str(stall["i"])].append((stall["from"], stall["to"] + AWAKE_NS))
    return {who: Spans(spans) for who, spans in found.items()}


def link_recovered_at(instance: int | str, ended: int, evidence: Evidence) -> int:
    """When a process, whose connection a fault had until then, has found out that it is dead, and has a new one."""
    return evidence.standstills_of(instance).passed(ended, LINK_RECOVERED_NS)


@lru_cache(maxsize=1)
def newborn_of(evidence: Evidence) -> dict[str, Spans]:
    """By process, when it has only just begun to live, and may not have its connections yet."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    ups: dict[tuple[int | str, int], int] = {}
    for point in evidence.points.get("store_up", ()):
        ups.setdefault((point["i"], point["life"]), point["t"] + AWAKE_NS)
    for birth in evidence.by_kind["born"]:
        begun = birth["t"] + BORN_NS
        found[str(birth["i"])].append((birth["t"], min(begun, ups.get((birth["i"], birth["life"]), begun))))
    return {who: Spans(spans) for who, spans in found.items()}


def is_disturbed(evidence: Evidence, who: int | str, begin: int, end: int) -> bool:
    """Whether something was amiss between these moments with this process, or with the store."""
    found = disturbances_of(evidence)
    return any(found.get(each, NO_SPANS).touch(begin, end) for each in (STORE, str(who)))


def is_untold(death: Event, evidence: Evidence) -> bool:
    """Whether the server goes on counting a dead process as heard: it was not told of its end, or of that of a
    connection which was cut before, in this life."""
    born, link = evidence.births.get((death["i"], death["life"]), 0), f"link:{death['i']}:redis"
    faults = evidence.faults_by_scope.get(link, ())
    return bool(death.get("silent")) or any(fault.kind in UNTOLD and born <= fault.began for fault in faults)


@lru_cache(maxsize=1)
def concerned_of(evidence: Evidence) -> dict[str, set[str]]:
    """By lock, the processes that have had to do with it."""
    found: dict[str, set[str]] = defaultdict(set)
    for point in evidence.by_kind["point"]:
        if "name" in point:
            found[point["name"]].add(str(point["i"]))
    return found


def around_ns_of(evidence: Evidence) -> int:
    """How long before or after its process' end, or standstill, something is asked for or granted that nobody hears."""
    return AROUND_DELAYS * evidence.slack.delay_ns + AROUND_MS * MS
