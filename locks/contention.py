"""Contention over all instances: what each has told, merged; now, within the last quarter of an hour, within a day."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from locks.clock import Clock
from locks.contention_store import (
    FINE_S,
    INCIDENTS,
    MINUTE_S,
    MOST_CELL_NAMES,
    MOST_HOLDS_A_LOCK,
    MOST_INCIDENTS,
    ContentionStore,
    cell_key,
    holds_key,
    hot_key,
    list_key,
    picture_key,
    slot_key,
)
from locks.for_whom import read_for_whom
from locks.histogram import LogHistogram
from locks.listing import ListedLock, LockPage, Sort, Told, as_listed, listed, matching, page_of, told_locks
from locks.locker import Locker
from locks.picture import Picture
from locks.pieces import in_pieces
from locks.publishing import HOTTEST, WINDOW_SECONDS
from locks.seen import HotSeen
from locks.wire import retrieve

# Whoever asks within it gets the same answer: any number of watchers cost as much as one.
FRESH_S = 0.4
QUARTER_S, DAY_S = 15 * 60, 24 * 3600
# What was told this long ago is complete, and need not be read again.
SETTLED_S = 120
MOST_SETTLED = 2000

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class HotLock:
    """A lock that was waited for: `waits` that have ended or go on, and for how long, so far.

    Of them go on: `waiting`, the oldest for `oldest_wait_s`.
    """

    name: str
    waits: int
    total_wait_s: float
    longest_wait_s: float
    waiting: int = 0
    oldest_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class InstanceSeen:
    """One instance at its last sign of life, `age_s` ago."""

    picture: Picture
    age_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All instances together at one moment, `at` by the server's clock (unix seconds).

    `counts` and `hold` are of what ended within the last `window_s` seconds; `wait`, `hottest` and the contention ratio
    also of the waits that go on, each at its present age; `totals` of all since the living instances began. `lines`:
    the locks that are waited for now, who has waited longest first. The keys of counts: acquired, contended (attempts
    that had to wait), released, gave_up:<outcome>, lost:<reason>, takeovers, forced; and what Seen.count was given.
    """

    at: float
    window_s: float
    instances: tuple[InstanceSeen, ...]
    held: int
    waiting: int
    oldest_wait_s: float
    oldest_held_s: float
    counts: Mapping[str, int]
    totals: Mapping[str, int]
    wait: LogHistogram
    hold: LogHistogram
    hottest: tuple[HotLock, ...]
    lines: tuple[HotLock, ...]

    def per_s(self, key: str) -> float:
        """How often a second."""
        return self.counts.get(key, 0) / self.window_s

    @property
    def contention_ratio(self) -> float:
        """Of the attempts to acquire, the share that had to wait or does; 0.0 without any."""
        return contention_ratio(self.counts, self.waiting)


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that somebody may have to act on; `at` in unix seconds.

    Kinds: lost, takeover, forced, gave-up, instance-up, instance-down (without a word), instance-stopped; and what
    Seen.note was given.
    """

    at: float
    kind: str
    name: str
    instance_id: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PastHold:
    """A hold that has ended. `end`: released, exported, or lost:<reason>."""

    began_at: float
    held_s: float
    instance_id: str
    request_id: str
    owner: str | None
    fencing_token: int
    end: str


@dataclass(frozen=True, slots=True)
class Slot:
    """What all instances saw in one stretch of time. `held` and `waiting`: on average, in all.

    `ended_wait`, `hold`: of what ended within it; `under_way`: how long those had waited who waited on at its end.
    """

    at: float
    length_s: float
    counts: Mapping[str, int]
    ended_wait: LogHistogram
    under_way: LogHistogram
    hold: LogHistogram
    held: float
    waiting: float

    @property
    def wait(self) -> LogHistogram:
        """Every attempt of this time once: as long as it took, or has taken by its end."""
        return self.ended_wait | self.under_way

    @property
    def contention_ratio(self) -> float:
        """Of the attempts of this time, the share that had to wait or waited on at its end; 0.0 without any."""
        return contention_ratio(self.counts, self.under_way.count)


class Contention:
    """One reader for all who watch. For one event loop. Everything raises LockStoreDown."""

    def __init__(self, locker: Locker) -> None:
        self._locker = locker
        self._store = ContentionStore(locker.store)
        self._snapshot = _Shared(self._read_snapshot, locker.clock)
        self._told = _Shared(self._read_locks, locker.clock)
        self._settled: dict[str, Slot] = {}

    async def snapshot(self) -> Snapshot:
        """All instances as they are now, at most a moment old."""
        return await self._snapshot.get()

    async def locks(self, *, sort: Sort, limit: int, cursor: str | None = None, search: str = "") -> LockPage:
        """A page of the locks that are held, each looked at as it is now. Raises ValueError for no such cursor.

        Which there are is known from what instances have told, at most about a second ago. A lock that only programs
        with python-redis-lock hold is listed while a caller of ours waits for it.
        """
        told = await self._told.get()
        page, next_cursor, total = await page_of(
            told, self._locker.clock, sort=sort, limit=limit, cursor=cursor, search=search
        )
        views = await asyncio.gather(*[self._locker.inspect(each.name) for each in page])
        return LockPage(tuple(listed(view) for view in views if view is not None), next_cursor, total)

    async def all_locks(self, *, sort: Sort, search: str = "") -> Sequence[ListedLock]:
        """All of them as their holders have told of them; those of which no holder has told, as they are now."""
        told = await self._told.get()
        found: list[ListedLock] = []
        clock = self._locker.clock
        async for piece in in_pieces(await matching(told, clock, sort=sort, search=search), clock, on_request=True):
            untold = [each.name for each in piece if not each.fencing_token]
            views = await asyncio.gather(*[self._locker.inspect(name) for name in untold])
            looked_at = dict(zip(untold, views, strict=True))
            for each in piece:
                if each.fencing_token:
                    found.append(as_listed(each, told.at))
                elif (view := looked_at[each.name]) is not None:
                    found.append(listed(view))
        return found

    async def recent(self) -> Sequence[Slot]:
        """The last quarter of an hour in slots of five seconds, oldest first; the last one is not over yet."""
        now_s = int(await self._store.now_s())
        return await self._slots(now_s - QUARTER_S + FINE_S, now_s, FINE_S)

    async def minutes(self, *, from_s: float, until_s: float) -> Sequence[Slot]:
        """The minutes between two moments (unix seconds) of the last day, oldest first."""
        now_s = int(await self._store.now_s())
        return await self._slots(max(int(from_s), now_s - DAY_S), min(int(until_s), now_s), MINUTE_S)

    async def hot_in(self, *, at_s: float) -> Sequence[HotLock]:
        """The locks that were waited for longest, all waits together, in the minute of this moment."""
        found = await self._store.highest(hot_key(int(at_s)), limit=50)
        return [HotLock(name, 0, total_ms / 1000, 0.0) for name, total_ms in found if total_ms > 0]

    async def locks_in_cell(
        self, *, at_s: float, kind: Literal["wait", "hold"], bucket: int
    ) -> Sequence[tuple[str, int]]:
        """Locks whose wait or hold fell into this bucket in that minute, and how often as far as it was noted.

        Noted are up to three locks a second, bucket and instance: all waits, where they ended and once in each bucket
        that they were seen in before, and holds of locks that were waited for or that took long.
        """
        cell = f"{kind[0]}{bucket} "
        found = await self._store.highest(cell_key(int(at_s)), limit=MOST_CELL_NAMES)
        return [(member.removeprefix(cell), int(count)) for member, count in found if member.startswith(cell)]

    async def incidents(
        self, *, kinds: frozenset[str] | None = None, limit: int = 200, name: str | None = None
    ) -> Sequence[Incident]:
        """The newest of a day first; at most 2,000 are kept."""
        since = await self._store.now_s() - DAY_S
        found = [
            Incident(each["at"], each["kind"], each["name"], each["instance"], each["detail"])
            for each in await self._store.newest(INCIDENTS, limit=MOST_INCIDENTS)
        ]
        wanted = [
            each
            for each in found
            if each.at >= since and (kinds is None or each.kind in kinds) and (name is None or each.name == name)
        ]
        return sorted(wanted, key=lambda each: -each.at)[:limit]

    async def holds_of(self, name: str) -> Sequence[PastHold]:
        """Past holds of one lock within the last hour, newest first: those that were waited for, or took long."""
        found = await self._store.newest(holds_key(name), limit=MOST_HOLDS_A_LOCK)
        return sorted(map(_past_hold, found), key=lambda each: -each.began_at)

    async def _read_snapshot(self) -> Snapshot:
        instances = await self._store.instances()
        now_s = await self._store.now_s()
        texts = await self._store.texts([picture_key(token) for token, _, _ in instances])
        seen = [
            InstanceSeen(Picture.read(text), max(0.0, now_s - heard_at_s))
            for (_, _, heard_at_s), text in zip(instances, texts, strict=True)
            if text is not None
        ]
        return merged(now_s, seen)

    async def _read_locks(self) -> Told:
        instances = await self._store.instances()
        texts = await self._store.texts([list_key(token) for token, _, _ in instances])
        tellers = [teller for _, teller, _ in instances]
        lists = [(teller, text) for teller, text in zip(tellers, texts, strict=True) if text is not None]
        return await told_locks(await self._store.now_s(), lists, self._locker.clock)

    async def _slots(self, from_s: int, until_s: int, length_s: int) -> Sequence[Slot]:
        starts = range(from_s - from_s % length_s, until_s + 1, length_s)
        keys = [slot_key(at_s, length_s) for at_s in starts]
        unknown = [key for key in keys if key not in self._settled]
        read = dict(zip(unknown, await self._store.hashes(unknown), strict=True))
        slots = []
        for key, at_s in zip(keys, starts, strict=True):
            slot = self._settled.get(key) or _slot(at_s, length_s, read.get(key, {}))
            slots.append(slot)
            if key in read and at_s + length_s + SETTLED_S < until_s:
                self._settled[key] = slot
        while len(self._settled) > MOST_SETTLED:
            del self._settled[next(iter(self._settled))]
        return slots


def merged(at: float, instances: Iterable[InstanceSeen]) -> Snapshot:
    """What the instances have told, as one."""
    instances = sorted(instances, key=lambda each: each.picture.instance_id)
    pictures = [each.picture for each in instances]
    counts: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    wait, hold, hot = LogHistogram(), LogHistogram(), dict[str, HotSeen]()
    waiting, oldest_s = Counter[str](), dict[str, float]()
    for picture in pictures:
        counts.update(picture.counts)
        totals.update(picture.totals)
        wait.merge(picture.all_waits)
        hold.merge(picture.hold)
        for name, (waits, total_s, longest_s) in picture.hot.items():
            hot.setdefault(name, HotSeen()).add(waits, total_s, longest_s)
        for name, count in picture.waited_for.items():
            total_s, longest_s = picture.waited_so_far.get(name, (0.0, 0.0))
            hot.setdefault(name, HotSeen()).add(count, total_s, longest_s)
            waiting[name] += count
            oldest_s[name] = max(oldest_s.get(name, 0.0), longest_s)
    locks = [
        HotLock(name, seen.waits, seen.total_wait_s, seen.longest_wait_s, waiting[name], oldest_s.get(name, 0.0))
        for name, seen in hot.items()
    ]
    hottest = sorted(locks, key=lambda each: (-each.total_wait_s, -each.waiting, each.name))
    lines = sorted([each for each in locks if each.waiting], key=lambda each: (-each.oldest_wait_s, each.name))
    return Snapshot(
        at=at,
        window_s=WINDOW_SECONDS,
        instances=tuple(instances),
        held=sum(picture.held for picture in pictures),
        waiting=sum(picture.waiting for picture in pictures),
        oldest_wait_s=max((picture.oldest_wait_s for picture in pictures), default=0.0),
        oldest_held_s=max((picture.oldest_held_s for picture in pictures), default=0.0),
        counts=counts,
        totals=totals,
        wait=wait,
        hold=hold,
        hottest=tuple(hottest[:HOTTEST]),
        lines=tuple(lines),
    )


def contention_ratio(counts: Mapping[str, int], waiting: int) -> float:
    """Of the attempts to acquire, the share that had to wait: those that ended, and the `waiting`; 0.0 without any."""
    ended = counts.get("acquired", 0) + sum(count for key, count in counts.items() if key.startswith("gave_up:"))
    attempts = ended + waiting
    return (counts.get("contended", 0) + waiting) / attempts if attempts else 0.0


def _past_hold(told: Mapping[str, Any]) -> PastHold:
    request_id, owner, _ = read_for_whom(told["request_id"])
    return PastHold(
        told["began_at"], told["held_s"], told["instance"], request_id, owner, told["fencing_token"], told["end"]
    )


def _slot(at_s: int, length_s: int, fields: Mapping[str, int]) -> Slot:
    parts: dict[str, dict[str, int]] = {"c": {}, "w": {}, "u": {}, "h": {}}
    for field, value in fields.items():
        kind, _, key = field.partition(":")
        if key and kind in parts:
            parts[kind][key] = value

    def histogram(kind: str) -> LogHistogram:
        return LogHistogram.from_sparse({int(bucket): count for bucket, count in parts[kind].items()})

    return Slot(
        float(at_s),
        float(length_s),
        parts["c"],
        histogram("w"),
        histogram("u"),
        histogram("h"),
        fields.get("held", 0) / length_s,
        fields.get("waiting", 0) / length_s,
    )


class _Shared(Generic[Value]):
    """A value that is read at most once within FRESH_S, however many ask."""

    def __init__(self, read: Callable[[], Awaitable[Value]], clock: Clock) -> None:
        self._clock = clock
        self._read = read
        self._reading: asyncio.Task[Value] | None = None
        self._value: Value | None = None
        self._read_at_s = float("-inf")

    async def get(self) -> Value:
        """The value. Whoever is cancelled while it is read takes it from nobody else."""
        if self._value is not None and self._clock.monotonic_s() - self._read_at_s < FRESH_S:
            return self._value
        if self._reading is None:
            self._reading = asyncio.create_task(self._refresh(), name="contention-read")
            self._reading.add_done_callback(retrieve)
        return await asyncio.shield(self._reading)

    async def _refresh(self) -> Value:
        try:
            self._value = await self._read()
            self._read_at_s = self._clock.monotonic_s()
            return self._value
        finally:
            self._reading = None
