"""Whoever is told that another has the lock is told so of a lock that another had, or stood in line for."""

from __future__ import annotations

from collections import defaultdict

from tests.chaos.checks.asks import asks_of
from tests.chaos.checks.evidence import FOREVER, Event, Evidence
from tests.chaos.checks.patience import BUSY
from tests.chaos.checks.promises import ALIVE_MS, GRACE_MS, MS, RECONNECT_MS
from tests.chaos.checks.verdict import Example, Verdict, found

NAME = "busy_is_true"
COMES_BACK_NS = (GRACE_MS + 2 * RECONNECT_MS) * MS  # until whoever stood in line has, and the moment after that
HEARD_NS = (ALIVE_MS // 3 + 10) * MS  # so old may be what a process that stands in line has heard


def busy_is_true(evidence: Evidence) -> Verdict:
    """No lock was answered for busy that was free at the server, and had no line, for as long as somebody asked for it.

    Where the store has just lost its data a free lock is nobody's for a moment: those who stood in line may come back;
    by a clock that is set forward keys are over, and the moment lasts for longer by one that is set back.
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
        if not _is_true(asked[it["ask"]], it, free[it["name"]], evidence)
    ]
    missing = None if answers else "nobody was told that a lock is busy"
    return found(NAME, violations, checked=len(answers), missing=missing)


def _is_true(ask: Event, answer: Event, free: list[Event], evidence: Evidence) -> bool:
    """As far as the process knew: it may have the lock itself, or stand in line and have heard a heartbeat ago."""
    name, process, since = ask["name"], (ask["i"], ask["life"]), ask["t"]
    window = since - COMES_BACK_NS, answer["t"]
    if evidence.store_forgot(*window) or evidence.clock_moved(ask["i"], *window):
        return True
    if any(
        (hold.i, hold.life) == process and hold.began <= answer["t"] and since <= (hold.left or FOREVER)
        for hold in evidence.holds_by_name.get(name, ())
    ):
        return True
    if any(it.process == process and it.came < ask["t"] <= it.ended for it in asks_of(evidence).get(name, ())):
        since = min(since, answer["t"] - HEARD_NS)
    return not any(span["since"] <= since and answer["t"] <= span["t"] for span in free)
