"""What can go wrong: each kind strikes once, at a moment that the search chooses, and is over by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from locks.line import QUIET_S
from tests.sim.network import Connection
from tests.sim.process import Process
from tests.sim.redis import Data, Refusal

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

Strike = Callable[["Simulation", Process, random.Random], None]

NOTHING = Data({}, {})


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a run. `at_s`: when; or None, and it strikes once `at_event` events have happened.

    `who`: the number of the process that it strikes, where it strikes one. `number`: of its own random numbers.
    """

    kind: str
    who: int = 0
    at_s: float | None = None
    at_event: int | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """`of_server`: it strikes the server, and no process. `forgets`: data, or time, can be lost by it."""

    strike: Strike
    of_server: bool = False
    forgets: bool = False


KINDS: dict[str, Kind] = {}


def kind(name: str, *, of_server: bool = False, forgets: bool = False) -> Callable[[Strike], Strike]:
    """Declares a kind of fault."""

    def declared(strike: Strike) -> Strike:
        KINDS[name] = Kind(strike, of_server, forgets)
        return strike

    return declared


def strike(simulation: Simulation, fault: Fault) -> None:
    """It happens now; what is dead already, down, or stands still is left alone."""
    process = simulation.processes[fault.who % len(simulation.processes)]
    which = KINDS[fault.kind]
    if simulation.server.is_up if which.of_server else not (process.is_dead or process.stands_still):
        simulation.note_fault(fault)
        which.strike(simulation, process, simulation.world.random(f"fault {fault.number}"))


def drawn(
    numbers: random.Random, kinds: tuple[str, ...], *, every_s: float, lasts_s: float, processes: int
) -> list[Fault]:
    """Faults of these kinds, one after another, as often as that on the average."""
    faults: list[Fault] = []
    at_s = 1.0
    while kinds and (at_s := at_s + numbers.expovariate(1 / every_s)) < lasts_s:
        faults.append(Fault(numbers.choice(kinds), numbers.randrange(processes), at_s, number=len(faults)))
    return faults


# Processes.


@kind("kill")
def _kill(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    simulation.kill(process, tells=True, back_in_s=numbers.uniform(0.1, 3.0))


@kind("power")
def _power(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """Nobody is told of its death. Whoever stood first in line there goes on counting as heard for a while."""
    simulation.kill(process, tells=False, back_in_s=numbers.uniform(0.1, 3.0))


@kind("freeze")
def _freeze(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    for_s = numbers.choice((0.03, 0.5, 3.0)) * numbers.random()
    simulation.instance_fault("freeze", process, for_s)
    process.freeze(for_s)


@kind("suspend")
def _suspend(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    for_s = numbers.uniform(0.1, 3.0)
    simulation.instance_fault("suspend", process, for_s)
    process.suspend(for_s)


@kind("close")
def _close(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """It closes its Locker in the middle of everything, and ends; another one takes its place."""
    simulation.close(process, waits_s=numbers.choice((0.0, 1.0)), back_in_s=numbers.uniform(0.5, 3.0))


# Connections.


def _some(process: Process, numbers: random.Random) -> list[Connection]:
    connections = sorted(process.connections, key=lambda connection: connection.number)
    if len(connections) > 1 and numbers.random() < 0.6:
        return [numbers.choice(connections)]
    return connections


@kind("reset")
def _reset(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    simulation.link_fault("reset", process, 0.0)
    for connection in _some(process, numbers):
        connection.reset()


@kind("stall")
def _stall(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """Segments get lost and are sent again: late, and everything behind them too."""
    up_s, down_s = numbers.choice(((0.0, 1.0), (1.0, 0.0), (0.6, 0.6), (0.1, 0.1)))
    up_s, down_s = up_s * 1.2 * numbers.random(), down_s * 1.2 * numbers.random()
    simulation.link_fault("stall", process, max(up_s, down_s))
    for connection in _some(process, numbers):
        connection.up.stall(up_s)
        connection.down.stall(down_s)


@kind("late")
def _late(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """A connection ends, and what was sent over it is carried out late, for nobody."""
    for_s = numbers.choice((0.05, 0.5, 1.5)) * numbers.random()
    simulation.link_fault("late", process, for_s)
    for connection in _some(process, numbers):
        connection.cut_off(for_s)


@kind("half-open")
def _half_open(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """One way is silent, the other is not, and nobody is told."""
    up = numbers.random() < 0.5
    simulation.link_fault("half-open", process, 1.0)
    for connection in _some(process, numbers):
        connection.cut(up=up, down=not up)


@kind("black-hole")
def _black_hole(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """Nothing comes through, and no new connection does either, for a while."""
    for_s = numbers.uniform(0.2, 3.0)
    simulation.link_fault("black-hole", process, for_s + 1.0)
    connections = _some(process, numbers)
    if len(connections) > 1:
        process.cut_off_until_s = simulation.world.now_s + for_s
    for connection in connections:
        connection.cut()


# The server.


@kind("pause", of_server=True)
def _pause(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    for_s = numbers.choice((0.03, 0.3, 1.5)) * numbers.random()
    simulation.server_fault("pause", for_s)
    simulation.server.pause(for_s)


@kind("restart", of_server=True)
def _restart(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """It comes back with all its data."""
    simulation.crash("restart", down_s=numbers.choice((0.02, 0.3, 2.0)) * numbers.random(), data=None)


@kind("lose", of_server=True, forgets=True)
def _lose(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """It comes back with nothing."""
    simulation.crash("lose", down_s=numbers.choice((0.02, 0.3, 2.0)) * numbers.random(), data=NOTHING)


@kind("failover", of_server=True, forgets=True)
def _failover(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """A replica takes its place that has not heard of the last moments."""
    data, lag_s = simulation.server.snapshot(), numbers.uniform(0.0, 0.6)
    down_s = numbers.choice((0.02, 0.3, 2.0)) * numbers.random()
    simulation.world.at(
        simulation.world.now_s + lag_s,
        simulation.server,
        lambda: simulation.crash("failover", down_s=down_s, data=data),
    )


@kind("flush", of_server=True, forgets=True)
def _flush(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    simulation.server_fault("flush", 0.0, forgets=True)
    simulation.server.flush()


@kind("evict", of_server=True, forgets=True)
def _evict(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """It is short of memory, and drops a key: any."""
    simulation.server_fault("evict", 0.0, forgets=True)
    simulation.server.evict(numbers)


@kind("script-flush", of_server=True)
def _script_flush(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    simulation.recording.fault("script-flush", "scripts:redis", lasts_s=0.0, forgets=False)
    simulation.server.model.forgets_scripts()


@kind("tracking-flush", of_server=True)
def _tracking_flush(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """Its table of watched keys is full, and it drops them."""
    simulation.recording.fault("tracking-flush", "tracking:redis", lasts_s=QUIET_S, forgets=False)
    simulation.server.model.forgets_tracking()


@kind("clock-forward", of_server=True, forgets=True)
def _clock_forward(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    _set_clock(simulation, numbers.choice((0.01, 1.0, 3600.0)) * numbers.random())


@kind("clock-back", of_server=True, forgets=True)
def _clock_back(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    _set_clock(simulation, -numbers.choice((0.01, 1.0, 3600.0)) * numbers.random())


def _set_clock(simulation: Simulation, ahead_s: float) -> None:
    simulation.clock_fault("clock", ahead_s)
    simulation.server.set_clock(ahead_s)


@kind("refuse", of_server=True)
def _refuse(simulation: Simulation, process: Process, numbers: random.Random) -> None:
    """It is there, and says that it cannot."""
    refusal, for_s = numbers.choice(list(Refusal)), numbers.uniform(0.0, 0.8)
    simulation.server_fault(f"refuse {refusal}", for_s)
    simulation.server.refuse(refusal, for_s=for_s)
