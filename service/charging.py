"""Gathers concurrent charges: the next batch gathers while one is in flight, and an idle lane goes at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from db.charging import Charges, Entry, HeldElsewhere, NotChargedYet, Progress, Verdict
from db.decisions import ChargeRequest
from db.errors import CommitUnknown, DatabaseDown, DatabaseError, IdTaken, TimedOut
from locks import Lease
from service.pending_charge import PendingCharge, TimedEntry
from service.refusals import ChargeInProgress, ChargeUnknown, Draining, Overloaded
from service.shares import Limit

QUEUES = ("together", "alone", "again")
SWEEP_S = 0.02
SLOW_BATCH_S = 0.02
ROW_HELD_RETRY_AFTER_S = 1.0

Charge = Callable[[Sequence[ChargeRequest], Progress], Coroutine[Any, Any, list[Verdict]]]


class Charging:
    """The queues in front of the charging transactions of this process. For one event loop."""

    def __init__(
        self,
        charges: Charges,
        *,
        lanes: int,
        solo_lanes: int,
        repeat_lanes: int,
        batch_size: int,
        places: Limit,
        timeout_s: float,
        on_batch: Callable[[int], None],
        on_entries: Callable[[Sequence[TimedEntry]], None],
    ) -> None:
        """`places`: of all that is submitted, until its outcome is known."""
        self._charges = charges
        self._together = _Queue(charges.charge_batch, lanes=lanes, batch_size=batch_size)
        self._alone = _Queue(charges.charge_waiting, lanes=solo_lanes, batch_size=1)
        self._again = _Queue(charges.enter_again, lanes=repeat_lanes, batch_size=batch_size)
        self._queues = (self._together, self._alone, self._again)
        self._places = places
        self._timeout_s = timeout_s
        self._on_batch = on_batch
        self._on_entries = on_entries
        self._loop = asyncio.get_running_loop()
        self._start_scheduled = False
        self._closed = False
        self._sweeper: asyncio.TimerHandle | None = None

    def submit(self, request: ChargeRequest, lease: Lease | None, *, guarded_by: str) -> PendingCharge:
        """Queues the charge; nothing is begun under a lease that is over by then. Raises Overloaded."""
        return self._submit(self._together, request, lease, 0.0 if lease is None else lease.waited_s, guarded_by)

    def enter_again(self, request: ChargeRequest, *, lock_wait_s: float, guarded_by: str) -> PendingCharge:
        """Queues an entry into an appointment that is charged; NotChargedYet where it is not. Raises Overloaded."""
        return self._submit(self._again, request, None, lock_wait_s, guarded_by)

    @property
    def queues(self) -> Mapping[str, tuple[int, int, int]]:
        """Each queue's name: how many charges wait in it, how many of its lanes are busy, and how many it has."""
        named = zip(QUEUES, self._queues, strict=True)
        return {name: (len(queue.waiting), len(queue.under_way), queue.lanes) for name, queue in named}

    async def close(self) -> None:
        """Ends what is under way and what waits: what has not been committed will not be."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        tasks = [batch.task for queue in self._queues for batch in queue.under_way]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for queue in self._queues:
            for item in queue.waiting:
                item.fail(Draining("this instance is about to stop"))
        self._charges.close()

    def _submit(
        self, queue: _Queue, request: ChargeRequest, lease: Lease | None, lock_wait_s: float, guarded_by: str
    ) -> PendingCharge:
        if self._closed:
            raise Draining("this instance is about to stop")
        self._places.enter(request.user_id)
        now_s = time.monotonic()
        item = PendingCharge(
            request, lease, lock_wait_s, guarded_by, self._loop, now_s, now_s + self._timeout_s, self._places
        )
        queue.waiting.append(item)
        if not self._start_scheduled:
            # At the end of this loop tick, so that what came in together goes together.
            self._start_scheduled = True
            self._loop.call_soon(self._start)
        return item

    def _start(self) -> None:
        self._start_scheduled = False
        if self._closed:
            return
        for queue in self._queues:
            while queue.lane_is_worth_it() and (items := queue.next_items()):
                self._run(queue, items)
        if self._sweeper is None and any(queue.under_way for queue in self._queues):
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _run(self, queue: _Queue, items: list[PendingCharge]) -> None:
        batch = _Batch(items)
        requests = [item.request for item in items]
        batch.task = self._loop.create_task(queue.charge(requests, batch.progress), name="charges")
        batch.task.add_done_callback(lambda task: self._done(queue, batch, task))
        queue.under_way.add(batch)
        self._on_batch(len(items))

    def _done(self, queue: _Queue, batch: _Batch, task: asyncio.Task[list[Verdict]]) -> None:
        queue.under_way.discard(batch)
        if task.cancelled() and batch.progress.may_have_committed:
            for item in batch.items:
                item.fail(ChargeUnknown("this instance stopped meanwhile"))
        elif task.cancelled():
            # Some of them had waited too long, and were told so; nothing was written, so the others go on.
            queue.waiting.extendleft(reversed(batch.items))
        elif (error := task.exception()) is None:
            self._settle(batch, task.result())
        elif queue is self._together and len(batch.items) > 1 and type(error) in (DatabaseError, IdTaken, TimedOut):
            # One of them made a statement fail, and nothing was written: alone, each learns its own outcome.
            self._alone.waiting.extend(batch.items)
        else:
            for item in batch.items:
                item.fail(_as_told_to_callers(error))
        self._start()

    def _settle(self, batch: _Batch, verdicts: Sequence[Verdict]) -> None:
        begun_at_s, now_s = batch.begun_at_s, time.monotonic()
        entered, batch_size = [], len(verdicts)
        for item, verdict in zip(batch.items, verdicts, strict=True):
            if isinstance(verdict, Entry):
                queued_s = begun_at_s - item.submitted_at_s
                seconds = (item.lock_wait_s, queued_s, now_s - begun_at_s)
                timed = TimedEntry(verdict, item.guarded_by, *seconds, batch_size)
                if item.answer(timed):
                    entered.append(timed)
            elif isinstance(verdict, HeldElsewhere):
                # If it was charged before, then it need not wait for whoever holds the row.
                item.waits_alone = True
                self._again.waiting.append(item)
            elif item.waits_alone and isinstance(verdict, NotChargedYet):
                self._alone.waiting.append(item)
            else:
                item.fail(verdict)
        if entered:
            self._on_entries(entered)

    def _sweep(self) -> None:
        """Answers those whose time is over, truly: what may have been committed is unknown, the rest is given up."""
        self._sweeper = None
        now_s = time.monotonic()
        for queue in self._queues:
            for item in queue.waiting:
                if item.deadline_s <= now_s:
                    item.fail(Overloaded("the charge waited too long for its turn"))  # and next_items drops it
            for batch in queue.under_way:
                _give_up_overdue(batch, now_s)
        self._start()


class _Queue:
    """Who waits for one kind of transaction, and those that are under way."""

    def __init__(self, charge: Charge, *, lanes: int, batch_size: int) -> None:
        self.charge = charge
        self.waiting: deque[PendingCharge] = deque()
        self.under_way: set[_Batch] = set()
        self.lanes = lanes
        self._batch_size = batch_size

    def lane_is_worth_it(self) -> bool:
        """An idle service goes at once. Beside a batch in flight only as many again are worth a lane of their own,
        unless that batch is slow: who knows whom it waits for.
        """
        if not self.waiting or len(self.under_way) >= self.lanes:
            return False
        now_s = time.monotonic()
        return all(
            len(self.waiting) >= len(batch.items) or now_s - batch.begun_at_s >= SLOW_BATCH_S
            for batch in self.under_way
        )

    def next_items(self) -> list[PendingCharge]:
        """The next batch, without those that are given up: the lease is over by now, or without one the caller gone."""
        batch: list[PendingCharge] = []
        while self.waiting and len(batch) < self._batch_size:
            item = self.waiting.popleft()
            if item.lease is not None and (item.lease.ended or item.lease.is_lost):
                item.fail(item.lease.loss())
            elif item.is_left:
                item.fail(asyncio.CancelledError())  # which nobody hears
            elif not item.is_settled:
                batch.append(item)
        return batch


class _Batch:
    """What shares a transaction."""

    __slots__ = ("begun_at_s", "items", "progress", "task")

    task: asyncio.Task[list[Verdict]]

    def __init__(self, items: list[PendingCharge]) -> None:
        self.items = items
        self.progress = Progress()
        self.begun_at_s = time.monotonic()


def _give_up_overdue(batch: _Batch, now_s: float) -> None:
    overdue = [item for item in batch.items if item.deadline_s <= now_s]
    if not overdue:
        return
    unknown = batch.progress.may_have_committed
    for item in overdue:
        if unknown:
            item.fail(ChargeUnknown("the database has not answered in time"))
        else:
            item.fail(DatabaseDown("the database has not answered in time"))
    if not unknown:
        batch.task.cancel()


def _as_told_to_callers(error: BaseException) -> BaseException:
    if isinstance(error, CommitUnknown):
        return ChargeUnknown("the database has not said what became of it")
    if isinstance(error, TimedOut):
        return ChargeInProgress(
            "the appointment's rows were not to be had in time", retry_after_s=ROW_HELD_RETRY_AFTER_S
        )
    return error
