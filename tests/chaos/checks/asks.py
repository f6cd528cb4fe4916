"""Who came for a lock, when, and when he got it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

from tests.chaos.checks.evidence import FOREVER, Event, Evidence
from tests.chaos.checks.waits import Process


@dataclass(slots=True)  # not frozen: it is completed while the history is read
class Ask:
    """Somebody in this process came for the lock at `came`, and got it, or left, at `ended` (ns); FOREVER: never.

    `fence`: what he got it under, None: he did not. `counts`: he waited, or would have, and for the first time.
    """

    process: Process
    came: int
    counts: bool
    ended: int = FOREVER
    fence: int | None = None


@lru_cache(maxsize=1)
def asks_of(evidence: Evidence) -> dict[str, list[Ask]]:
    """By lock, in the order of coming: who had to wait came as he began to wait, who had not when he asked."""
    found: dict[str, list[Ask]] = defaultdict(list)
    pending: dict[tuple[str, Process], list[Ask]] = defaultdict(list)
    deaths = {(death["i"], death["life"]): death["t"] for death in evidence.by_kind["died"]}
    for event in evidence.by_kind["point"]:
        p = event["p"]
        if p == "waiting":
            ask = _ask(event, event["t"])
            found[event["name"]].append(ask)
            pending[event["name"], ask.process].append(ask)
        elif p == "gave_up" or (p == "acquired" and "queued" in event):
            process = (event["i"], event.get("life", 0))
            came = event["t"] - round((event.get("waited_s") or 0.0) * 1e9)
            waits = event.get("queued", True)
            ended = _taken(pending[event["name"], process], came, is_known="waited_s" in event) if waits else None
            if ended is None:
                if p == "gave_up":
                    continue
                ended = _ask(event, came)
                found[event["name"]].append(ended)
            ended.ended = event["t"]
            ended.fence = event.get("fence") if p == "acquired" else None
            ended.counts = ended.counts and _counts(event)
    for asks in pending.values():
        for ask in asks:
            ask.ended = deaths.get(ask.process, FOREVER)
    for asks in found.values():
        asks.sort(key=_came)
    return dict(found)


def _ask(event: Event, came: int) -> Ask:
    return Ask((event["i"], event.get("life", 0)), came, _counts(event))


def _counts(event: Event) -> bool:
    """Not who does not wait, nor who tries again."""
    return event.get("wait_s") != 0 and not event.get("retry")


def _taken(pending: list[Ask], came: int, *, is_known: bool) -> Ask | None:
    """The one who came then, or the first, who is taken out."""
    if not pending:
        return None
    place = min(range(len(pending)), key=lambda at: abs(pending[at].came - came)) if is_known else 0
    return pending.pop(place)


def _came(ask: Ask) -> int:
    return ask.came
