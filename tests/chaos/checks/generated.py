"""A good history of any size, from a seed: what a run of the product looks like when every property holds."""

from __future__ import annotations

from itertools import cycle
from random import Random
from typing import Any

from tests.chaos.checks.evidence import Event
from tests.chaos.checks.histories import LEASE_TTL_S, MS, HandWritten

INSTANCES = 3
GRANTED = 1_000_000
TTL_MS = LEASE_TTL_S * 1000
USERS = 50
PENNILESS = 10_000  # users from here on have no coupons


def generated(seed: int, *, operations: int) -> list[Event]:
    """A history of at least so many operations, in the order of time."""
    run = _Run(seed)
    while run.operation_count < operations:
        run.block()
    return run.finish()


class _Run:
    """One block of time after the other: many appointments without a fault, or one with a fault of its own."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self._history = HandWritten()
        self._now_ms = 10.0
        self._appointment = 0
        self._fault = 0
        self._lives = dict.fromkeys(range(1, INSTANCES + 1), 1)
        self._spent = dict.fromkeys(range(1, USERS + 1), 0)
        self._charges: list[list[Any]] = []
        self._entries: list[list[Any]] = []
        self._flags: list[list[Any]] = []
        self._writes: list[list[Any]] = []
        self._faults = cycle((self._killed, self._frozen, self._flushed, self._written))
        self._unknown_share = 0.05
        self.operation_count = 0

    def block(self) -> None:
        """Some more operations."""
        kind = self._rng.random()
        if kind < 0.7:
            for _ in range(30):
                self._plain(self._now_ms + self._rng.uniform(0, 20))
            self._now_ms += 200
        else:
            next(self._faults)(self._now_ms)
            self._now_ms += 5 * TTL_MS
        spent = sum(self._spent.values())
        granted = GRANTED * USERS
        left = granted - spent
        lowest = GRANTED - max(self._spent.values())
        self._history.event(
            "snapshot", at_ms=self._now_ms - 1, granted=granted, spent=spent, left=left, lowest=lowest, deadlocks=0
        )

    def finish(self) -> list[Event]:
        """The end of the run: all healed, the tables, nothing left."""
        history = self._history
        history.event("healing", at_ms=self._now_ms)
        self._unknown_share = 0.0
        for _ in range(10):
            self._now_ms += TTL_MS / 2
            self._plain(self._now_ms)
        left = {"waiters": 0, "idle_transactions": 0, "sessions": 0, "threads": 0}
        history.event("left", at_ms=self._now_ms + 3000, keys=[], processes=[], **left)
        history.table("user_consume", *self._charges).table("appointment_action", *self._entries)
        history.table("appointment_info", *self._flags)
        history.table("coupon_grant", *([user, GRANTED, f"at the start {user}"] for user in self._spent))
        history.table("user_coupon", *([user, GRANTED - spent] for user, spent in self._spent.items()))
        history.table("chaos_register_log", *self._writes)
        history.event("end", why="time")
        return history.events

    def _plain(self, at_ms: float) -> None:
        """An appointment that is charged once, by an operation that may stay unknown, and entered some more times."""
        rng, history = self._rng, self._history
        appointment, payer, other = self._next_appointment()
        if rng.random() < 0.1:
            refused = self._invoke(appointment, PENNILESS, at_ms - 3)
            history.refused(refused, "insufficient-coupons", at_ms=at_ms - 1)
        if rng.random() < self._unknown_share:
            self._unknown(appointment, payer, at_ms - 1, is_done=False)
        op = self._invoke(appointment, payer, at_ms)
        holder = rng.randint(1, INSTANCES)
        fence = self._held(holder, appointment, at_ms + 1, at_ms + 6)
        self._waited(holder % INSTANCES + 1, appointment, at_ms + 2, at_ms + 8)
        charge_id = self._charge(appointment, payer, fence)
        if rng.random() < self._unknown_share:
            history.unknown(op, at_ms=at_ms + 50)
        else:
            history.charged(op, charge_id=charge_id, payer=payer, at_ms=at_ms + 8)
        for turn in range(rng.randint(1, 4)):
            self._again(appointment, rng.choice((payer, other)), charge_id, payer, at_ms + 9 + 3 * turn)

    def _again(self, appointment: int, user: int, charge_id: int, payer: int, at_ms: float) -> None:
        if self._rng.random() < self._unknown_share:
            self._unknown(appointment, user, at_ms, is_done=self._rng.random() < 0.5)
            return
        op = self._invoke(appointment, user, at_ms)
        self._enter(appointment, user)
        self._history.already(op, charge_id=charge_id, payer=payer, at_ms=at_ms + 2)

    def _killed(self, at_ms: float) -> None:
        """The holder dies before its COMMIT; another instance, which waits, takes over and charges."""
        history, name, (appointment, payer, other), (dying, heir) = self._history, *self._stage()
        fence, rest_ms = self._fence(at_ms + 1), TTL_MS - 20
        doomed = self._invoke(appointment, payer, at_ms)
        life = self._lives[dying]
        history.point("acquired", dying, at_ms=at_ms + 1, life=life, name=name, fence=fence, queued=False)
        op = self._invoke(appointment, other, at_ms + 2)
        history.point("waiting", heir, at_ms=at_ms + 3, life=self._lives[heir], name=name)
        held = [{"name": name, "fence": fence, "left_ms": rest_ms, "waiters": 1}]
        self._begin_fault("die", dying, "rows_locked", at_ms + 20)
        history.event("died", at_ms=at_ms + 21, i=dying, life=life, pid=100 + life, held=held)
        self._lives[dying] += 1
        history.event("born", at_ms=at_ms + 70, i=dying, life=life + 1, pid=101 + life)
        self._heal("die", at_ms + 71)
        history.unknown(doomed, at_ms=at_ms + 30)
        taken_ms = at_ms + 21 + rest_ms + self._rng.uniform(0.5, 20)
        heirs_fence = self._held(heir, appointment, taken_ms, taken_ms + 5, queued=True, takeover=True)
        charge_id = self._charge(appointment, other, heirs_fence)
        history.charged(op, charge_id=charge_id, payer=other, at_ms=taken_ms + 7)

    def _frozen(self, at_ms: float) -> None:
        """The holder stands still for longer than its lease, so another one charges; then it hears of it."""
        history, name, (appointment, payer, other), (frozen, heir) = self._history, *self._stage()
        fence, life = self._fence(at_ms + 1), self._lives[frozen]
        late, op = self._invoke(appointment, payer, at_ms), self._invoke(appointment, other, at_ms + 2)
        history.point("acquired", frozen, at_ms=at_ms + 1, life=life, name=name, fence=fence, queued=False)
        self._begin_fault("freeze", frozen, "decided", at_ms + 5)
        heirs_fence = self._held(heir, appointment, at_ms + TTL_MS + 3, at_ms + 1.5 * TTL_MS)
        self._heal("freeze", at_ms + 1.4 * TTL_MS)
        stall = {"from": round((at_ms + 4) * MS), "to": round((at_ms + 1.4 * TTL_MS + 1) * MS)}
        history.event("stall", at_ms=at_ms + 1.4 * TTL_MS + 1, i=frozen, life=life, **stall)
        history.point(
            "lost", frozen, at_ms=at_ms + 1.4 * TTL_MS + 2, life=life, name=name, fence=fence, reason="expired"
        )
        charge_id = self._charge(appointment, other, heirs_fence)
        history.charged(op, charge_id=charge_id, payer=other, at_ms=at_ms + 1.5 * TTL_MS + 2)
        history.already(late, charge_id=charge_id, payer=other, at_ms=at_ms + 1.5 * TTL_MS + 4)
        self._enter(appointment, payer)

    def _flushed(self, at_ms: float) -> None:
        """The store is emptied while a lock is held, so another one gets it as well."""
        history, _, (appointment, payer, other), (robbed, heir) = self._history, *self._stage()
        op, second = self._invoke(appointment, payer, at_ms), self._invoke(appointment, other, at_ms + 1)
        fence = self._held(robbed, appointment, at_ms + 2, at_ms + 40, still_ours=False)
        self._fault += 1
        history.fault(self._fault, "flush", "redis", from_ms=at_ms + 4, to_ms=at_ms + 9, point="committing")
        self._held(heir, appointment, at_ms + 8, at_ms + 50)
        charge_id = self._charge(appointment, payer, fence)
        history.charged(op, charge_id=charge_id, payer=payer, at_ms=at_ms + 42)
        self._enter(appointment, other)
        history.already(second, charge_id=charge_id, payer=payer, at_ms=at_ms + 52)

    def _written(self, at_ms: float) -> None:
        """Two leases over HTTP; the first one's holder writes late, and is refused."""
        history = self._history
        name = f"job:{self._rng.randint(1, 3)}"
        fences = []
        for client, begin_ms in (("http-1", at_ms + 1), ("http-2", at_ms + TTL_MS + 5)):
            fences.append(self._fence(begin_ms))
            until = round((begin_ms + TTL_MS - 5) * MS)
            history.point("acquired", client, at_ms=begin_ms, name=name, fence=fences[-1], until=until)
        for fence, write_ms, accepted in (
            (fences[0], at_ms + 9, True),
            (fences[1], at_ms + TTL_MS + 9, True),
            (fences[0], at_ms + TTL_MS + 20, False),
        ):
            op = self._next_op()
            history.event("invoke", at_ms=write_ms, op=op, f="write", name=name)
            self._writes.append([len(self._writes) + 1, name, fence, op, accepted])
            if accepted:
                history.event("ok", at_ms=write_ms + 2, op=op, status=200)
            else:
                history.refused(op, "stale", at_ms=write_ms + 2)

    def _stage(self) -> tuple[str, tuple[int, int, int], tuple[int, int]]:
        appointment, payer, other = self._next_appointment()
        first, second = self._rng.sample(range(1, INSTANCES + 1), 2)
        return f"appointment:{appointment}", (appointment, payer, other), (first, second)

    def _held(self, i: int, appointment: int, from_ms: float, to_ms: float, **facts: Any) -> int:
        fence, name, life = self._fence(from_ms), f"appointment:{appointment}", self._lives[i]
        still_ours = facts.pop("still_ours", True)
        acquired = {"queued": False, "waited_s": 0.0005, "takeover": False, **facts}
        self._history.point("acquired", i, at_ms=from_ms, life=life, name=name, fence=fence, **acquired)
        for share, point in ((0.2, "rows_locked"), (0.4, "decided"), (0.6, "committing"), (0.8, "committed")):
            at_ms = from_ms + share * (to_ms - from_ms)
            self._history.point(point, i, at_ms=at_ms, life=life, appointments=[appointment])
        self._history.point("releasing", i, at_ms=to_ms, life=life, name=name, fence=fence)
        released = {"still_ours": still_ours, "handed_over": False}
        self._history.point("released", i, at_ms=to_ms + 1, life=life, name=name, fence=fence, **released)
        return fence

    def _waited(self, i: int, appointment: int, from_ms: float, to_ms: float) -> None:
        """For a lock whose holder is done with the appointment."""
        who: dict[str, Any] = {"life": self._lives[i], "name": f"appointment:{appointment}"}
        self._history.point("waiting", i, at_ms=from_ms, **who)
        self._history.point("gave_up", i, at_ms=to_ms, outcome="dismissed", queued=True, **who)

    def _begin_fault(self, kind: str, i: int, point: str, at_ms: float) -> None:
        self._fault += 1
        facts = {"id": self._fault, "kind": kind, "scope": f"instance:{i}", "targeted": True, "point": point, "i": i}
        self._history.event("fault", at_ms=at_ms, **facts)

    def _heal(self, kind: str, at_ms: float) -> None:
        self._history.event("healed", at_ms=at_ms, id=self._fault, kind=kind)

    def _unknown(self, appointment: int, user: int, at_ms: float, *, is_done: bool) -> None:
        op = self._invoke(appointment, user, at_ms)
        self._history.unknown(op, at_ms=at_ms + 40)
        if is_done:
            self._enter(appointment, user)

    def _charge(self, appointment: int, payer: int, fence: int) -> int:
        charge_id = len(self._charges) + 1
        self._charges.append([charge_id, appointment, payer, 0, 1, fence, ""])
        self._flags.append([appointment, 0, 0, 1, True, fence])
        self._spent[payer] += 1
        self._enter(appointment, payer)
        return charge_id

    def _enter(self, appointment: int, user: int) -> None:
        self._entries.append([len(self._entries) + 1, appointment, user, ""])

    def _invoke(self, appointment: int, user: int, at_ms: float) -> str:
        op = self._next_op()
        self._history.enter(op, appointment, user, at_ms=at_ms)
        return op

    def _next_op(self) -> str:
        self.operation_count += 1
        return f"o{self.operation_count}"

    def _next_appointment(self) -> tuple[int, int, int]:
        self._appointment += 1
        payer, other = self._rng.sample(range(1, USERS + 1), 2)
        return self._appointment, payer, other

    def _fence(self, at_ms: float) -> int:
        return round(at_ms * 1000)
