"""The lies that can be planted in a good exact history."""

from __future__ import annotations

from tests.chaos.checks.asks import asks_of
from tests.chaos.checks.bodies import bodies_of
from tests.chaos.checks.causes import taken_away
from tests.chaos.checks.draft import CannotPlant, Draft
from tests.chaos.checks.evidence import FOREVER
from tests.chaos.checks.losses import DELAYS
from tests.chaos.checks.order import slack_ns_of, unsettled_of
from tests.chaos.checks.promises import MS
from tests.chaos.checks.quiet import is_disturbed

LATE_NS = 20 * MS


def overtaken(draft: Draft) -> None:
    """Somebody came later than one who waited, and had the lock before."""
    evidence = draft.evidence
    if not evidence.slack.is_exact:
        raise CannotPlant
    long_waits = [
        (name, ask)
        for name, asks in asks_of(evidence).items()
        for ask in asks
        if ask.counts and ask.ended < FOREVER and ask.came + slack_ns_of(ask.came, ask.ended, evidence) + MS < ask.ended
        if not unsettled_of(name, evidence).touch(ask.came, ask.ended)
        if not is_disturbed(evidence, ask.process[0], ask.came, ask.ended)
    ]
    name, ask = draft.one_of(long_waits)
    who = {"i": "liar", "life": 1, "name": name}
    draft.add("point", ask.ended - 2 * MS // 3, p="waiting", **who)
    draft.add("point", ask.ended - MS // 3, p="acquired", fence=-1, queued=True, until=ask.ended, **who)


def told_late(draft: Draft) -> None:
    """A lease was over some time before its holder heard of it."""
    evidence = draft.evidence
    if not evidence.slack.is_exact:
        raise CannotPlant
    holds = [hold for hold in evidence.holds if hold.left is not None and hold.until is not None]
    awake = [it for it in holds if not evidence.standstills_of(it.i).touch((it.left or 0) - LATE_NS, it.left or 0)]
    hold = draft.one_of(awake)
    draft.change_hold(hold, until=(hold.left or 0) - LATE_NS)


def body_went_on(draft: Draft) -> None:
    """A body was told of a loss, and went on."""
    evidence = draft.evidence
    if not evidence.slack.is_exact:
        raise CannotPlant
    bodies = [
        body
        for body in bodies_of(evidence)
        if body.ended < FOREVER and body.is_clear and body.ended - LATE_NS > body.began
        if not evidence.standstills_of(body.key[0]).touch(body.ended - LATE_NS, body.ended)
    ]
    body = draft.one_of(bodies)
    i, life, name, fence = body.key
    draft.add("point", body.ended - LATE_NS, p="lost", i=i, life=life, name=name, fence=fence)


def lost_for_nothing(draft: Draft) -> None:
    """A lease that was kept was lost, of which nobody can say why."""
    evidence = draft.evidence
    healthy = [
        body
        for body in bodies_of(evidence)
        if body.kept_ns is not None and body.kept_ns > DELAYS * evidence.slack.delay_ns and body.ended < FOREVER
        if body.is_clear and not is_disturbed(evidence, body.key[0], body.ended - body.kept_ns, body.ended)
    ]
    body = draft.one_of(healthy)
    i, life, name, fence = body.key
    draft.add("point", max(body.began, body.ended - MS), p="lost", i=i, life=life, name=name, fence=fence)


def waited_on(draft: Draft) -> None:
    """Somebody would have waited for less long than he stood in line."""
    evidence = draft.evidence
    stood = {event["ask"]: event["t"] for event in evidence.points.get("waiting", ()) if "ask" in event}
    answers = {event["ask"]: event for event in evidence.points.get("answered", ())}
    asked = [
        ask
        for ask in evidence.points.get("invoked", ())
        if ask.get("wait_s") and ask["ask"] in stood and ask["ask"] in answers
        if answers[ask["ask"]]["t"] > stood[ask["ask"]] + LATE_NS
        if not evidence.standstills_of(ask["i"]).touch(ask["t"], answers[ask["ask"]]["t"])
    ]
    ask = draft.one_of(asked)
    draft.replace(ask, wait_s=answers[ask["ask"]]["waited_s"] - LATE_NS / 1e9)


def told_nothing(draft: Draft) -> None:
    """Somebody waited for longer than outages are waited for."""
    if not draft.evidence.slack.is_exact:
        raise CannotPlant
    lost = draft.one_of(draft.evidence.points.get("store_lost", ()))
    who = {"i": "liar", "life": 1}
    draft.add("point", lost["t"], p="store_lost", **who)
    draft.add("point", lost["t"], p="invoked", name="n:0", ask=-1, wait_s=None, **who)
    draft.add(
        "point", lost["t"] + 600 * MS, p="answered", name="n:0", ask=-1, outcome="LockStoreDown", waited_s=0.6, **who
    )


def told_busy(draft: Draft) -> None:
    """Somebody was told that a lock is busy which was free."""
    free = draft.one_of(draft.evidence.by_kind["free"])
    who = {"i": "liar", "life": 1, "name": "n:liar", "ask": -1}
    draft.add("free", free["t"] + MS, name="n:liar", since=free["t"] - MS)
    draft.add("point", free["t"], p="invoked", wait_s=0, **who)
    draft.add("point", free["t"], p="answered", outcome="LockBusy", waited_s=0.0, **who)


def asked_too_much(draft: Draft) -> None:
    """A process sent commands without number."""
    second = draft.one_of(draft.evidence.by_kind["asked"])
    draft.replace(second, commands=1000 + len(draft.evidence.by_kind["point"]))


def taken_early(draft: Draft) -> None:
    """A lease was over at the server while its holder counted on it."""
    evidence = draft.evidence
    holds = [
        hold
        for hold in evidence.holds
        if hold.until is not None and hold.ended > hold.began and taken_away(hold, hold.ended, evidence) is None
    ]
    if not evidence.slack.is_exact:
        raise CannotPlant
    hold = draft.one_of(holds)
    who = {"i": hold.i, "life": hold.life, "name": hold.name, "fence": hold.fence}
    draft.add("ended_early", hold.ended - 1, why="expired", early_ms=1.0, **who)


def kept_by_nobody(draft: Draft) -> None:
    """A lock ran out that nobody knew of any more."""
    evidence = draft.evidence
    if not evidence.slack.is_exact:
        raise CannotPlant
    who = {"i": "liar", "life": 1, "name": draft.one_of(evidence.holds).name}
    last_t = evidence.last_t + 60_000 * MS  # when nothing has been amiss for long
    draft.add("ran_out", last_t, granted=evidence.last_t, **who)


def cancelled_by_nobody(draft: Draft) -> None:
    """A cancellation that nobody sent came out of the locks."""
    if not draft.evidence.slack.is_exact:
        raise CannotPlant
    draft.add("stray_cancel", draft.evidence.last_t, i="p0", where="hold")
