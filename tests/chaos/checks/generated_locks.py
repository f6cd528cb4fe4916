"""A good exact history of any size, from a seed: what a simulation looks like when every property of locks holds."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.chaos.checks.evidence import Event
from tests.chaos.checks.histories import LEASE_TTL_S, MS, HandWritten

PROCESSES = 5
NAMES = 3
TTL_MS = LEASE_TTL_S * 1000
KEPT_MS = TTL_MS * 0.99 - 2  # of which its holder is certain
RECOVERED_MS = 6000.0


def generated_locks(seed: int, *, events: int) -> list[Event]:
    """A history of at least so many events, in the order of time."""
    run = _Run(seed)
    while run.event_count < events:
        run.block()
    return run.finish()


class _Run:
    """One block of time after the other: a line at a lock, or a fault and what follows from it."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self._history = HandWritten(exact=True)
        self._now_ms = 10.0
        self._fault = self._ask = 0
        self._lives = dict.fromkeys((f"p{number}" for number in range(PROCESSES)), 1)

    @property
    def event_count(self) -> int:
        """So far."""
        return len(self._history.events)

    def block(self) -> None:
        """Some more events."""
        name = f"n:{self._rng.randrange(NAMES)}"
        scenes = (self._stood_still, self._emptied, self._died, self._busy, self._outage)
        scene = self._rng.choice((self._line, self._line, self._line, *scenes))
        second = self._now_ms // 1000
        scene(name, self._now_ms)
        numbers = {"commands": self._rng.randrange(20), "connections": self._rng.randrange(3)}
        self._history.event("asked", at_ms=second * 1000, i=self._process(), **numbers)

    def finish(self) -> list[Event]:
        """The end of it."""
        self._history.event("end", at_ms=self._now_ms + 3 * TTL_MS, why="over")
        return self._history.events

    def _line(self, name: str, at_ms: float) -> None:
        """Many come within a moment of each other, and have it in turn."""
        rng = self._rng
        came_ms = sorted(at_ms + rng.uniform(0, 300) for _ in range(rng.randint(10, 30)))
        free_ms = at_ms
        for each_ms in came_ms:
            i = self._process()
            has_to_wait = free_ms > each_ms
            got_ms = max(free_ms, each_ms) + rng.uniform(0.2, 1)
            self._ask += 1
            waited_s, ask = (got_ms - each_ms) / 1000, {"name": name, "ask": self._ask}
            self._point("invoked", i, each_ms, wait_s=waited_s + rng.uniform(0, 1), **ask)
            if has_to_wait:
                self._point("waiting", i, each_ms + 0.1, **ask)
            self._point("answered", i, got_ms + 0.01, outcome="acquired", waited_s=waited_s, **ask)
            free_ms = got_ms + rng.uniform(1, 60)
            self._leased(i, name, got_ms, free_ms, queued=has_to_wait, waited_s=waited_s)
        self._now_ms = free_ms + 20

    def _stood_still(self, name: str, at_ms: float) -> None:
        """A holder stands still beyond its lease; another has the lock by then."""
        holder, heir = self._rng.sample(sorted(self._lives), 2)
        who = {"name": name, "fence": self._fence(at_ms), "until": round((at_ms + KEPT_MS) * MS)}
        history, awake_ms = self._history, at_ms + 1.5 * TTL_MS
        self._point("acquired", holder, at_ms, queued=False, waited_s=0.001, **who)
        self._point("waiting", heir, at_ms + 50, name=name)
        stall = {"from": round((at_ms + 20) * MS), "to": round(awake_ms * MS)}
        history.event("stall", at_ms=awake_ms, i=holder, life=self._lives[holder], **stall)
        got_ms = at_ms + TTL_MS + 3
        self._leased(heir, name, got_ms, got_ms + 200, queued=True, waited_s=(got_ms - at_ms - 50) / 1000)
        self._point("lost", holder, awake_ms + 2, reason="expired", **who)
        self._now_ms = awake_ms + RECOVERED_MS

    def _emptied(self, name: str, at_ms: float) -> None:
        """The store is emptied, so another has the lock as well, until the first one hears of it."""
        first, second = self._rng.sample(sorted(self._lives), 2)
        self._fault += 1
        self._history.fault(self._fault, "flush", "redis", from_ms=at_ms + 20, to_ms=at_ms + 20, forgets=True)
        self._leased(first, name, at_ms, at_ms + 190, still_ours=False)
        self._leased(second, name, at_ms + 30, at_ms + 90)
        self._now_ms = at_ms + RECOVERED_MS

    def _died(self, name: str, at_ms: float) -> None:
        """A holder dies, and another takes over."""
        holder, heir = self._rng.sample(sorted(self._lives), 2)
        fence = self._fence(at_ms)
        who = {"name": name, "fence": fence, "until": round((at_ms + KEPT_MS) * MS)}
        history, left_ms = self._history, TTL_MS - 100
        self._point("acquired", holder, at_ms, queued=False, waited_s=0.001, **who)
        self._point("waiting", heir, at_ms + 10, name=name)
        lock = {"name": name, "fence": fence, "left_ms": left_ms, "waiters": 1}
        history.event("died", at_ms=at_ms + 100, i=holder, life=self._lives[holder], held=[lock])
        self._lives[holder] += 1
        got_ms = at_ms + TTL_MS + self._rng.uniform(1, 20)
        self._leased(heir, name, got_ms, got_ms + 10, queued=True, waited_s=(got_ms - at_ms - 10) / 1000)
        self._now_ms = got_ms + RECOVERED_MS

    def _busy(self, name: str, at_ms: float) -> None:
        """Somebody asks while another has the lock, which was free before, and does not wait."""
        holder, other = self._rng.sample(sorted(self._lives), 2)
        self._history.event("free", at_ms=at_ms, name=name, since=round(at_ms * MS) - 1)
        self._leased(holder, name, at_ms + 0.1, at_ms + 50)
        self._ask += 1
        ask, facts = {"name": name, "ask": self._ask}, {"outcome": "LockBusy", "waited_s": 0.001}
        self._point("invoked", other, at_ms + 10, wait_s=0, **ask)
        self._point("answered", other, at_ms + 11, **ask, **facts)
        self._now_ms = at_ms + 60
        self._history.event("free", at_ms=self._now_ms, name=name, since=round((at_ms + 50) * MS))

    def _outage(self, name: str, at_ms: float) -> None:
        """Somebody asks while its process has no connection."""
        i = self._process()
        self._point("store_lost", i, at_ms)
        self._ask += 1
        ask, facts = {"name": name, "ask": self._ask}, {"outcome": "LockStoreDown", "waited_s": 0.4}
        self._point("invoked", i, at_ms + 10, wait_s=None, **ask)
        self._point("answered", i, at_ms + 410, **ask, **facts)
        self._point("store_up", i, at_ms + 600)
        self._now_ms = at_ms + 700

    def _leased(
        self,
        i: str,
        name: str,
        from_ms: float,
        to_ms: float,
        *,
        queued: bool = False,
        waited_s: float = 0.0005,
        still_ours: bool = True,
    ) -> None:
        fence, until_ms = self._fence(from_ms), from_ms + KEPT_MS
        facts: dict[str, Any] = {
            "queued": queued,
            "waited_s": waited_s,
            "still_ours": still_ours,
            "life": self._lives[i],
        }
        self._history.leased(i, name, fence, from_ms=from_ms, to_ms=to_ms, until_ms=until_ms, **facts)
        self._point("body_began", i, from_ms + 0.02, name=name, fence=fence, kept_s=TTL_MS / 1000)
        self._point("body_ended", i, to_ms - 0.01, name=name, fence=fence)

    def _point(self, p: str, i: str, at_ms: float, **facts: Any) -> None:
        self._history.point(p, i, at_ms=at_ms, life=self._lives[i], **facts)

    def _process(self) -> str:
        return self._rng.choice(sorted(self._lives))

    def _fence(self, at_ms: float) -> int:
        return round(at_ms * 1000)
