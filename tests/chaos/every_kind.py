"""Every kind of fault by name, those of the special worlds included, and which of them a world has."""

from __future__ import annotations

from tests.chaos.faults import KINDS, FaultKind
from tests.chaos.worlds import WORLDS, kinds_in

PLAIN = "plain"

EVERY_KIND: dict[str, FaultKind] = {
    **KINDS,
    **{kind.name: kind for world in WORLDS.values() for kind in world.kinds},
}


def available_in(world: str) -> list[str]:
    """The names of the kinds that can happen in this world, on this machine."""
    kinds = KINDS if world == PLAIN else kinds_in(WORLDS[world])
    return [name for name, kind in kinds.items() if kind.needs is None]
