"""Whoever has waited longer gets the lock first, over all processes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache

from tests.chaos.checks.asks import Ask, asks_of
from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.promises import CLOCK_RATES, MS, RUN_TURNS, SLACK_MS
from tests.chaos.checks.quiet import STORE_RECOVERED_NS, disturbances_of, is_disturbed, newborn_of
from tests.chaos.checks.spans import NO_SPANS, Spans
from tests.chaos.checks.verdict import Counts, Example, Verdict, found

# A place in line goes by an age that was on its way, each way and once more where the first answer was a refusal.
DELAYS = 4
# After these a lock, or a turn of a run, may go to somebody who came later: it had been given to one who is gone.
UNSETTLING = ("gave_up", "lost", "forcing", "forced", "exported")


def order_of_arrival(evidence: Evidence) -> Verdict:
    """No more than the turns of a run go to those who came clearly later; none, where everybody waits to his turn."""
    if not evidence.slack.is_exact:
        return found("order_of_arrival", [], checked=0, missing="the history does not tell the order to within 5 ms")
    violations: list[Example] = []
    checked = overtaken = most = 0
    for name, asks in asks_of(evidence).items():
        unsettled = unsettled_of(name, evidence)
        grants = sorted((ask for ask in asks if ask.fence is not None and ask.counts), key=_ended)
        times = [grant.ended for grant in grants]
        for ask in asks:
            if not ask.counts:
                continue
            checked += 1
            first, after = bisect_right(times, ask.came), bisect_left(times, ask.ended)
            late = list(_overtakers(ask, grants[first:after], evidence))
            if not late:
                continue
            overtaken += 1
            most = max(most, len(late))
            is_settled = not unsettled.touch(ask.came, late[0].ended)
            if len(late) > RUN_TURNS or is_settled:
                violations.append(_example(name, ask, late))
    counts: Counts = {"overtaken": overtaken, "most_overtakings": most}
    missing = None if checked else "nobody waited for a lock"
    return found("order_of_arrival", violations, checked=checked, counts=counts, missing=missing)


def _overtakers(ask: Ask, grants: Sequence[Ask], evidence: Evidence) -> Iterator[Ask]:
    """Who came clearly later and got it before, while nothing befell the one who waited."""
    who = ask.process[0]
    newborn = newborn_of(evidence).get(str(who), NO_SPANS)
    for grant in grants:
        clearly = ask.came + slack_ns_of(ask.came, grant.ended, evidence)
        if grant.came > clearly and not (
            newborn.touch(ask.came, grant.ended) or is_disturbed(evidence, who, ask.came, grant.ended)
        ):
            yield grant


def slack_ns_of(came: int, got: int, evidence: Evidence) -> int:
    """By how much somebody may have come later, and yet have had the lock at `got`, before the one who came then."""
    return SLACK_MS * MS + DELAYS * evidence.slack.delay_ns + round((got - came) * CLOCK_RATES)


@lru_cache(maxsize=1)
def _amiss(evidence: Evidence) -> list[tuple[int, int]]:
    deaths = ((death["t"], death["t"] + STORE_RECOVERED_NS) for death in evidence.by_kind["died"])
    return [*deaths, *(span for spans in disturbances_of(evidence).values() for span in spans)]


def unsettled_of(name: str, evidence: Evidence) -> Spans:
    """When somebody was amiss, or had left the line or the lock otherwise than by a release."""
    spans = list(_amiss(evidence))
    for kind in UNSETTLING:
        spans += [
            (event["t"] - evidence.lease_ttl_ns, event["t"] + STORE_RECOVERED_NS)
            for event in evidence.points.get(kind, ())
            if event["name"] == name
        ]
    for point in evidence.points.get("acquired", ()):
        if point["name"] == name and "queued" not in point:  # a python-redis-lock program's
            spans.append((point["t"] - evidence.lease_ttl_ns, point["t"] + STORE_RECOVERED_NS))
    return Spans(spans)


def _ended(ask: Ask) -> int:
    return ask.ended


def _example(name: str, ask: Ask, late: Sequence[Ask]) -> Example:
    first = late[0]
    text = (
        f"{name}: {ask.process[0]} came for it, and {len(late)} who came later had it before,"
        f" {first.process[0]} first, who came {(first.came - ask.came) / 1e6:.1f} ms later (fence {first.fence})"
    )
    return Example(text, first.ended)
