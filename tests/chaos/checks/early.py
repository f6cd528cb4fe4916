"""A lease is over for its holder before it is over at the server; and what is nobody's there is given back.

Both are known in exact histories only: the simulation sees the server as well as every process.
"""

from __future__ import annotations

from tests.chaos.checks.causes import taken_away
from tests.chaos.checks.evidence import Event, Evidence
from tests.chaos.checks.holds import Hold
from tests.chaos.checks.overlap import NO_HOLDS
from tests.chaos.checks.promises import MS, RETURN_MS
from tests.chaos.checks.quiet import STORE, disturbances_of
from tests.chaos.checks.spans import Spans
from tests.chaos.checks.verdict import Example, Verdict, found

UNSEEN = "the history does not tell what the server knows"
GIVEN_BACK_NS = 2 * RETURN_MS * MS


def leases_end_at_the_holder_first(evidence: Evidence) -> Verdict:
    """No lease is over at the server while its holder counts on it, unless it was taken away, or forgotten."""
    violations = []
    for event in evidence.by_kind["ended_early"]:
        hold = _hold_of(event, evidence)
        if hold is None or taken_away(hold, event["t"], evidence) is None:
            violations.append(Example(f"{_told(event)}: over {event['early_ms']:.1f} ms too early", event["t"]))
    checked = sum(hold.until is not None for hold in evidence.holds)
    return found("leases_end_at_the_holder_first", violations, checked=checked, missing=_missing(evidence))


def nobodys_lock_is_given_back(evidence: Evidence) -> Verdict:
    """No lock runs out that was granted to a process where nobody knows of it, unless there was no time to return it.

    It has the time that giving back takes once nothing is amiss with it, its way to the store, or the store.
    """
    disturbances = disturbances_of(evidence)
    violations = []
    for event in evidence.by_kind["ran_out"]:
        known = [
            min(hold.ended, event["t"])
            for hold in evidence.holds_by_name.get(event["name"], ())
            if (hold.i, hold.life) == (event["i"], event["life"]) and hold.began <= event["t"]
        ]
        amiss = Spans(span for who in (STORE, str(event["i"])) for span in disturbances.get(who, ()))
        quiet = amiss.uncovered(max([event["granted"], *known]), event["t"])
        longest_ns = max((ended - began for began, ended in quiet), default=0)
        if longest_ns > GIVEN_BACK_NS:
            violations.append(Example(f"{_told(event)}: nobody's for {longest_ns / 1e9:.1f} s", event["t"]))
    checked = len(evidence.by_kind["ran_out"])
    return found("nobodys_lock_is_given_back", violations, checked=checked, missing=_missing(evidence))


def _hold_of(event: Event, evidence: Evidence) -> Hold | None:
    """The hold that an event is of. A process may be a moment ahead of the server, and so the hold of the event."""
    of = (event["i"], event["life"], event["fence"])
    holds = [hold for hold in evidence.holds_by_name.get(event["name"], ()) if (hold.i, hold.life, hold.fence) == of]
    before = [hold for hold in holds if hold.began <= event["t"]]
    return before[-1] if before else holds[0] if holds else None


def _told(event: Event) -> str:
    return f"{event['name']} of {event['i']} (life {event['life']})"


def _missing(evidence: Evidence) -> str | None:
    return (None if evidence.holds else NO_HOLDS) if evidence.slack.is_exact else UNSEEN
