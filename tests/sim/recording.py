"""What happens in a run, as a history of tests.chaos.history's form, with true times, which no real process knows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from locks import events as locks
from locks.events import LockEvent
from locks.for_whom import read_for_whom
from locks.lease import Lease
from locks.locker import Locker
from tests.chaos.history import Event, in_order
from tests.sim.process import Process
from tests.sim.world import World

POINTS: dict[type, str] = {
    locks.Waiting: "waiting",
    locks.Acquired: "acquired",
    locks.Adopted: "adopted",
    locks.Extended: "extended",
    locks.Unknown: "unknown_renewal",
    locks.Lost: "lost",
    locks.Releasing: "releasing",
    locks.Released: "released",
    locks.GaveUp: "gave_up",
    locks.Exported: "exported",
    locks.Forced: "forced",
    locks.StoreUp: "store_up",
    locks.StoreLost: "store_lost",
}
BEGINS_HOLD = frozenset({locks.Acquired, locks.Adopted})
ENDS_HOLD = frozenset({locks.Lost, locks.Releasing, locks.Exported})
# Of a lease that is lent its keeper tells too, which does not hold it.
OF_KEEPER = "keeper_"
CHOSEN = "chosen"  # the request of whoever chooses its lease's id
LONGEST_RUN_S = 0.06
# What a caller asks for, by its number: in its own task, and in what that begins.
ASK: ContextVar[int | None] = ContextVar("ask", default=None)


def ns(at_s: float) -> int:
    """A time of the world as a history has it."""
    return round(at_s * 1e9)


class Held(NamedTuple):
    """A lease that a process acts under. `ends_s`: by its own clock, in true seconds.

    `grant_fence`: the server may know it by the id of an earlier turn of its run, but that grant has this token.
    """

    name: str
    fence: int | None
    grant_fence: int | None
    lease_id: str
    ends_s: float


class Recording:
    """The history of one run."""

    def __init__(self, world: World, **run: Any) -> None:
        """`run`: what the checkers are to know of it beforehand."""
        self._world = world
        self._events: list[Event] = []
        self._faults = 0
        self._asks = itertools.count(1)
        self.healed_s = 0.0  # when the last fault so far is over
        self.write("run", 0.0, version=1, exact=True, **run)

    @property
    def events(self) -> list[Event]:
        """Everything so far, in the order of time."""
        return in_order(self._events)

    def write(self, e: str, at_s: float, **facts: Any) -> None:
        """An event of kind `e`."""
        event = {"e": e, "t": ns(at_s), **facts}
        self._events.append(event)
        self._world.note(repr(event))

    def new_ask(self) -> int:
        """A number for what somebody asks for."""
        return next(self._asks)

    def point(self, process: Process, p: str, at_s: float | None = None, **facts: Any) -> None:
        """Something that a process does; now, or has done some time before."""
        if not process.is_dead:
            self.write(
                "point", process.now_s if at_s is None else at_s, p=p, i=process.name, life=process.life, **facts
            )

    def stood_still(self, process: Process, from_s: float, to_s: float, *, suspended: bool = False) -> None:
        """A process did nothing at all; `suspended`: nor did its timers."""
        span = {"from": ns(from_s), "to": ns(to_s)}
        self.write("stall", to_s, i=process.name, life=process.life, suspended=suspended, **span)

    def unhandled(self, process: Process, what: str) -> None:
        """A process' event loop was told of an exception that nobody takes."""
        self.write("unhandled", process.now_s, i=process.name, life=process.life, error=what)

    def failed(self, process: Process, what: str) -> None:
        """A process' script ended by an error of its own."""
        self.write("failed", process.world.now_s, i=process.name, life=process.life, error=what)

    def fault(self, kind: str, scope: str, *, lasts_s: float, forgets: bool, from_s: float | None = None) -> None:
        """A fault begins, and how long it lasts is known."""
        began_s = self._world.now_s if from_s is None else from_s
        self._faults += 1
        self.healed_s = max(self.healed_s, began_s + lasts_s)
        self.write(
            "fault", began_s, id=self._faults, kind=kind, scope=scope, targeted=False, point=None, forgets=forgets
        )
        self.write("healed", began_s + lasts_s, id=self._faults, kind=kind)

    def dies(self, process: Process, held: list[Held]) -> None:
        """A process is dead now. What it did in a tick that its death cut short was never done."""
        at_s = self._world.now_s
        self._events = [
            event
            for event in self._events
            if not (event["t"] > ns(at_s) and event.get("i") == process.name and event["e"] == "point")
        ]
        self._ends_of(process, held, at_s)

    def closing(self, process: Process, held: list[Held]) -> None:
        """A process closes its Locker, and hears of nothing from now on."""
        self._ends_of(process, held, process.now_s)
        self.write("closing", process.now_s, i=process.name, life=process.life)

    def _ends_of(self, process: Process, held: list[Held], at_s: float) -> None:
        """When each lease is over, as the process knows by now: a turn is confirmed without a point."""
        who = {"i": process.name, "life": process.life}
        for name, fence, _, _, ends_s in held:
            self.write("point", at_s, p="extended", **who, name=name, fence=fence, until=ns(ends_s))

    def died(self, process: Process, held: list[Held], left_ms: list[float], *, silent: bool) -> None:
        """A process was dead then, with so much left of each lease at the server; `silent`: which was not told."""
        told = [
            {"name": each.name, "fence": each.fence, "left_ms": left} for each, left in zip(held, left_ms, strict=True)
        ]
        self.write("died", process.died_at_s, i=process.name, life=process.life, silent=silent, held=told)


class Ears:
    """The listener of one life of one process' Locker."""

    def __init__(
        self,
        recording: Recording,
        process: Process,
        lock_ends_s: Callable[[str, str], float],
        left_s: Callable[[str, int], float],
    ) -> None:
        """`lock_ends_s`: when a lock that is held under an id is over at the server, by true time; `left_s`: how much
        is left there of a lease that has it under a token."""
        self._recording = recording
        self._lock_ends_s, self._left_s = lock_ends_s, left_s
        self._process = process
        self._locker: Locker | None = None
        self._leases: dict[tuple[str, int], Lease] = {}
        self._began_s: dict[tuple[str, int], float] = {}
        self._left: dict[tuple[str, int], Lease] = {}  # whose release may still be answered

    def belong_to(self, locker: Locker) -> None:
        """The locker that is heard, as soon as there is one."""
        self._locker = locker

    def hear(self, event: LockEvent) -> None:
        """As a Locker's listener."""
        kind = event.__class__
        point = POINTS.get(kind)
        if point is None or self._process.is_dead:
            return
        name, fence = getattr(event, "name", None), getattr(event, "fencing_token", None)
        facts: dict[str, Any] = {} if name is None else {"name": name}
        if name is not None and fence is not None:
            facts["fence"] = fence
            is_holders, end = self._end_of(kind, name, fence)
            facts |= end
            if not is_holders:
                point = OF_KEEPER + point
                facts["left_ms"] = 1000 * self._left_s(name, fence)
        if isinstance(event, locks.Acquired):
            facts |= {"queued": event.queued, "waited_s": event.waited_s, "wake": event.wake_source.value}
            facts["takeover"] = event.takeover
        elif isinstance(event, locks.Waiting):
            facts |= {"ask": ask} if (ask := ASK.get()) is not None else {}
        elif isinstance(event, locks.Released):
            facts |= {"still_ours": event.still_ours, "handed_over": event.handed_over}
        elif isinstance(event, locks.GaveUp):
            facts |= {"outcome": event.outcome, "queued": event.queued, "waited_s": event.waited_s}
        elif isinstance(event, locks.Lost):
            facts["reason"] = event.reason.value
        self._recording.point(self._process, point, **facts)
        if isinstance(event, locks.Acquired):
            self._pass_on(event)

    def _pass_on(self, event: locks.Acquired) -> None:
        """A lease for a client who has chosen its id: the process does nothing under it itself."""
        key = event.name, event.fencing_token
        lease = self._leases.get(key)
        if lease is not None and read_for_whom(lease.for_whom).request_id == CHOSEN:
            del self._leases[key]
            until = self._process.true_s(lease.deadline_s)
            kept_until = max(until, self._process.now_s + lease.lease_ttl_s + LONGEST_RUN_S)
            self._recording.point(
                self._process,
                "exported",
                name=event.name,
                fence=event.fencing_token,
                until=ns(until),
                kept_until=ns(kept_until),
            )

    @property
    def held(self) -> list[Held]:
        """Each lease that the process acts under; not one that is over by its clock, as it has yet to notice."""
        now_s = self._process.own_s(self._process.world.now_s)
        return [
            Held(name, fence, lease.grant_fence, lease.known_as, self._process.true_s(lease.deadline_s))
            for (name, fence), lease in self._leases.items()
            if not lease.ended and lease.deadline_s > now_s
        ]

    def lease_known_as(self, name: str, lease_id: str) -> Lease | None:
        """The lease that the process acts under by this id, if it does."""
        for lease in self._leases.values():
            if lease.known_as == lease_id and lease.name == name and not lease.ended:
                return lease
        return None

    def sweep(self, name: str | None = None) -> None:
        """Writes down the end of what was handed out on a lock (None: any) without a word: lent, it is its client's."""
        for key, lease in list(self._leases.items()):
            if name in (key[0], None) and lease.ended:
                del self._leases[key]
                ends_s = self._process.true_s(lease.deadline_s)
                self._recording.point(
                    self._process,
                    "exported",
                    max(self._began_s.pop(key), min(self._process.now_s, ends_s)),
                    name=name,
                    fence=key[1],
                    until=ns(ends_s),
                )

    def _end_of(self, kind: type, name: str, fence: int) -> tuple[bool, dict[str, int]]:
        """Whether the event is of a lease that this process holds, or has just left; and the end of that one."""
        key = name, fence
        if kind is locks.Adopted and key in self._leases:
            return False, {}  # as their keeper: it has lent the lease, and does not know yet
        if kind in BEGINS_HOLD and self._locker is not None:
            for held in self._locker.held:
                if (held.name, held.fencing_token) == key:
                    self._leases[key], self._began_s[key] = held, self._process.now_s
        lease = self._leases.get(key)
        if kind is locks.Released:
            return self._left.pop(key, None) is not None, {}
        if kind in ENDS_HOLD and lease is not None:
            self._left[key] = self._leases.pop(key)
        if lease is None:
            return kind in (locks.Forced, locks.Unknown), {}
        facts = {"until": ns(self._process.true_s(lease.deadline_s))}
        if kind is locks.Exported:
            kept_until_s = self._lock_ends_s(name, lease.known_as)
            if lease.is_unconfirmed or lease.unanswered:
                # What was asked for and is not answered yet gives it as much at the server.
                kept_until_s = max(kept_until_s, self._process.now_s + lease.lease_ttl_s + LONGEST_RUN_S)
            facts["kept_until"] = ns(kept_until_s)
        return True, facts
