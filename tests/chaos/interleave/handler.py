"""One handler: the product's own use case in a thread and an event loop of its own, standing still where it is told to.

Its whole loop stands, as a frozen process does. Its death is that of a process: connections reset, nothing cleared up.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NamedTuple

from db.charging import Charges
from db.database import DatabaseLimits
from db.decisions import Payer, Rules
from db.events import Committed, Committing, Decided, RowsLocked
from locks import Locker
from locks.events import Acquired, GaveUp, Lost, Released, Releasing, Waiting
from locks.store import QueueLimits
from service.charged import ChargedAppointments
from service.charging import Charging
from service.entering import Entering, EntryRequest
from service.outage import ProceedOnRowLock
from service.participants import KnownParticipants
from service.rtc_token import RoomTokenMint
from service.shares import Limit

from .mortal_loop import MortalLoop
from .scenes import Ask

LONG_S = 60.0  # nothing here is decided by a clock: what would end by time outlasts every order
NOWHERE = "redis://127.0.0.1:1/0"
POINTS: dict[type, str] = {
    Waiting: "waiting",
    Acquired: "acquired",
    GaveUp: "gave_up",
    Lost: "lost",
    Releasing: "releasing",
    Released: "released",
    RowsLocked: "rows_locked",
    Decided: "decided",
    Committing: "committing",
    Committed: "committed",
}


class Report(NamedTuple):
    """What a handler has to say. `stands`: it goes on when told to."""

    handler: Handler
    point: str
    event: Any
    stands: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Where a handler finds its servers; without `redis_url` the lock store is out of reach."""

    database_url: str
    database_port: int
    redis_url: str | None


@dataclass(slots=True)
class Answer:
    """What became of one entry. `outcome` is the refusal's class where it was refused."""

    ask: Ask
    handler: int
    outcome: str
    charge_id: int | None = None
    payer_id: int | None = None
    entered_at: Any = None


@dataclass(slots=True)
class Part:
    """What a handler is to do in one order, and what it has answered."""

    number: int
    asks: Sequence[Ask]
    stops: Collection[str]
    dies_at: str | None = None
    answers: list[Answer] = field(default_factory=list)


class Handler:
    """Reports go to `reports`: ready, start, each event of the product, done, died, failed."""

    def __init__(self, servers: Servers, reports: SimpleQueue[Report]) -> None:
        self._servers = servers
        self._reports = reports
        self._gate: SimpleQueue[None] = SimpleQueue()
        self._loop = MortalLoop()
        self._end = asyncio.Event()
        self._held_count = 0
        self._released = asyncio.Event()
        self.part = Part(-1, (), ())
        self.ports: list[int] = []  # our ends of the connections to Postgres
        self.sessions: list[int] = []  # the pids at their other ends, once somebody has looked
        self.lease_ids: set[str] = set()  # of the lease that it has not released
        self._thread = threading.Thread(target=self._run, name="handler", daemon=True)
        self.is_ready = threading.Event()
        self.failure: BaseException | None = None
        self._thread.start()

    def enter(self, part: Part) -> None:
        """Begins a part; stands at "start" first."""
        self.part = part
        self._loop.call_soon_threadsafe(self._begin)

    def go_on(self) -> None:
        """From the point where it stands."""
        self._gate.put(None)

    def close(self) -> None:
        """Ends it in good order, unless it is dead; returns when its thread is gone."""
        self.part.stops = ()
        self._gate.put(None)  # where it stands, it goes on to the end
        with suppress(RuntimeError):  # its loop is closed already
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(LONG_S)
        assert not self._thread.is_alive(), "a handler's thread is still there"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda loop, context: None)
        main = self._loop.create_task(self._live())
        try:
            self._loop.run_until_complete(main)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.failure = error
            self._tell("failed", error)
        finally:
            self.is_ready.set()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _live(self) -> None:
        redis_url = self._servers.redis_url
        locker = self._locker = _locker(redis_url, f"handler-{id(self)}", self._on_event)
        charges = _charges(self._servers.database_url, self._on_event)
        charging = _charging(charges)
        self._entering = _entering(locker, charging, charges)
        await locker.open()
        if redis_url is not None:
            assert await locker.up_within(LONG_S)
        try:
            await charges.charged_among([0])  # its connection is there from now on
            self.is_ready.set()
            await self._end.wait()
        finally:
            if self._loop.is_dead:
                await self._clear_away()
            await charging.close()
            await locker.close()

    async def _clear_away(self) -> None:
        """What a process takes with it when it dies."""
        me = asyncio.current_task()
        while others := [task for task in asyncio.all_tasks() if task is not me]:
            for task in others:
                task.cancel()
            await asyncio.wait(others)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._play(self.part))

    async def _play(self, part: Part) -> None:
        self.ports = self._loop.local_ports(self._servers.database_port)
        self._at("start", None)
        part.answers.extend(await asyncio.gather(*[self._enter(part, ask) for ask in part.asks]))
        while self._held_count:
            self._released.clear()
            await self._released.wait()
        self._tell("done", None)

    async def _enter(self, part: Part, ask: Ask) -> Answer:
        try:
            entered = await self._entering.enter(EntryRequest(ask.appointment_id, ask.user_id))
        except Exception as error:
            return Answer(ask, part.number, type(error).__name__)
        entry = entered.timed.entry
        answer = Answer(ask, part.number, entry.outcome.value, entered_at=entry.entered_at)
        if entry.charge is not None:
            answer.charge_id, answer.payer_id = entry.charge.id, entry.charge.payer_id
        return answer

    def _on_event(self, event: object) -> None:
        point = POINTS.get(type(event))
        if point is None or self._loop.is_dead:
            return
        if point == "acquired":
            self._held_count += 1
            self.lease_ids = {lease.known_as for lease in self._locker.held}
        elif point in ("released", "lost"):
            self._held_count -= 1
            self.lease_ids = set()
            self._released.set()
        self._at(point, event)

    def _at(self, point: str, event: object) -> None:
        part = self.part
        stands, dies = point in part.stops, point == part.dies_at
        self._tell(point, event, stands=stands and not dies)
        if dies:
            self._die()
        elif stands:
            self._gate.get()
        if point == "committing" and part.dies_at == "commit_sent":
            self._loop.call_soon(self._die)  # by then what goes out next is on the wire

    def _die(self) -> None:
        self._loop.die()
        self._tell("died", None)
        self._end.set()

    def _tell(self, point: str, event: object, *, stands: bool = False) -> None:
        self._reports.put(Report(self, point, event, stands))


def _locker(redis_url: str | None, instance_id: str, listener: Callable[[object], None]) -> Locker:
    return Locker(
        redis_url or NOWHERE,
        instance_id=instance_id,
        command_timeout_s=LONG_S,
        outage_wait_s=None if redis_url else 0.0,
        queue_limits=QueueLimits(claim_ms=int(LONG_S * 1000)),
        listener=listener,
    )


def _charges(database_url: str, listener: Callable[[object], None]) -> Charges:
    limits = DatabaseLimits(
        connect_timeout_s=LONG_S,
        statement_timeout_s=LONG_S,
        row_lock_timeout_s=LONG_S,
        idle_in_transaction_timeout_s=LONG_S,
    )
    return Charges(database_url, Rules(Payer.ENTRANT, default_price=1), limits=limits, listener=listener)


def _charging(charges: Charges) -> Charging:
    """One thing at a time: then a handler that waits for a lock does nothing else meanwhile."""
    return Charging(
        charges,
        lanes=1,
        solo_lanes=1,
        repeat_lanes=1,
        batch_size=64,
        places=Limit("charges", 64, caller_share=1.0),
        timeout_s=LONG_S,
        on_batch=lambda size: None,
        on_entries=lambda entries: None,
    )


def _entering(locker: Locker, charging: Charging, charges: Charges) -> Entering:
    return Entering(
        locker,
        charging,
        ChargedAppointments(charges, size=64, on_found=lambda appointment_id: None),
        KnownParticipants(charges, size=64),
        RoomTokenMint("0" * 32, "1" * 32, 60),
        ProceedOnRowLock(concurrent=64, waiting=0, caller_share=1.0),
        lease_ttl_s=LONG_S,
        lock_wait_s=LONG_S,
        on_stale_holder=lambda name, token: None,
    )
