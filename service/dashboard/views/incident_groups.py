"""Incidents that say the same, as one: two hundred that give up on one lock are one thing that happened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.dashboard.views.kinds import IncidentRow, Kind

SHOWN_SINGLES = 20


@dataclass(frozen=True, slots=True)
class IncidentGroup:
    """Incidents of one kind, lock and cause, or of one instance. `singles`: the newest of them, newest first."""

    id: str
    kind: Kind
    name: str
    count: int
    first_at: float
    last_at: float
    last_age_s: float
    words: str
    instance_ids: Sequence[str]
    singles: Sequence[IncidentRow]


def grouped(rows: Iterable[IncidentRow]) -> list[IncidentGroup]:
    """The groups of rows that come newest first, in the order of their newest ones."""
    groups: dict[tuple[object, ...], list[IncidentRow]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    return [_group(key, members) for key, members in groups.items()]


def _key(row: IncidentRow) -> tuple[object, ...]:
    # What is a number (a token, a pid, how long it took) differs each time; what is a word (a reason) is another thing.
    causes = sorted(
        (name, value) for name, value in row.detail.items() if isinstance(value, str) and not value.isdigit()
    )
    return row.key, row.name, "" if row.name else row.instance_id, *causes


def _group(key: tuple[object, ...], members: Sequence[IncidentRow]) -> IncidentGroup:
    newest = members[0]
    return IncidentGroup(
        id=hashlib.sha256(repr(key).encode()).hexdigest()[:16],
        kind=newest.kind,
        name=newest.name,
        count=len(members),
        first_at=members[-1].at,
        last_at=newest.at,
        last_age_s=newest.age_s,
        words=newest.words,
        instance_ids=sorted({each.instance_id for each in members}),
        singles=members[:SHOWN_SINGLES],
    )
