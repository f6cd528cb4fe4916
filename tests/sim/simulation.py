"""One run: processes with real Lockers around a simulated server, what befalls them, and what came of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from locks.locker import Locker
from tests.chaos.checks import Verdict, judge_locks
from tests.chaos.checks.promises import BOOKS_MS
from tests.chaos.history import Event
from tests.sim import faults as fault_kinds
from tests.sim.circumstances import Circumstances
from tests.sim.faults import Fault
from tests.sim.network import Connection
from tests.sim.process import Process
from tests.sim.programs import Program
from tests.sim.recording import Ears, Held, Recording, ns
from tests.sim.redis import Data
from tests.sim.server import Server
from tests.sim.truth import Truth
from tests.sim.world import SOON_S, Entry, World

URL = "redis://127.0.0.1:6379"
UP_WITHIN_S = 2.0
ENDS_WITHIN_S = 40.0  # so long after the end of the work whoever waits still may
SETTLED_AFTER_S = 3.0
LENT = "leases lent"
LEASES_ARE_KEPT_S = 20.0  # after its end a grant is remembered for so long


@dataclass(slots=True)
class Place:
    """One life of a process: its Locker, and what runs there. `index`: 0 for p0. `greets`: no task has begun yet."""

    index: int
    process: Process
    locker: Locker
    ears: Ears
    recording: Recording
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    greets: bool = True
    is_closing: bool = False
    chosen_ids: set[str] = field(default_factory=set)  # that clients have chosen for what it lends them

    @property
    def held(self) -> list[Held]:
        """Each lease that it acts under."""
        return self.ears.held

    def invokes(self, *names: str) -> None:
        """Somebody there asks for these locks."""
        for name in names:
            self.recording.point(self.process, "invoked", name=name)


class Plan(Protocol):
    """What the processes of a run do."""

    lasts_s: float
    lease_s: float  # the longest lease

    def work(self, simulation: Simulation, place: Place) -> Sequence[Coroutine[Any, Any, None]]:
        """What a process does at its beginning, all at once."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run. `checksum`: the same for each repetition."""

    verdicts: list[Verdict]
    checksum: str
    lasted_s: float
    events: int
    commands: int
    history: list[Event]
    missed: tuple[int, ...]  # the events of faults and delays that it did not come to

    @property
    def violations(self) -> list[tuple[str, str]]:
        """The property and an example of each that is broken."""
        return [
            (verdict.property, example.text)
            for verdict in self.verdicts
            if verdict.holds is False
            for example in verdict.examples
        ]


class Simulation:
    """One run of a seed. Everything that is drawn in it follows from that, from the circumstances and from the plan."""

    def __init__(
        self,
        seed: int,
        circumstances: Circumstances,
        plan: Plan,
        faults: Sequence[Fault] = (),
        delays: Sequence[int] = (),
    ) -> None:
        """`delays`: as World.delays."""
        self.world = World(seed)
        self.world.delays = delays
        self.world.matters = self.matters
        self.circumstances = circumstances
        self.plan = plan
        self.is_stopping = False
        self.processes: dict[int, Process] = {}
        self.places: dict[int, Place] = {}
        self.programs: dict[int, Program] = {}
        self.recording = Recording(
            self.world,
            lease_ttl_s=plan.lease_s,
            instances=circumstances.processes,
            longest_delay_s=max(circumstances.weather.longest_s, circumstances.weather.slowest_s)
            + SOON_S * len(delays),
        )
        self._faults = faults
        self._missed: list[int] = []
        self._random = self.world.random("simulation")
        self.server = Server(self.world, rate=self._rate())
        self.server.on_failed = self.recording.failed
        self.truth = Truth(self)
        self.client_numbers = itertools.count(1)
        self._lives = 0
        self._connections = 0

    def run(self) -> Outcome:
        """Everything, to the end and what is left then."""
        try:
            self.begin()
            self._strike_and_run()
            self._end()
        finally:
            self.clean_up()
        events = self.recording.events
        return Outcome(
            judge_locks(events),
            self.world.checksum,
            self.world.now_s,
            self.world.events,
            self.server.commands,
            events,
            missed=(*self._missed, *self.world.delays),
        )

    def begin(self) -> None:
        """Every process is about to start."""
        for index in range(self.circumstances.processes + self.circumstances.programs):
            self.world.at(0.001 * index, self, self.spawn, index)
            self.processes[index] = self._new_process(index)

    def spawn(self, index: int) -> None:
        """A process begins, unless its time is over, or another one has taken its place already."""
        tenant = self.places.get(index) or self.programs.get(index)
        if self.is_stopping or (tenant is not None and not tenant.process.is_dead):
            return
        if self.processes[index].is_dead:
            self.processes[index] = self._new_process(index)
        process = self.processes[index]
        self.recording.write("born", self.world.now_s, i=process.name, life=process.life)
        if index >= self.circumstances.processes:
            self.programs[index] = program = Program(self, process, is_safe=index % 2 == 0)
            process.start(program.run())
            return
        ears = Ears(self.recording, process, self.server.lock_ends_s, self.server.left_s)
        locker = Locker(URL, instance_id=process.name, listener=ears.hear, clock=process.clock())
        ears.belong_to(locker)
        place = self.places[index] = Place(index, process, locker, ears, self.recording)
        process.start(self._main(place))

    def kill(self, process: Process, *, tells: bool, back_in_s: float | None) -> None:
        """It dies now; another one takes its place."""
        index = int(process.name.removeprefix("p"))
        held = self._held_by(index, process)
        if index in self.places:
            self.places[index].ears.sweep()
        process.die(tells=tells)
        self.recording.dies(process, held)
        # What it had sent before its death is still carried out: then it is known what is left of its leases.
        settled_s = self.world.now_s + self._on_the_way_s()
        self.world.at(settled_s, self, self._tell_death, process, held, not tells)
        if back_in_s is not None:
            self.world.at(self.world.now_s + back_in_s, self, self.spawn, index)

    def close(self, process: Process, *, waits_s: float, back_in_s: float) -> None:
        """It closes its Locker while its callers are at work, and then ends."""
        place = next((place for place in self.places.values() if place.process is process), None)
        if place is None or place.is_closing or not place.tasks:
            return
        place.is_closing = True
        self.instance_fault("close", process, back_in_s)
        process.start(self._closing(place, waits_s))
        self.world.at(self.world.now_s + back_in_s, self, self._end_closed, process)

    def may_be_lent(self, name: str, lease_id: str, asked_s: float) -> None:
        """Whoever asked for a lease under this id has not heard that he has it: the history is to know, if he does."""
        self.world.at(self.world.now_s + self._on_the_way_s(), self, self._tell_lent, name, lease_id, asked_s)

    def _tell_lent(self, name: str, lease_id: str, asked_s: float) -> None:
        ends_s = self.server.lock_ends_s(name, lease_id)
        if ends_s > self.server.now_s:
            facts = {"name": name, "kept_until": ns(ends_s)}
            self.recording.write("point", asked_s, p="lent_unheard", i="client", life=0, **facts)

    def _on_the_way_s(self) -> float:
        """For how long at the most what was sent is on its way to the server, without a fault."""
        weather = self.circumstances.weather
        return 2 * max(weather.longest_s, weather.slowest_s) + 0.005

    def matters(self, entry: Entry) -> bool:
        """Whether an event can change anything by its place in the order of its actor's.

        A tick that another has replaced does nothing, the server works in the order in which commands arrived, whenever
        it does, and mostly it finds nothing that is over.
        """
        _, _, actor, happen, arguments = entry
        if isinstance(actor, Process) and happen == actor.tick:
            return actor.will_run(*arguments)
        if actor is self.server:
            return happen != self.server.work and (happen != self.server.expire or self.server.has_something_over())
        return True

    # What faults do, and what the history tells of them.

    def note_fault(self, fault: Fault) -> None:
        """It strikes."""
        self.world.note(f"{self.world.now_s} {fault}")

    def instance_fault(self, kind: str, process: Process, lasts_s: float) -> None:
        """A process does nothing, or not what it should."""
        self.recording.fault(kind, f"instance:{process.name}", lasts_s=lasts_s, forgets=False)

    def link_fault(self, kind: str, process: Process, lasts_s: float) -> None:
        """A process does not reach the server."""
        self.recording.fault(kind, f"link:{process.name}:redis", lasts_s=lasts_s, forgets=False)

    def server_fault(self, kind: str, lasts_s: float, *, forgets: bool = False) -> None:
        """The server does not do what it should."""
        self.recording.fault(kind, "redis", lasts_s=lasts_s, forgets=forgets)

    def clock_fault(self, kind: str, by_s: float) -> None:
        """The server's clock is set."""
        self.recording.fault(f"{kind} {by_s:+.3f} s", "clock:redis", lasts_s=0.0, forgets=True)

    def crash(self, kind: str, *, down_s: float, data: Data | None) -> None:
        """The server goes, and comes back with this data; None: with what it has then."""
        if not self.server.is_up:
            return
        self.server_fault(kind, down_s, forgets=data is not None)
        kept = self.server.snapshot() if data is None else data
        self.server.crash()
        self.world.at(self.world.now_s + down_s, self.server, self.server.start, kept)

    def _tell_death(self, process: Process, held: list[Held], silent: bool) -> None:
        left_ms = [1000 * (self.server.lease_ends_s(each) - process.died_at_s) for each in held]
        self.recording.died(process, held, [max(0.0, left) for left in left_ms], silent=silent)

    def _held_by(self, index: int, process: Process) -> list[Held]:
        for tenants in (self.places, self.programs):
            tenant = tenants.get(index)
            if tenant is not None and tenant.process is process:
                return tenant.held
        return []

    # How it goes.

    def _strike_and_run(self) -> None:
        timed = [fault for fault in self._faults if fault.at_s is not None]
        for fault in timed:
            assert fault.at_s is not None
            self.world.at(fault.at_s, self, fault_kinds.strike, self, fault)
        counted = [(fault.at_event, fault) for fault in self._faults if fault.at_event is not None]
        for at_event, fault in sorted(counted, key=lambda pair: pair[0]):
            self.world.run(until_s=self.plan.lasts_s, events=at_event)
            if self.world.events < at_event:  # it strikes at the end
                self._missed.append(at_event)
            fault_kinds.strike(self, fault)
        self.world.run(until_s=self.plan.lasts_s)

    def _end(self) -> None:
        self.is_stopping = True
        # A clock that was set back is right again: else what has no holder any more lasts for as long as it is behind.
        if ahead_s := self.server.catch_up():
            self.clock_fault("clock", ahead_s)
        for process in self.processes.values():
            process.pause_no_more()
        ends_s = self.world.now_s + ENDS_WITHIN_S
        while self.world.now_s < ends_s and any(self._is_at_work(place) for place in self.places.values()):
            self.world.run(until_s=self.world.now_s + 0.5)
        # Then the last fault is over, connections are back, what is owed is given back, and lent leases have run out.
        self.world.run(until_s=max(self.world.now_s, self.recording.healed_s) + self.plan.lease_s + SETTLED_AFTER_S)
        left = self._left()
        if left and all(LENT in line for line in left):
            # Where the server has forgotten who keeps the books of a lease, these are looked at so often and no more.
            self.world.run(until_s=self.world.now_s + BOOKS_MS / 1000)
            left = self._left()
        for place in self._living():
            place.process.start(place.locker.close())
        self.server.expire_no_more()
        self.world.run(until_s=self.world.now_s + self.plan.lease_s + LEASES_ARE_KEPT_S)
        self.truth.end()
        self.recording.write(
            "left",
            self.world.now_s,
            waiters=left,
            keys=self.server.keys(),
            idle_transactions=0,
            sessions=0,
            threads=0,
            processes=0,
        )

    def _left(self) -> list[str]:
        return [line for place in self._living() for line in left_in(place)]

    def clean_up(self) -> None:
        for process in self.processes.values():
            if not process.is_dead:
                process.die(tells=False)

    def _living(self) -> list[Place]:
        return [place for place in self.places.values() if not place.process.is_dead and not place.is_closing]

    @staticmethod
    def _is_at_work(place: Place) -> bool:
        return not place.process.is_dead and (place.greets or any(not task.done() for task in place.tasks))

    def _rate(self) -> float:
        spread = self.circumstances.rate_spread
        return 1.0 + self._random.uniform(-spread, spread)

    def _new_process(self, index: int) -> Process:
        self._lives += 1
        process = Process(  # type: ignore[abstract]  # what nobody here calls
            self.world,
            self.recording,
            name=f"p{index}",
            life=self._lives,
            rate=self._rate(),
            is_uvloop=self._random.random() < self.circumstances.uvloop_share,
            pauses=(self.circumstances.pauses, 1.5),
        )
        process.dial = self._dial
        return process

    async def _main(self, place: Place) -> None:
        await place.locker.open()
        await place.locker.up_within(UP_WITHIN_S)
        place.tasks = [place.process.start(work) for work in self.plan.work(self, place)]
        place.greets = False

    async def _closing(self, place: Place, waits_s: float) -> None:
        process = place.process
        for task in place.tasks:
            task.cancel()
        if waits_s and place.tasks:
            await asyncio.wait(place.tasks, timeout=waits_s)
        self.recording.closing(process, place.held)
        await place.locker.close()

    def _end_closed(self, process: Process) -> None:
        if not process.is_dead:
            self.kill(process, tells=True, back_in_s=None)
        self.spawn(int(process.name.removeprefix("p")))

    def _dial(self, process: Process, dialed: asyncio.Future[Any]) -> None:
        """A connection to the server, after a round trip; refused, or never, where it is not there."""
        weather, numbers = self.circumstances.weather, self._random

        def arrives() -> None:
            if process.is_dead or self.world.now_s < process.cut_off_until_s:
                return
            connection = None
            if self.server.is_up:
                self._connections += 1
                connection = Connection(self.world, process, self.server, self.server, weather, self._connections)
                self.server.accepts(connection)
            self.world.at(self.world.now_s + weather.delay_s(numbers), process, answered, connection)

        def answered(connection: Connection | None) -> None:
            if process.is_dead or dialed.done():
                if connection is not None:
                    connection.close_from_here()
            elif connection is None:
                dialed.set_exception(ConnectionRefusedError("Connection refused"))
            else:
                dialed.set_result(connection)

        self.world.at(process.now_s + weather.delay_s(numbers), self.server, arrives)


def left_in(place: Place) -> list[str]:
    """What a Locker still has of callers that are all gone."""
    locker = place.locker
    lines, held = locker._lines, locker._held
    kept: dict[str, Callable[[], Any]] = {
        "callers that wait": lambda: lines.waiter_count,
        "lines": lambda: list(lines.by_name),
        "ids of lines": lambda: list(lines._by_lease_id),
        "owed to the server": lambda: len(lines.returns),
        "leases": lambda: [lease.name for lease in held._by_id.values()],
        "leases asked for": lambda: held.asked_for,
        "tasks": lambda: [task.get_name() for task in locker._tasks],
        "leases to be renewed": lambda: [lease.name for slot in locker._renewal._slots.values() for lease in slot],
        LENT: lambda: [loan.name for loan in locker.lending.all],
        "callers at work": lambda: sum(not task.done() for task in place.tasks),
    }
    return [f"{place.process.name}: {what}: {value}" for what, of in kept.items() if (value := of())]
