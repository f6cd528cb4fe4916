"""Gathers concurrent charges: the next batch gathers while one is in flight, and an idle lane goes at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

from db.charging import Charges, Entry, HeldElsewhere, Verdict
from db.decisions import ChargeRequest
from db.errors import CommitUnknown, DatabaseError, TimedOut
from locks import Lease
from service.refusals import ChargeInProgress, ChargeUnknown, Overloaded

SWEEP_S = 0.02
SLOW_BATCH_S = 0.02
ROW_HELD_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class TimedEntry:
    """An entry, and how long its charge waited for its transaction and was in it, seconds."""

    entry: Entry
    queued_s: float
    transaction_s: float


class Charging:
    """The queue in front of the charging transactions of this process. For one event loop."""

    def __init__(
        self,
        charges: Charges,
        executor: Executor,
        *,
        lanes: int,
        solo_lanes: int,
        batch_size: int,
        max_waiting: int,
        timeout_s: float,
        on_batch: Callable[[int], None],
    ) -> None:
        self._charges = charges
        self._executor = executor
        self._lanes = lanes
        self._solo_lanes = solo_lanes
        self._batch_size = batch_size
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._on_batch = on_batch
        self._waiting: deque[PendingCharge] = deque()
        self._waiting_alone: deque[PendingCharge] = deque()
        self._batches: set[_Batch] = set()
        self._alone: set[_Batch] = set()
        self._loop = asyncio.get_running_loop()
        self._start_scheduled = False
        self._sweeper: asyncio.TimerHandle | None = None

    def submit(self, request: ChargeRequest, lease: Lease | None) -> PendingCharge:
        """Queues the charge; nothing is begun under a lease that is over by then. Raises Overloaded."""
        if len(self._waiting) + len(self._waiting_alone) >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} charges wait already")
        now_s = time.monotonic()
        item = PendingCharge(request, lease, self._loop, now_s, now_s + self._timeout_s)
        self._waiting.append(item)
        if not self._start_scheduled:
            # At the end of this loop tick, so that what came in together goes together.
            self._start_scheduled = True
            self._loop.call_soon(self._start)
        return item

    def _start(self) -> None:
        self._start_scheduled = False
        while self._lane_is_worth_it() and (items := _next(self._waiting, self._batch_size)):
            self._run(items, self._batches, self._charges.charge_batch)
        while len(self._alone) < self._solo_lanes and (items := _next(self._waiting_alone, 1)):
            self._run(items, self._alone, self._charges.charge_waiting)
        if self._sweeper is None and (self._batches or self._alone):
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _lane_is_worth_it(self) -> bool:
        """An idle service goes at once. Beside a batch in flight only as many again are worth a lane of their own,
        unless that batch is slow: who knows whom it waits for.
        """
        if not self._waiting or len(self._batches) >= self._lanes:
            return False
        now_s = time.monotonic()
        return all(
            len(self._waiting) >= len(batch.items) or now_s - batch.begun_at_s >= SLOW_BATCH_S
            for batch in self._batches
        )

    def _run(
        self, items: list[PendingCharge], lane: set[_Batch], charge: Callable[[list[ChargeRequest]], list[Verdict]]
    ) -> None:
        batch = _Batch(items, time.monotonic())
        lane.add(batch)
        self._on_batch(len(items))
        future = self._executor.submit(charge, [item.request for item in items])
        future.add_done_callback(lambda ended: self._loop.call_soon_threadsafe(self._done, batch, lane, ended))

    def _done(self, batch: _Batch, lane: set[_Batch], ended: Future[list[Verdict]]) -> None:
        lane.discard(batch)
        error = ended.exception()
        if error is None:
            for item, verdict in zip(batch.items, ended.result(), strict=True):
                self._settle(item, verdict, batch.begun_at_s)
        elif len(batch.items) > 1 and type(error) in (DatabaseError, TimedOut):
            # One of them made a statement fail, and nothing was written: alone, each learns its own outcome.
            self._waiting_alone.extend(batch.items)
        else:
            for item in batch.items:
                item.fail(_as_told_to_callers(error))
        self._start()

    def _settle(self, item: PendingCharge, verdict: Verdict, begun_at_s: float) -> None:
        if isinstance(verdict, Entry):
            item.answer(TimedEntry(verdict, begun_at_s - item.submitted_at_s, time.monotonic() - begun_at_s))
        elif isinstance(verdict, HeldElsewhere):
            self._waiting_alone.append(item)
        else:
            item.fail(verdict)

    def _sweep(self) -> None:
        """Answers those whose time is over; a thread that still works for them ends by its own limits."""
        self._sweeper = None
        now_s = time.monotonic()
        for batch in (*self._batches, *self._alone):
            for item in batch.items:
                if item.deadline_s <= now_s:
                    item.fail(ChargeUnknown("the database has not answered in time"))
        for item in (*self._waiting, *self._waiting_alone):
            if item.deadline_s <= now_s:
                item.fail(Overloaded("the charge waited too long for its turn"))  # and _next drops it
        self._start()


class _Batch:
    """What shares a transaction."""

    __slots__ = ("begun_at_s", "items")

    def __init__(self, items: list[PendingCharge], begun_at_s: float) -> None:
        self.items = items
        self.begun_at_s = begun_at_s


class PendingCharge:
    """One request on its way. Whoever awaits it may be cancelled, and await it again: what was begun goes on.

    Awaited, it gives the entry, or raises its refusal, Overloaded, DatabaseError, LeaseLost (nothing was begun),
    ChargeInProgress (another session holds the row) or ChargeUnknown.
    """

    __slots__ = ("_entry", "_error", "_listener", "_loop", "deadline_s", "lease", "request", "submitted_at_s")

    def __init__(
        self,
        request: ChargeRequest,
        lease: Lease | None,
        loop: asyncio.AbstractEventLoop,
        submitted_at_s: float,
        deadline_s: float,
    ) -> None:
        self.request = request
        self.lease = lease
        self.submitted_at_s = submitted_at_s
        self.deadline_s = deadline_s
        self._loop = loop
        self._listener: asyncio.Future[None] | None = None
        self._entry: TimedEntry | None = None
        self._error: BaseException | None = None

    def __await__(self) -> Generator[Any, None, TimedEntry]:
        if not self.is_settled:
            assert self._listener is None or self._listener.done(), "one at a time may await a charge"
            self._listener = self._loop.create_future()
            yield from self._listener
        if self._error is not None:
            raise self._error
        assert self._entry is not None
        return self._entry

    @property
    def is_settled(self) -> bool:
        """Whether the outcome is known."""
        return self._entry is not None or self._error is not None

    def answer(self, entry: TimedEntry) -> None:
        if not self.is_settled:
            self._entry = entry
            self._wake()

    def fail(self, error: BaseException) -> None:
        if not self.is_settled:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._listener is not None and not self._listener.done():
            self._listener.set_result(None)


def _next(queue: deque[PendingCharge], at_most: int) -> list[PendingCharge]:
    """The next batch, without those whose lease is over by now: lost, or released by a caller who gave up."""
    batch: list[PendingCharge] = []
    while queue and len(batch) < at_most:
        item = queue.popleft()
        if item.lease is not None and (item.lease.ended or item.lease.is_lost):
            item.fail(item.lease.loss())
        elif not item.is_settled:
            batch.append(item)
    return batch


def _as_told_to_callers(error: BaseException) -> BaseException:
    if isinstance(error, CommitUnknown):
        return ChargeUnknown(str(error))
    if isinstance(error, TimedOut):
        return ChargeInProgress(
            "the appointment's rows were not to be had in time", retry_after_s=ROW_HELD_RETRY_AFTER_S
        )
    return error
