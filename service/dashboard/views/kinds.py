"""What kinds of incidents there are, in words, and how grave each is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from locks.contention import Incident
from service.dashboard.formatting import duration


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind: what it is called, and its tone on the page (bad, warn, calm)."""

    word: str
    tone: str
    sentence: str


KINDS: Mapping[str, Kind] = {
    "lost": Kind("lost", "bad", "a lease ran out, or was taken away, while its holder still worked"),
    "takeover": Kind("takeover", "warn", "a waiter acquired after its predecessor's lease had lapsed"),
    "forced": Kind("forced", "warn", "an operator ended a lease"),
    "fenced": Kind("fenced", "bad", "a stale holder was refused by its fencing token"),
    "gave-up": Kind("gave up", "warn", "a waiter did not get the lock in its time"),
    "charge-unknown": Kind("charge unknown", "bad", "nobody knows yet whether a charge was written"),
    "instance-up": Kind("instance up", "calm", "an instance began"),
    "instance-stopped": Kind("instance stopped", "calm", "an instance drained and ended"),
    "instance-down": Kind("instance down", "bad", "an instance went without a word"),
}


@dataclass(frozen=True, slots=True)
class IncidentRow:
    """An incident as a row of a table."""

    at: float
    age_s: float
    key: str
    kind: Kind
    name: str
    instance_id: str
    words: str
    detail: Mapping[str, Any]


def rows_of(incidents: Iterable[Incident], *, now_s: float) -> list[IncidentRow]:
    """As rows, in the same order."""
    return [
        IncidentRow(
            at=each.at,
            age_s=max(0.0, now_s - each.at),
            key=each.kind,
            kind=KINDS.get(each.kind) or Kind(each.kind, "calm", ""),
            name=each.name,
            instance_id=each.instance_id,
            words=_words(each.detail),
            detail=each.detail,
        )
        for each in incidents
    ]


def lost_in(counts: Mapping[str, int]) -> int:
    """How many leases were lost, for whatever reason."""
    return sum(count for key, count in counts.items() if key.startswith("lost:"))


def _words(detail: Mapping[str, Any]) -> str:
    return ", ".join(_word(name, value) for name, value in detail.items())


def _word(name: str, value: Any) -> str:
    if name.endswith("_ms") and isinstance(value, int | float):
        return f"{name[:-3].replace('_', ' ')} {duration(value / 1000)}"
    return f"{name.replace('_', ' ')} {value}"
