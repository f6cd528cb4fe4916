"""Gathers concurrent charges: the next batch gathers while one is in flight, and an idle lane goes at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TypeVar

from db.charging import Charges, Entry, HeldElsewhere, Verdict
from db.decisions import ChargeRequest
from db.errors import CommitUnknown, DatabaseError, TimedOut
from locks import Lease
from service.refusals import ChargeInProgress, ChargeUnknown, Overloaded

SWEEP_S = 0.1
ROW_HELD_RETRY_AFTER_S = 1.0

Result = TypeVar("Result")


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
        self._free_lanes = lanes
        self._free_solo_lanes = solo_lanes
        self._batch_size = batch_size
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._on_batch = on_batch
        self._waiting: deque[_Item] = deque()
        self._waiting_alone: deque[_Item] = deque()
        self._in_flight: set[_Item] = set()
        self._loop = asyncio.get_running_loop()
        self._start_scheduled = False
        self._sweeper: asyncio.TimerHandle | None = None

    def submit(self, request: ChargeRequest, lease: Lease | None) -> asyncio.Future[TimedEntry]:
        """Queues the charge; nothing is begun under a lease that is lost by then (LeaseLost).

        The future gives the entry, or raises the refusal, Overloaded, DatabaseError, ChargeInProgress (another session
        holds the row) or ChargeUnknown. Raises Overloaded at once when too many wait.
        """
        if len(self._waiting) + len(self._waiting_alone) >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} charges wait already")
        now_s = self._loop.time()
        item = _Item(request, lease, self._loop.create_future(), now_s, now_s + self._timeout_s)
        self._waiting.append(item)
        self._start_soon()
        return item.future

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is in flight."""
        return not (self._waiting or self._waiting_alone or self._in_flight)

    def _start_soon(self) -> None:
        # At the end of this loop tick, so that what came in together goes together.
        if not self._start_scheduled:
            self._start_scheduled = True
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._start_scheduled = False
        while self._free_lanes and (batch := _next(self._waiting, self._batch_size)):
            self._free_lanes -= 1
            self._run(batch, self._charges.charge_batch, [item.request for item in batch], self._batch_done)
        while self._free_solo_lanes and (alone := _next(self._waiting_alone, 1)):
            self._free_solo_lanes -= 1
            self._run(alone, self._charges.charge_alone, alone[0].request, self._alone_done)
        if self._sweeper is None and not self.idle:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _run(
        self,
        batch: list[_Item],
        work: Callable[[Result], object],
        argument: Result,
        done: Callable[[list[_Item], Future[object]], None],
    ) -> None:
        now_s = self._loop.time()
        for item in batch:
            item.begun_at_s = now_s
        self._in_flight.update(batch)
        self._on_batch(len(batch))
        future = self._executor.submit(work, argument)
        future.add_done_callback(lambda ended: self._loop.call_soon_threadsafe(done, batch, ended))

    def _batch_done(self, batch: list[_Item], ended: Future[object]) -> None:
        self._free_lanes += 1
        self._in_flight.difference_update(batch)
        error = ended.exception()
        if error is None:
            verdicts: Sequence[Verdict] = ended.result()  # type: ignore[assignment]
            for item, verdict in zip(batch, verdicts, strict=True):
                self._settle(item, verdict)
        elif len(batch) > 1 and type(error) in (DatabaseError, TimedOut):
            # One of them made the statement fail, and nothing was written: alone, each learns its own outcome.
            self._waiting_alone.extend(batch)
        else:
            for item in batch:
                item.fail(_as_told_to_callers(error))
        self._start()

    def _alone_done(self, alone: list[_Item], ended: Future[object]) -> None:
        self._free_solo_lanes += 1
        self._in_flight.difference_update(alone)
        item = alone[0]
        error = ended.exception()
        if error is None:
            self._settle(item, ended.result())  # type: ignore[arg-type]
        elif isinstance(error, TimedOut):
            item.fail(ChargeInProgress("another session holds the appointment", retry_after_s=ROW_HELD_RETRY_AFTER_S))
        else:
            item.fail(_as_told_to_callers(error))
        self._start()

    def _settle(self, item: _Item, verdict: Verdict) -> None:
        if isinstance(verdict, Entry):
            begun_at_s = item.begun_at_s
            item.answer(TimedEntry(verdict, begun_at_s - item.submitted_at_s, self._loop.time() - begun_at_s))
        elif isinstance(verdict, HeldElsewhere):
            self._waiting_alone.append(item)
        else:
            item.fail(verdict)

    def _sweep(self) -> None:
        """Answers those whose time is over; a thread that still works for them ends by its own limits."""
        self._sweeper = None
        now_s = self._loop.time()
        for item in self._in_flight:
            if item.deadline_s <= now_s:
                item.fail(ChargeUnknown("the database has not answered in time"))
        for queue in (self._waiting, self._waiting_alone):
            while queue and queue[0].deadline_s <= now_s:
                queue.popleft().fail(Overloaded("the charge waited too long for its turn"))
        if not self.idle:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)


class _Item:
    """One request on its way."""

    __slots__ = ("begun_at_s", "deadline_s", "future", "lease", "request", "submitted_at_s")

    def __init__(
        self,
        request: ChargeRequest,
        lease: Lease | None,
        future: asyncio.Future[TimedEntry],
        submitted_at_s: float,
        deadline_s: float,
    ) -> None:
        self.request = request
        self.lease = lease
        self.future = future
        self.submitted_at_s = submitted_at_s
        self.begun_at_s = submitted_at_s
        self.deadline_s = deadline_s

    def answer(self, entry: TimedEntry) -> None:
        if not self.future.done():
            self.future.set_result(entry)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # somebody who stopped listening leaves no warning behind


def _next(queue: deque[_Item], at_most: int) -> list[_Item]:
    """The next batch; those whose lease is lost by now are refused, those who gave up are dropped."""
    batch: list[_Item] = []
    while queue and len(batch) < at_most:
        item = queue.popleft()
        if item.lease is not None and item.lease.is_lost:
            item.fail(item.lease.loss())
        elif not item.future.done():
            batch.append(item)
    return batch


def _as_told_to_callers(error: BaseException) -> BaseException:
    if isinstance(error, CommitUnknown):
        return ChargeUnknown(str(error))
    return error
