"""Who holds what, who waits, and how long it takes: for people and dashboards that watch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

from aiohttp import web

from locks import Locker, LockStoreDown, LossReason
from locks.contention import Contention, InstanceSeen, Snapshot
from locks.histogram import BOUNDS_S, LogHistogram
from locks.inspection import LockView, Party
from locks.listing import ListedLock, LockPage, Sort, listed
from service import models
from service.callers import MONITOR, Callers
from service.handlers.http import answer, caller_with, page_limit, path_name, query_value, write_event
from service.lists import Lists
from service.observe import LAYERS
from service.refusals import InvalidRequest, LockFree
from service.shares import Limit

LOCKS_PER_PAGE = 100
SORTS = ("waiters", "held", "name")
MAX_SEARCH_LENGTH = 200
STREAM_INTERVAL_S = 1.0
GAVE_UP = ("busy", "cancelled", "store-down")  # and not those who were told that what they waited for is done
ENTERED = ("charged", "already_charged", "free")


class ContentionHandlers:
    """Reading only: everything here takes the scope monitor."""

    def __init__(
        self,
        contention: Contention,
        lists: Lists,
        locker: Locker,
        callers: Callers,
        *,
        streams: Limit,
        stopping: asyncio.Event,
    ) -> None:
        self._contention = contention
        self._lists = lists
        self._locker = locker
        self._callers = callers
        self._streams = streams
        self._stopping = stopping

    async def list_locks(self, request: web.Request) -> web.Response:
        """A page of held locks."""
        caller = caller_with(request, self._callers, MONITOR)
        sort = query_value(request, "sort", read_sort, "waiters")
        limit = query_value(request, "limit", page_limit, LOCKS_PER_PAGE)
        search = query_value(request, "search", read_search, "")
        try:
            page = await self._lists.page(
                sort=sort,
                limit=limit,
                cursor=query_value(request, "cursor", str, None),
                search=search,
                caller=caller.user_id,
            )
        except ValueError as error:
            raise InvalidRequest("cursor", str(error)) from error
        return answer(locks_answer(page))

    async def show_lock(self, request: web.Request) -> web.Response:
        """The holder, by instance, host, pid, request and owner, and the waiters."""
        caller_with(request, self._callers, MONITOR)
        name = path_name(request)
        view = await self._locker.inspect(name)
        if view is None or not view.is_held:
            raise LockFree(f"nobody holds the lock {name!r}")
        return answer(lock_answer(view))

    async def snapshot(self, request: web.Request) -> web.Response:
        """All instances now."""
        caller_with(request, self._callers, MONITOR)
        return answer(contention_answer(await self._contention.snapshot()))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """The same once a second, until the client goes, its token expires or this instance stops."""
        caller = caller_with(request, self._callers, MONITOR)
        with self._streams.place(caller.user_id):
            first = await self._contention.snapshot()
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Request-Id": request["id"]})
            await response.prepare(request)
            if request.method != "HEAD":
                with contextlib.suppress(ConnectionResetError):  # nobody reads any more
                    await self._follow(request, response, first, caller.expires_at)
        return response

    async def _follow(
        self, request: web.Request, response: web.StreamResponse, first: Snapshot, expires_at: float
    ) -> None:
        await write_event(request, response, _event(first))
        while not await _set_within(self._stopping, min(STREAM_INTERVAL_S, expires_at - time.time())):
            if time.time() >= expires_at:
                await write_event(request, response, _problem_event("unauthenticated"))
                break
            await write_event(request, response, await self._next_event())

    async def _next_event(self) -> bytes:
        try:
            return _event(await self._contention.snapshot())
        except LockStoreDown:
            return _problem_event("lock-store-down")


def read_sort(text: str) -> Sort:
    """How a list is sorted. Raises ValueError."""
    if text not in SORTS:
        raise ValueError(f"must be one of {', '.join(SORTS)}")
    return cast(Sort, text)


def read_search(text: str) -> str:
    """A part of a lock's name. Raises ValueError."""
    if len(text) > MAX_SEARCH_LENGTH:
        raise ValueError(f"must have at most {MAX_SEARCH_LENGTH} characters")
    return text


def locks_answer(page: LockPage) -> models.LocksAnswer:
    """Those of a page that are held, as they are shown."""
    rows = [models.LockListed(**_row(lock)) for lock in page.locks if lock.is_held]
    return models.LocksAnswer(locks=rows, total=page.total, next_cursor=page.next_cursor)


def lock_answer(view: LockView) -> models.LockAnswer:
    """A held lock as it is shown."""
    waiting = [
        models.WaiterAnswer(
            instance=waiter.instance_id,
            host=waiter.host,
            pid=waiter.pid,
            request_id=waiter.request_id,
            owner=waiter.owner,
            waited_ms=_ms(waiter.waited_s),
        )
        for waiter in view.waiters
    ]
    return models.LockAnswer(**_row(listed(view)), waiting=waiting)


def party_answer(party: Party | None) -> models.PartyAnswer | None:
    """A holder as it is shown."""
    if party is None:
        return None
    return models.PartyAnswer(
        instance=party.instance_id, host=party.host, pid=party.pid, request_id=party.request_id, owner=party.owner
    )


def contention_answer(snapshot: Snapshot) -> models.ContentionAnswer:
    """A snapshot as it is shown."""
    totals = snapshot.totals
    return models.ContentionAnswer(
        at=datetime.fromtimestamp(snapshot.at, UTC),
        window_s=snapshot.window_s,
        held=snapshot.held,
        waiting=snapshot.waiting,
        oldest_wait_ms=round(snapshot.oldest_wait_s * 1000),
        oldest_held_ms=round(snapshot.oldest_held_s * 1000),
        contention_ratio=snapshot.contention_ratio,
        rates=_rates(snapshot.counts, snapshot.window_s),
        wait=_times(snapshot.wait),
        hold=_times(snapshot.hold),
        hottest=[
            models.HotLockAnswer(
                name=hot.name,
                waits=hot.waits,
                total_wait_ms=round(hot.total_wait_s * 1000, 3),
                longest_wait_ms=round(hot.longest_wait_s * 1000, 3),
                waiting=hot.waiting,
                oldest_wait_ms=round(hot.oldest_wait_s * 1000),
            )
            for hot in snapshot.hottest
        ],
        lost_leases={reason.value: totals.get(f"lost:{reason.value}", 0) for reason in LossReason},
        takeovers=totals.get("takeovers", 0),
        forced_releases=totals.get("forced", 0),
        duplicates_prevented={layer: totals.get(f"prevented:{layer}", 0) for layer in LAYERS},
        instances=[_instance(seen, snapshot.window_s) for seen in snapshot.instances],
    )


def _instance(seen: InstanceSeen, window_s: float) -> models.InstanceAnswer:
    picture = seen.picture
    return models.InstanceAnswer(
        instance=picture.instance_id,
        host=picture.host,
        pid=picture.pid,
        version=picture.version,
        started_at=datetime.fromtimestamp(picture.started_at, UTC),
        draining=picture.draining,
        age_ms=round(seen.age_s * 1000),
        held=picture.held,
        waiting=picture.waiting,
        oldest_wait_ms=round(picture.oldest_wait_s * 1000),
        rates=_rates(picture.counts, window_s),
        lost_leases=_sum(picture.totals, "lost:"),
    )


def _row(lock: ListedLock) -> dict[str, object]:
    return {
        "name": lock.name,
        "holder": party_answer(lock.holder),
        "held_ms": _ms(lock.held_s),
        "expires_in_ms": _ms(lock.expires_in_s),
        "fencing_token": lock.fencing_token,
        "waiters": lock.waiters,
        "by_python_redis_lock": lock.by_python_redis_lock,
    }


def _rates(counts: Mapping[str, int], window_s: float) -> models.RatesAnswer:
    return models.RatesAnswer(
        acquired_per_s=counts.get("acquired", 0) / window_s,
        contended_per_s=counts.get("contended", 0) / window_s,
        released_per_s=counts.get("released", 0) / window_s,
        gave_up_per_s=sum(counts.get(f"gave_up:{outcome}", 0) for outcome in GAVE_UP) / window_s,
        lost_per_s=_sum(counts, "lost:") / window_s,
        charged_per_s=counts.get("charges:charged", 0) / window_s,
        entered_per_s=sum(counts.get(f"charges:{outcome}", 0) for outcome in ENTERED) / window_s,
    )


def _times(histogram: LogHistogram) -> models.TimesAnswer:
    bounds_ms: list[float | None] = [round(bound_s * 1000, 4) for bound_s in BOUNDS_S]
    buckets = [
        models.BucketAnswer(le_ms=le_ms, count=count)
        for le_ms, count in zip((*bounds_ms, None), histogram.counts, strict=True)
        if count
    ]
    return models.TimesAnswer(
        count=histogram.count,
        p50_ms=round(histogram.quantile(0.5) * 1000, 4),
        p90_ms=round(histogram.quantile(0.9) * 1000, 4),
        p99_ms=round(histogram.quantile(0.99) * 1000, 4),
        buckets=buckets,
    )


def _event(snapshot: Snapshot) -> bytes:
    return b"event: contention\ndata: " + contention_answer(snapshot).model_dump_json().encode() + b"\n\n"


def _problem_event(code: str) -> bytes:
    return f'event: problem\ndata: {{"code":"{code}"}}\n\n'.encode()


async def _set_within(event: asyncio.Event, wait_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), wait_s)
    return event.is_set()


def _sum(counts: Mapping[str, int], prefix: str) -> int:
    return sum(count for key, count in counts.items() if key.startswith(prefix))


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
