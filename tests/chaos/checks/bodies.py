"""The body of a hold ends as its lease is lost: who is told of a loss, and goes on, is not told enough."""

from __future__ import annotations

from dataclasses import dataclass

from tests.chaos.checks.evidence import FOREVER, Event, Evidence
from tests.chaos.checks.promises import CLOCK_RATES, MS
from tests.chaos.checks.spans import Spans
from tests.chaos.checks.told import TOLD_WITHIN_NS, resuming
from tests.chaos.checks.verdict import Example, Verdict, found

NAME = "bodies_end_with_their_leases"
ENDS_WITHIN_NS = 2 * MS  # a cancellation is heard of in the next tick

Key = tuple[int | str, int, str, int | None]


@dataclass(slots=True)  # not frozen: it is completed while the history is read
class Body:
    """What ran under a lease, from `began` to `ended`; `lost`: when its process was told that the lease is lost (ns).

    `is_clear`: its process got no other lease with this token meanwhile, of which the loss may be.
    `kept_ns`: how long its lease is, which is extended for as long as the body lasts; None: not for so long.
    `most_ns`: for how long it may hold the lock; None: for ever.
    """

    key: Key
    began: int
    lost: int | None = None
    ended: int = FOREVER
    is_clear: bool = True
    kept_ns: int | None = None
    most_ns: int | None = None

    @property
    def over_at(self) -> int | None:
        """When it has held the lock for as long as it may, by a clock that may be slow."""
        return None if self.most_ns is None else self.began + round(self.most_ns * (1 + CLOCK_RATES))

    def __str__(self) -> str:
        i, life, name, fence = self.key
        return f"the body of {name} in {i} (life {life}, fence {fence})"


def bodies_end_with_their_leases(evidence: Evidence) -> Verdict:
    """No body of a hold ran on for longer than a moment after its process had been told of the loss of its lease.

    Nor for longer than it may hold the lock, by a clock that may be slow.
    """
    if not evidence.slack.is_exact:
        return found(NAME, [], checked=0, missing="the history does not tell of bodies")
    bodies, violations = bodies_of(evidence), []
    for body in bodies:
        over, stood_still = body.over_at, evidence.standstills_of(body.key[0])
        if over is not None:
            asleep = Spans([*stood_still, *resuming(body.key[0], evidence)])
            if _awake_ns(body, over, asleep, evidence) > TOLD_WITHIN_NS + ENDS_WITHIN_NS:
                violations.append(Example(f"{body} went on for longer than it may hold the lock", over))
        if body.lost is None or not body.is_clear:
            continue
        since = max(body.lost, body.began)
        awake_ns = _awake_ns(body, since, stood_still, evidence)
        if awake_ns > ENDS_WITHIN_NS:
            violations.append(Example(f"{body} went on for {awake_ns / 1e6:.1f} ms after its loss", since))
    counts = {"lost": sum(body.lost is not None for body in bodies)}
    missing = None if bodies else "the history has no body of a hold"
    return found(NAME, violations, checked=len(bodies), counts=counts, missing=missing)


def _awake_ns(body: Body, since: int, asleep: Spans, evidence: Evidence) -> int:
    """For how long it ran on from then."""
    ended = max(since, min(body.ended, evidence.last_t))
    return ended - since - asleep.within(since, ended)


def bodies_of(evidence: Evidence) -> list[Body]:
    """Every body; one that its process' end has cut short ended then."""
    bodies: list[Body] = []
    running: dict[Key, Body] = {}
    lost: dict[Key, int] = {}
    for event in evidence.by_kind["point"]:
        key = (event["i"], event.get("life", 0), event.get("name", ""), event.get("fence"))
        match event["p"]:
            case "acquired":
                lost.pop(key, None)
                if key in running:
                    running[key].is_clear = False
            case "lost":
                lost[key] = event["t"]
                if key in running:
                    running[key].lost = event["t"]
            case "body_began":
                kept_ns, most_ns = _ns(event.get("kept_s")), _ns(event.get("max_hold_s"))
                body = Body(key, event["t"], lost.get(key), kept_ns=kept_ns, most_ns=most_ns)
                running[key] = body
                bodies.append(body)
            case "body_ended" if key in running:
                running.pop(key).ended = event["t"]
    ends = ends_of(evidence)
    for body in running.values():
        body.ended = ends.get(body.key[:2], FOREVER)
    return bodies


def ends_of(evidence: Evidence) -> dict[tuple[int | str, int], int]:
    """When each life of each process ended, or began to close its Locker (ns)."""
    ends: list[Event] = [*evidence.by_kind["died"], *evidence.by_kind["closing"]]
    return {(end["i"], end["life"]): end["t"] for end in sorted(ends, key=_time, reverse=True)}


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)


def _time(event: Event) -> int:
    t: int = event["t"]
    return t
