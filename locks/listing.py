"""The locks of all instances as a list: sorted, searched, and cut into pages by the place of the last one shown."""

from __future__ import annotations

import base64
import binascii
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from locks.clock import Clock
from locks.inspection import LockView, Party, party_of
from locks.picture import Teller, ToldLock, read_locks
from locks.pieces import in_pieces

Sort = Literal["waiters", "held", "name"]


@dataclass(frozen=True, slots=True)
class ListedLock:
    """A lock that is held or waited for. None for what is not known, or does not apply: see LockView."""

    name: str
    is_held: bool
    by_python_redis_lock: bool
    holder: Party | None
    held_s: float | None
    expires_in_s: float | None
    fencing_token: int | None
    waiters: int


@dataclass(frozen=True, slots=True)
class LockPage:
    """Some of the locks. `total`: how many there are that match; `next_cursor`: None on the last page."""

    locks: tuple[ListedLock, ...]
    next_cursor: str | None
    total: int


@dataclass(slots=True)
class Told:
    """What all instances have told of their locks, by name."""

    at: float
    by_name: Mapping[str, ToldLock]


async def told_locks(at: float, lists: Iterable[tuple[Teller, str]], clock: Clock) -> Told:
    """From the list of each instance."""
    by_name: dict[str, ToldLock] = {}
    for teller, text in lists:
        async for lines in in_pieces(text.split("\n"), clock, on_request=True):
            for told in read_locks(lines, teller):
                known = by_name.get(told.name)
                by_name[told.name] = told if known is None else _merged(known, told)
    return Told(at, by_name)


async def page_of(
    told: Told, clock: Clock, *, sort: Sort, limit: int, cursor: str | None, search: str
) -> tuple[Sequence[ToldLock], str | None, int]:
    """A page, the cursor of the next one, and how many match. Raises ValueError for a text that is no cursor."""
    total, ordered = await _ordered(told, clock, sort, search, _place(cursor, sort) if cursor is not None else None)
    page = list(islice(ordered, limit))
    more = next(ordered, None) is not None
    return page, _cursor(page[-1], sort) if more and page else None, total


async def matching(told: Told, clock: Clock, *, sort: Sort, search: str) -> Iterable[ToldLock]:
    """All that match, in order."""
    _, ordered = await _ordered(told, clock, sort, search, None)
    return ordered


def listed(view: LockView) -> ListedLock:
    """A lock as it is now."""
    return ListedLock(
        name=view.name,
        is_held=view.is_held,
        by_python_redis_lock=view.by_python_redis_lock,
        holder=view.holder,
        held_s=view.held_s,
        expires_in_s=view.expires_in_s,
        fencing_token=view.fencing_token,
        waiters=view.waiter_count,
    )


def as_listed(lock: ToldLock, at: float) -> ListedLock:
    """A lock as its holder has told of it, at this moment by the server's clock; where none has, it is not held."""
    is_held = lock.fencing_token != 0
    return ListedLock(
        name=lock.name,
        is_held=is_held,
        by_python_redis_lock=False,
        holder=party_of(*lock.teller, lock.for_whom) if is_held else None,
        held_s=max(0.0, at - lock.fencing_token / 1_000_000) if is_held else None,
        expires_in_s=max(0.0, lock.expires_at_ms / 1000 - at) if is_held else None,
        fencing_token=lock.fencing_token if is_held else None,
        waiters=lock.waiters,
    )


async def _ordered(
    told: Told, clock: Clock, sort: Sort, search: str, after: tuple[float, str] | None
) -> tuple[int, Iterator[ToldLock]]:
    """How many match, and those after this place, in order."""
    runs, total = [], 0
    async for piece in in_pieces(told.by_name.values(), clock, on_request=True):
        found = [(_key(each, sort), each) for each in piece if search in each.name]
        total += len(found)
        runs.append(sorted(each for each in found if after is None or each[0] > after))
    return total, (each for _, each in heapq.merge(*runs))


def _merged(known: ToldLock, told: ToldLock) -> ToldLock:
    """The holder is who has the largest token: another one has told of a lease that was over a moment later."""
    newest = told if told.fencing_token > known.fencing_token else known
    return newest._replace(waiters=known.waiters + told.waiters)


def _key(lock: ToldLock, sort: Sort) -> tuple[float, str]:
    """Most waiters first; held longest first, and those that are only waited for last."""
    match sort:
        case "waiters":
            return (-lock.waiters, lock.name)
        case "held":
            return (lock.fencing_token or float("inf"), lock.name)
        case "name":
            return (0, lock.name)


def _cursor(lock: ToldLock, sort: Sort) -> str:
    value, name = _key(lock, sort)
    text = json.dumps([sort, None if value == float("inf") else value, name], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _place(cursor: str, sort: Sort) -> tuple[float, str]:
    try:
        read: Any = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        cursors_sort, value, name = read
        if not ((value is None or isinstance(value, int | float)) and isinstance(name, str)):
            raise TypeError
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise ValueError("is not the next_cursor of a page") from error
    if cursors_sort != sort:
        raise ValueError("is of a page that was sorted otherwise")
    return (float("inf") if value is None else value, name)
