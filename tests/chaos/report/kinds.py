"""The kinds of faults: what each does, in which world, how often it was fired, and what it needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tests.chaos.checks.evidence import Evidence
from tests.chaos.faults import FaultKind
from tests.chaos.listing import available

ROOT_WORLDS = frozenset({"power", "full_disk", "namespaces", "split_brain"})  # their ground takes mounts or namespaces


@dataclass(frozen=True, slots=True)
class Kind:
    """A line of the table of faults. `needs`: why it cannot run here, None when it can."""

    name: str
    does: str
    world: str
    scope: str
    fired: int
    missed: int
    takes_root: bool
    needs: str | None


def kinds_of(evidence: Evidence) -> list[Kind]:
    """Every kind that the harness knows, the most fired first; `fired` and `missed` count this run alone."""
    ran_in = str(evidence.run.get("world", ""))
    fired = Counter(fault.kind for fault in evidence.faults)
    missed = Counter(str(event.get("kind")) for event in evidence.by_kind["missed"])

    def row(world: str, kind: FaultKind, why: str | None) -> Kind:
        is_here = world == ran_in or kind.name in plain
        counts = (fired[kind.name], missed[kind.name]) if is_here else (0, 0)
        return Kind(kind.name, kind.does, world, kind.scope, *counts, world in ROOT_WORLDS, kind.needs or why)

    worlds = available()
    plain = {kind.name for kind in worlds[0][1]}
    return sorted(
        (row(world, kind, why) for world, kinds, why in worlds for kind in kinds),
        key=lambda kind: (-kind.fired, kind.world != worlds[0][0], kind.world, kind.name),
    )
