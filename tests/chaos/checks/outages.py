"""Whoever asks while there is no connection is told so soon, however long it would wait for the lock."""

from __future__ import annotations

from collections import defaultdict

from tests.chaos.checks.bodies import ends_of
from tests.chaos.checks.evidence import Event, Evidence
from tests.chaos.checks.promises import CLOCK_RATES, COMMAND_TIMEOUT_MS, MS
from tests.chaos.checks.spans import Spans
from tests.chaos.checks.told import resuming
from tests.chaos.checks.verdict import Example, Verdict, found

NAME = "outages_are_told"
WAITED_NS = round(COMMAND_TIMEOUT_MS * MS * (1 + CLOCK_RATES)) + 5 * MS  # outage_wait_s, which is a command's

Life = tuple[int | str, int]


def outages_are_told(evidence: Evidence) -> Verdict:
    """Nobody who ran waited for an answer during one outage of its process' connection for longer than that."""
    if not evidence.slack.is_exact:
        return found(NAME, [], checked=0, missing="the history does not tell when anybody was answered")
    answers = {event["ask"]: event["t"] for event in evidence.points.get("answered", ())}
    outages, ends = _outages_of(evidence), ends_of(evidence)
    violations, checked = [], 0
    for ask in evidence.points.get("invoked", ()):
        if "ask" not in ask:
            continue
        life = ask["i"], ask["life"]
        answered = answers.get(ask["ask"], ends.get(life, evidence.last_t))
        asleep = Spans([*evidence.standstills_of(ask["i"]), *resuming(ask["i"], evidence)])
        for began, ended in outages[life]:
            since, until = max(began, ask["t"]), min(ended, answered)
            if since >= until:
                continue
            checked += 1
            waited_ns = until - since - asleep.within(since, until)
            if waited_ns > WAITED_NS:
                who = f"{ask['i']} (life {ask['life']}), who asked for {ask['name']}"
                violations.append(Example(f"{who}: waited for {waited_ns / 1e6:.1f} ms of an outage", since))
    missing = None if checked else "nobody asked during an outage"
    return found(NAME, violations, checked=checked, missing=missing)


def _outages_of(evidence: Evidence) -> dict[Life, list[tuple[int, int]]]:
    """From when to when each life of each process knew that it had no connection."""
    found: dict[Life, list[tuple[int, int]]] = defaultdict(list)
    lost: dict[Life, int] = {(birth["i"], birth["life"]): birth["t"] for birth in evidence.by_kind["born"]}
    changes: list[Event] = [*evidence.points.get("store_lost", ()), *evidence.points.get("store_up", ())]
    for change in sorted(changes, key=lambda change: int(change["t"])):
        life = change["i"], change["life"]
        if change["p"] == "store_lost":
            lost.setdefault(life, change["t"])
        elif life in lost:
            found[life].append((lost.pop(life), change["t"]))
    for life, since in lost.items():
        found[life].append((since, ends_of(evidence).get(life, evidence.last_t)))
    return found
