"""The kinds of faults: what each does, how often it was fired, and what it needs that not every machine has."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.chaos.checks.evidence import Evidence
from tests.chaos.faults import KINDS


@dataclass(frozen=True, slots=True)
class Kind:
    """A line of the table of faults. `needs`: why it cannot run here, None when it can."""

    name: str
    does: str
    scope: str
    fired: int
    missed: int
    root: bool
    needs: str | None


def kinds_of(evidence: Evidence) -> list[Kind]:
    """Every kind that the harness knows and every kind that was fired, the most fired first."""
    fired = Counter(fault.kind for fault in evidence.faults)
    missed = Counter(str(event.get("kind")) for event in evidence.by_kind["missed"])
    scopes = {fault.kind: fault.scope.split(":")[0] for fault in evidence.faults}
    names = {*KINDS, *fired, *missed}
    kinds = [_kind(name, KINDS.get(name), scopes.get(name, ""), fired[name], missed[name]) for name in names]
    return sorted(kinds, key=lambda kind: (-kind.fired, kind.name))


def _kind(name: str, known: Any, scope: str, fired: int, missed: int) -> Kind:
    needs = getattr(known, "needs", None)
    return Kind(
        name=name,
        does=getattr(known, "does", ""),
        scope=scope or str(getattr(known, "scope", "")),
        fired=fired,
        missed=missed,
        root=bool(getattr(known, "root", False)) or "root" in str(needs or ""),
        needs=str(needs) if needs else None,
    )
