"""Tells the other instances once a second what this one has seen, off the path of every lock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

from locks import clock
from locks.contention_store import (
    DAY_MS,
    FINE_S,
    HOUR_MS,
    INCIDENTS,
    MINUTE_S,
    MOST_CELL_NAMES,
    MOST_HOLDS_A_LOCK,
    MOST_HOT_A_MINUTE,
    QUARTER_MS,
    Additions,
    ContentionStore,
    cell_key,
    holds_key,
    hot_key,
    slot_key,
)
from locks.errors import LockStoreDown
from locks.histogram import LogHistogram
from locks.locker import Locker
from locks.picture import HeldLock, Picture, lines_of_held, lines_of_waited_for
from locks.pieces import in_pieces
from locks.seen import HotSeen, NotedHold, NotedIncident, Second, Seen

INTERVAL_S = 1.0
WINDOW_SECONDS = 10
HOTTEST = 20
MOST_WAITED_FOR = 50
# The list of locks is made at most as often as costs a fiftieth of this process' time.
LIST_SHARE = 50

AlsoHeld = Callable[[], Iterable[HeldLock]]


class Publisher:
    """One instance's voice. For one event loop."""

    def __init__(
        self,
        locker: Locker,
        seen: Seen,
        *,
        version: str,
        is_draining: Callable[[], bool] = bool,
        also_held: AlsoHeld = tuple,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`also_held`: leases that this process keeps for others, beside those of its Locker."""
        self._is_draining = is_draining
        self._locker = locker
        self._seen = seen
        self._version = version
        self._also_held = also_held
        self._interval_s = interval_s
        self._store = ContentionStore(locker.store)
        self._token = secrets.token_hex(8)
        self._host, self._pid, self._started_at = socket.gethostname(), os.getpid(), time.time()
        self._who = "\t".join((self._token, *map(_plain, (locker.instance_id, self._host, str(self._pid)))))
        self._window: deque[Second] = deque(maxlen=WINDOW_SECONDS)
        self._totals: Counter[str] = Counter()
        self._number = 0
        self._pending: Additions | None = None
        self._clock_offset_s = 0.0  # the server's clock less ours
        self._next_list_at_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Tells for the first time, and goes on."""
        await self._publish()
        self._task = asyncio.create_task(self._run(), name="contention")

    async def stop(self) -> None:
        """Tells that this instance stops."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        incident = NotedIncident(time.time(), "instance-stopped", "", {"host": self._host, "pid": str(self._pid)})
        with contextlib.suppress(LockStoreDown):
            await self._publish_once()
            await self._store.leave(who=self._who, token=self._token, incident=self._incident_text(incident))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_at_s = loop.time()
        while True:
            # Late is late: what was missed is not caught up on.
            next_at_s = max(next_at_s + self._interval_s, loop.time())
            await asyncio.sleep(next_at_s - loop.time())
            await self._publish()

    async def _publish(self) -> None:
        with contextlib.suppress(LockStoreDown):  # what is to be added stays, and is added once Redis is back
            await self._publish_once()

    async def _publish_once(self) -> None:
        held = [*self._locker.held, *self._also_held()]
        if self._pending is None:
            second = self._seen.take()
            self._window.append(second)
            self._totals.update(second.counts)
            self._pending = self._additions(second, held_count=len(held))
            self._number += 1
        waited_for = self._locker.waited_for
        now_s = await self._store.publish(
            who=self._who,
            token=self._token,
            number=str(self._number),
            picture=self._picture(held, waited_for).text(),
            locks=await self._locks(held, waited_for),
            additions=self._pending,
        )
        self._pending = None
        self._clock_offset_s = now_s - time.time()

    def _picture(self, held: list[HeldLock], waited_for: Iterable[tuple[str, int, float]]) -> Picture:
        waited_for = list(waited_for)
        counts: Counter[str] = Counter()
        wait, hold, hot = LogHistogram(), LogHistogram(), dict[str, HotSeen]()
        for second in self._window:
            counts.update(second.counts)
            wait.merge(second.wait)
            hold.merge(second.hold)
            for name, seen in second.hot.items():
                hot.setdefault(name, HotSeen()).add(seen.waits, seen.total_wait_s, seen.longest_wait_s)
        hottest = sorted(hot.items(), key=lambda each: -each[1].total_wait_s)[:HOTTEST]
        most = sorted(waited_for, key=lambda each: -each[1])[:MOST_WAITED_FOR]
        now_s = clock.monotonic_s()
        return Picture(
            instance_id=self._locker.instance_id,
            host=self._host,
            pid=self._pid,
            version=self._version,
            started_at=self._started_at + self._clock_offset_s,
            draining=self._is_draining(),
            held=len(held),
            waiting=sum(count for _, count, _ in waited_for),
            oldest_wait_s=max((waited_s for _, _, waited_s in waited_for), default=0.0),
            oldest_held_s=max((now_s - lease.acquired_at_s for lease in held), default=0.0),
            counts=counts,
            totals=self._totals,
            wait=wait,
            hold=hold,
            hot={name: (seen.waits, seen.total_wait_s, seen.longest_wait_s) for name, seen in hottest},
            waited_for={name: count for name, count, _ in most},
        )

    async def _locks(self, held: list[HeldLock], waited_for: Iterable[tuple[str, int, float]]) -> str:
        """'' where the last list stands a while longer. Never empty otherwise, so that an old one is replaced."""
        if clock.monotonic_s() < self._next_list_at_s:
            return ""
        offset_s = time.time() + self._clock_offset_s - clock.monotonic_s()
        waiters, lines, took_s = {name: count for name, count, _ in waited_for}, list[str](), 0.0
        async for piece in in_pieces(held):
            began_at_s = clock.monotonic_s()
            lines += lines_of_held(piece, waiters, offset_s=offset_s)
            took_s += clock.monotonic_s() - began_at_s
        lines += lines_of_waited_for(waiters)
        self._next_list_at_s = clock.monotonic_s() + LIST_SHARE * took_s
        return "\n".join(lines) or "\n"

    def _additions(self, second: Second, *, held_count: int) -> Additions:
        additions, at_s = Additions(), int(time.time() + self._clock_offset_s)
        waiting = self._locker.waiter_count
        for length_s, kept_ms in ((FINE_S, QUARTER_MS), (MINUTE_S, DAY_MS)):
            _add_to_slot(additions, slot_key(at_s, length_s), second, held_count, waiting, kept_ms)
        for name, seen in sorted(second.hot.items(), key=lambda each: -each[1].total_wait_s)[:HOTTEST]:
            additions.add("ZINCRBY", hot_key(at_s), round(seen.total_wait_s * 1000, 3), name)
        if second.hot:
            _bound(additions, hot_key(at_s), MOST_HOT_A_MINUTE)
        for cell, names in second.cells.items():
            for name, count in names.items():
                additions.add("ZINCRBY", cell_key(at_s), count, f"{cell} {name}")
        if second.cells:
            _bound(additions, cell_key(at_s), MOST_CELL_NAMES)
        for incident in second.incidents:
            additions.add("LPUSH", INCIDENTS, self._incident_text(incident))
        for past in second.holds:
            _add_hold(additions, past, self._locker.instance_id, self._clock_offset_s)
        return additions

    def _incident_text(self, incident: NotedIncident) -> str:
        return json.dumps(
            {
                "at": incident.at_s + self._clock_offset_s,
                "kind": incident.kind,
                "name": incident.name,
                "instance": self._locker.instance_id,
                "detail": incident.detail,
            }
        )


def _add_to_slot(additions: Additions, key: str, second: Second, held: int, waiting: int, kept_ms: int) -> None:
    fields = {f"c:{name}": count for name, count in second.counts.items()}
    fields |= {f"w:{bucket}": count for bucket, count in second.wait.sparse().items()}
    fields |= {f"h:{bucket}": count for bucket, count in second.hold.sparse().items()}
    fields |= {"held": held, "waiting": waiting}
    for field, by in fields.items():
        if by:
            additions.add("HINCRBY", key, field, by)
    additions.add("PEXPIRE", key, kept_ms)


def _bound(additions: Additions, key: str, most: int) -> None:
    additions.add("ZREMRANGEBYRANK", key, 0, -most - 1)
    additions.add("PEXPIRE", key, DAY_MS)


def _add_hold(additions: Additions, past: NotedHold, instance_id: str, clock_offset_s: float) -> None:
    key = holds_key(past.name)
    told = {
        "began_at": past.began_at_s + clock_offset_s,
        "held_s": round(past.held_s, 6),
        "instance": instance_id,
        "request_id": past.request_id,
        "fencing_token": past.fencing_token,
        "end": past.end,
    }
    additions.add("LPUSH", key, json.dumps(told))
    additions.add("LTRIM", key, 0, MOST_HOLDS_A_LOCK - 1)
    additions.add("PEXPIRE", key, HOUR_MS)


def _plain(text: str) -> str:
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:100]
