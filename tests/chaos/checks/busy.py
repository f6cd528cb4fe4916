"""Whoever is told that another has the lock is told so of a lock that another had, or stood in line for."""

from __future__ import annotations

from collections import defaultdict

from tests.chaos.checks.asks import asks_of
from tests.chaos.checks.evidence import Event, Evidence
from tests.chaos.checks.patience import BUSY
from tests.chaos.checks.promises import ALIVE_MS, MS
from tests.chaos.checks.verdict import Example, Verdict, found

NAME = "busy_is_true"


def busy_is_true(evidence: Evidence) -> Verdict:
    """No lock that was free at the server, and nobody's next, from when it was asked for was answered for busy.

    Where the store has just lost its data a free lock is nobody's for a moment: those who stood in line may come back,
    or be there again, with the data of before, until they count as dead.
    """
    if not evidence.slack.is_exact:
        return found(NAME, [], checked=0, missing="the history does not tell when a lock was free")
    asked = {event["ask"]: event for event in evidence.points.get("invoked", ()) if "ask" in event}
    answers = [event for event in evidence.points.get("answered", ()) if event["outcome"] == BUSY]
    free: dict[str, list[Event]] = defaultdict(list)
    for event in evidence.by_kind["free"]:
        free[event["name"]].append(event)
    violations = [
        Example(f"{it['i']} (life {it['life']}) was told of {it['name']}, which was free, that it is busy", it["t"])
        for it in answers
        if _was_free(asked[it["ask"]], it, free[it["name"]]) and not _was_wanted(asked[it["ask"]], it, evidence)
    ]
    missing = None if answers else "nobody was told that a lock is busy"
    return found(NAME, violations, checked=len(answers), missing=missing)


def _was_free(ask: Event, answer: Event, free: list[Event]) -> bool:
    return any(span["since"] <= ask["t"] and answer["t"] <= span["t"] for span in free)


def _was_wanted(ask: Event, answer: Event, evidence: Evidence) -> bool:
    """Whether others stood in line, or may have."""
    process = ask["i"], ask["life"]
    since = ask["t"] - ALIVE_MS * MS
    return evidence.store_forgot(since, answer["t"]) or any(
        other.came <= answer["t"] and since <= other.ended
        for other in asks_of(evidence).get(ask["name"], ())
        if other.process != process or other.came < ask["t"]
    )
