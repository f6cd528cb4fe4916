"""Special worlds, by name: servers of another sort, and the faults that can happen only to them."""

from tests.chaos.faults import KINDS, FaultKind
from tests.chaos.worlds import clock, cluster, full_disk, namespaces, power, sentinel, slow_disk, split_brain, standby
from tests.chaos.worlds.world import World

__all__ = ["WORLDS", "World", "kinds_in"]

WORLDS: dict[str, World] = {
    each.WORLD.name: each.WORLD
    for each in (sentinel, cluster, standby, power, full_disk, slow_disk, clock, namespaces, split_brain)
}


def kinds_in(world: World) -> dict[str, FaultKind]:
    """All that can happen there, by name: the ordinary kinds that make sense in it, and its own."""
    return {kind.name: kind for kind in (*KINDS.values(), *world.kinds) if world.allows(kind)}
