"""Whoever waits for no longer than `wait_s` is answered then, and is told no sooner that somebody else has the lock."""

from __future__ import annotations

from collections.abc import Mapping

from tests.chaos.checks.bodies import ends_of
from tests.chaos.checks.evidence import Event, Evidence
from tests.chaos.checks.promises import CLOCK_RATES, MS
from tests.chaos.checks.spans import Spans
from tests.chaos.checks.told import resuming
from tests.chaos.checks.verdict import Counts, Example, Verdict, found

NAME = "patience_is_kept"
ANSWERED_WITHIN_NS = 5 * MS  # a timer is up to 1 ms late, and what it does takes some ticks
SOONER_S = 1e-6
BUSY = "LockBusy"


def patience_is_kept(evidence: Evidence) -> Verdict:
    """Nobody who ran stood in line for longer than he would wait, and nobody was told `busy` before.

    He may have to wait longer where the answer to his first question does: he does not stand in line before it.
    """
    if not evidence.slack.is_exact:
        return found(NAME, [], checked=0, missing="the history does not tell for how long anybody would wait")
    asked = [event for event in evidence.points.get("invoked", ()) if event.get("wait_s")]
    answers = {event["ask"]: event for event in evidence.points.get("answered", ())}
    waiting = {event["ask"]: event["t"] for event in evidence.points.get("waiting", ()) if "ask" in event}
    ends, violations, counts = ends_of(evidence), [], Counts(busy=0)
    for ask in asked:
        answer, wait_s = answers.get(ask["ask"]), ask["wait_s"]
        who = f"{ask['i']} (life {ask['life']}), who would wait for {ask['name']} for {wait_s} s"
        if answer is not None and answer["outcome"] == BUSY:
            counts["busy"] += 1
            if wait_s - answer["waited_s"] > SOONER_S:
                violations.append(Example(f"{who}: told after {answer['waited_s']:.4f} s that it is busy", answer["t"]))
        if ask["ask"] in waiting:
            late_ns = _late_ns(ask, waiting[ask["ask"]], answer, ends, evidence)
            if late_ns > ANSWERED_WITHIN_NS:
                violations.append(Example(f"{who}: waited for {late_ns / 1e6:.1f} ms more", ask["t"]))
    missing = None if asked else "nobody waited for so long and no longer"
    return found(NAME, violations, checked=len(asked), counts=counts, missing=missing)


def _late_ns(
    ask: Event, stood: int, answer: Event | None, ends: Mapping[tuple[int | str, int], int], evidence: Evidence
) -> int:
    """For how long his process ran after his time was over, and he, who stood in line from `stood` on, waited."""
    came: int = ask["t"]
    wait_ns: int = round(1e9 * ask["wait_s"])
    ended: int
    waited_ns: int
    if answer is not None:
        ended, waited_ns = answer["t"], round(1e9 * answer["waited_s"])
    else:
        ended = min(evidence.last_t, ends.get((ask["i"], ask["life"]), evidence.last_t))
        waited_ns = round((ended - came) * (1 - CLOCK_RATES))  # by a clock of which nobody told
    late_ns = min(waited_ns - wait_ns, ended - stood)
    if late_ns <= ANSWERED_WITHIN_NS:
        return late_ns
    asleep = Spans([*evidence.standstills_of(ask["i"]), *resuming(ask["i"], evidence)])
    clock_rate = waited_ns / (ended - came)
    slept_ns = round(asleep.within(came, ended) * clock_rate)
    return min(waited_ns - wait_ns - slept_ns, ended - stood - asleep.within(stood, ended))
