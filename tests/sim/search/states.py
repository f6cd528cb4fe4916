"""What a run has come to, as one number: by it a search knows a state where it has been."""

from __future__ import annotations

from typing import Any

from tests.sim.network import Way
from tests.sim.process import Process
from tests.sim.scenes import BEGINS_S, LASTS_S, tasks_of
from tests.sim.simulation import Simulation
from tests.sim.world import Entry


def history_of(simulation: Simulation) -> int:
    """A hash of what each process and the server have seen so far, each in its order."""
    seen = [process.history for process in simulation.processes.values()]
    return hash((simulation.server.history, *seen))


def state_of(simulation: Simulation, now: Entry) -> int:
    """A hash of that, of what has arrived and is not read, and of the order of all that is to happen soon.

    It says everything of a run but its times and its ids. A process, and the server, is a function of what it has seen:
    each draws random numbers of its own, and what reaches it, from the others or from its timers, it sees. And what is
    on its way was sent, or armed, because of what its sender has seen.
    """
    unread = [process.unread for process in simulation.processes.values()]
    soon = [_known(entry) for entry in (now, *simulation.world.soon(now[0])) if simulation.matters(entry)]
    return hash((history_of(simulation), simulation.server.queue, *unread, -1, *soon))


def is_over(simulation: Simulation) -> bool:
    """Whether all that a scene's processes were to do is done, and nothing is on its way any more."""
    world, connections = simulation.world, [it for each in simulation.processes.values() for it in each.connections]
    if world.now_s <= BEGINS_S:
        return False
    return world.now_s >= LASTS_S or not (
        any(not place.tasks for place in simulation.places.values())  # one that still greets the server
        or any(not task.done() for place in simulation.places.values() for task in tasks_of(place))
        or any(way.on_way for connection in connections for way in connection.ways)
    )


def _known(entry: Entry) -> int:
    owner: Any = getattr(entry[3], "__self__", None)
    if isinstance(owner, Way):
        return owner.number
    return -2 - int(owner.name[1:]) if isinstance(owner, Process) else -1
