"""Tells the other instances once a second what this one has seen, off the path of every lock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

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
from locks.under_way import Levels, LineSeen, Waits, ages_of, cells_of, lines_of

INTERVAL_S = 1.0
WINDOW_SECONDS = 10
HOTTEST = 20
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
        clock = self._clock = locker.clock
        self._token = clock.random_bytes(8).hex()
        self._host, self._pid, self._started_at = socket.gethostname(), clock.pid(), clock.wall_s()
        self._who = "\t".join((self._token, *map(_plain, (locker.instance_id, self._host, str(self._pid)))))
        self._window: deque[Second] = deque(maxlen=WINDOW_SECONDS)
        self._totals: Counter[str] = Counter()
        self._levels = Levels()
        self._number = 0
        self._pending: Additions | None = None
        self._clock_offset_s = 0.0  # the server's clock less ours
        self._next_list_at_s = 0.0
        self._listing: asyncio.Task[str] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Tells for the first time, and goes on."""
        await self._publish()
        self._task = asyncio.create_task(self._run(), name="contention")

    async def stop(self) -> None:
        """Tells that this instance stops."""
        if self._task is None:
            return
        await _cancelled(self._task)
        incident = NotedIncident(
            self._clock.wall_s(), "instance-stopped", "", {"host": self._host, "pid": str(self._pid)}
        )
        with contextlib.suppress(LockStoreDown):
            await self._publish_once()
            await self._store.leave(who=self._who, token=self._token, incident=self._incident_text(incident))
        if self._listing is not None:
            await _cancelled(self._listing)

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
        # Looked at in the moment in which `take` is: an attempt has ended or is under way, and never counts as both.
        held, waits = [*self._locker.held, *self._also_held()], self._locker.waits
        lines = lines_of(waits)
        if self._pending is None:
            second = self._seen.take()
            self._window.append(second)
            self._totals.update(second.counts)
            self._pending = self._additions(second, waits, lines, held_count=len(held))
            self._number += 1
        now_s = await self._store.publish(
            who=self._who,
            token=self._token,
            number=str(self._number),
            picture=self._picture(held, waits, lines, oldest_held_s=await self._oldest_s(held)).text(),
            locks=await self._list(held, waits),
            additions=self._pending,
        )
        self._pending = None
        if self._listing is not None and self._listing.done():
            self._listing = None
        self._clock_offset_s = now_s - self._clock.wall_s()

    def _picture(
        self, held: list[HeldLock], waits: Waits, lines: Mapping[str, LineSeen], *, oldest_held_s: float
    ) -> Picture:
        counts: Counter[str] = Counter()
        wait, hold, hot = LogHistogram(), LogHistogram(), dict[str, HotSeen]()
        for second in self._window:
            counts.update(second.counts)
            wait.merge(second.wait)
            hold.merge(second.hold)
            for name, seen in second.hot.items():
                hot.setdefault(name, HotSeen()).add(seen.waits, seen.total_wait_s, seen.longest_wait_s)
        hottest = sorted(hot.items(), key=lambda each: -each[1].total_wait_s)[:HOTTEST]
        return Picture(
            instance_id=self._locker.instance_id,
            host=self._host,
            pid=self._pid,
            version=self._version,
            started_at=self._started_at + self._clock_offset_s,
            draining=self._is_draining(),
            held=len(held),
            waiting=sum(map(len, waits.values())),
            oldest_wait_s=max((line.oldest_s for line in lines.values()), default=0.0),
            oldest_held_s=oldest_held_s,
            counts=counts,
            totals=self._totals,
            wait=wait,
            hold=hold,
            hot={name: (seen.waits, seen.total_wait_s, seen.longest_wait_s) for name, seen in hottest},
            waited_for={name: line.waiting for name, line in lines.items()},
            under_way=ages_of(waits),
            waited_so_far={name: (line.total_s, line.oldest_s) for name, line in lines.items()},
        )

    async def _list(self, held: list[HeldLock], waits: Waits) -> str:
        """'' where the last list stands a while longer: this one is told once it is made, and meanwhile all else is."""
        if self._listing is None:
            if self._clock.monotonic_s() < self._next_list_at_s:
                return ""
            self._listing = asyncio.create_task(self._listed(held, waits), name="contention-list")
        done, _ = await asyncio.wait([self._listing], timeout=self._interval_s)
        return self._listing.result() if done else ""

    async def _listed(self, held: list[HeldLock], waits: Waits) -> str:
        """The list; never empty, so that an old one is replaced."""
        offset_s = self._clock.wall_s() + self._clock_offset_s - self._clock.monotonic_s()
        waiters, lines, took_s = {name: len(ages_s) for name, ages_s in waits.items()}, list[str](), 0.0
        async for piece in in_pieces(held, self._clock, on_request=False):
            began_at_s = self._clock.monotonic_s()
            lines += lines_of_held(piece, waiters, offset_s=offset_s)
            took_s += self._clock.monotonic_s() - began_at_s
        lines += lines_of_waited_for(waiters)
        self._next_list_at_s = self._clock.monotonic_s() + LIST_SHARE * took_s
        return "\n".join(lines) or "\n"

    async def _oldest_s(self, held: list[HeldLock]) -> float:
        """How long the lock is held that is held longest."""
        now_s = began_at_s = self._clock.monotonic_s()
        async for piece in in_pieces(held, self._clock, on_request=False):
            began_at_s = min(began_at_s, *[lease.acquired_at_s for lease in piece])
        return now_s - began_at_s

    def _additions(self, second: Second, waits: Waits, lines: Mapping[str, LineSeen], *, held_count: int) -> Additions:
        additions, at_s = Additions(), int(self._clock.wall_s() + self._clock_offset_s)
        ages = {f"u:{bucket}": count for bucket, count in ages_of(waits).sparse().items()}
        sums = {"held": held_count, "waiting": sum(map(len, waits.values()))}
        for length_s, kept_ms in ((FINE_S, QUARTER_MS), (MINUTE_S, DAY_MS)):
            key = slot_key(at_s, length_s)
            fields = {**_fields(second), **sums, **self._levels.changes(f"{length_s}s", key, ages)}
            _add_to_slot(additions, key, fields, kept_ms)
        self._name(additions, at_s, second, waits, lines)
        for incident in second.incidents:
            additions.add("LPUSH", INCIDENTS, self._incident_text(incident))
        for past in second.holds:
            _add_hold(additions, past, self._locker.instance_id, self._clock_offset_s)
        return additions

    def _name(
        self, additions: Additions, at_s: int, second: Second, waits: Waits, lines: Mapping[str, LineSeen]
    ) -> None:
        """The minute's hot locks, and the examples for its cells: of what has ended, and of the waits that go on."""
        hot, cells = hot_key(at_s), cell_key(at_s)
        for name, seen in sorted(second.hot.items(), key=lambda each: -each[1].total_wait_s)[:HOTTEST]:
            additions.add("ZINCRBY", hot, round(seen.total_wait_s * 1000, 3), name)
        for cell, names in second.cells.items():
            for name, count in names.items():
                additions.add("ZINCRBY", cells, count, f"{cell} {name}")
        hottest = sorted(lines, key=lambda name: -lines[name].total_s)[:HOTTEST]
        so_far_ms = {name: round(lines[name].total_s * 1000) for name in hottest}
        for name, by in self._levels.changes("hot", hot, so_far_ms).items():
            additions.add("ZINCRBY", hot, by, name)
        # A wait that has gone on to the next bucket stays named where it was: a picture of that moment leads there.
        for member, by in self._levels.rises("cells", cells, cells_of(hottest, waits)).items():
            additions.add("ZINCRBY", cells, by, member)
        for key, most in ((hot, MOST_HOT_A_MINUTE), (cells, MOST_CELL_NAMES)):
            if key in additions.keys:
                _bound(additions, key, most)

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


def _fields(second: Second) -> Mapping[str, int]:
    return {
        **{f"c:{name}": count for name, count in second.counts.items()},
        **{f"w:{bucket}": count for bucket, count in second.wait.sparse().items()},
        **{f"h:{bucket}": count for bucket, count in second.hold.sparse().items()},
    }


def _add_to_slot(additions: Additions, key: str, fields: Mapping[str, int], kept_ms: int) -> None:
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
        "request_id": past.for_whom,
        "fencing_token": past.fencing_token,
        "end": past.end,
    }
    additions.add("LPUSH", key, json.dumps(told))
    additions.add("LTRIM", key, 0, MOST_HOLDS_A_LOCK - 1)
    additions.add("PEXPIRE", key, HOUR_MS)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _plain(text: str) -> str:
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:100]
