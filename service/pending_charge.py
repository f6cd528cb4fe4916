"""One charge on its way: submitted, settled once, awaited as often as its caller likes."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, NamedTuple

from db.charging import Entry
from db.decisions import ChargeRequest
from locks import Lease
from service.shares import Limit


class TimedEntry(NamedTuple):
    """An entry, and how long it waited for the lock, for its transaction, and was in it, seconds.

    `guarded_by`: the layer that keeps it from charging twice: lock (it stood in line), is_consume (nobody was before
    it), row_lock (without a lease), fence (its first lease was found stale). `batch_size`: with how many it shared it.
    """

    entry: Entry
    guarded_by: str
    lock_wait_s: float
    queued_s: float
    transaction_s: float
    batch_size: int = 1


class PendingCharge:
    """One request on its way. Whoever awaits it may be cancelled: what was begun goes on. Under a lease it may then be
    awaited again; without one its caller has gone, and what was not begun never is.

    Awaited, it gives the entry, or raises its refusal, Overloaded, DatabaseError, LeaseLost (nothing was begun),
    ChargeInProgress (another session holds the row) or ChargeUnknown.
    """

    __slots__ = (
        "_entry",
        "_error",
        "_listener",
        "_loop",
        "_places",
        "deadline_s",
        "guarded_by",
        "is_left",
        "lease",
        "lock_wait_s",
        "request",
        "submitted_at_s",
        "waits_alone",
    )

    def __init__(
        self,
        request: ChargeRequest,
        lease: Lease | None,
        lock_wait_s: float,
        guarded_by: str,
        loop: asyncio.AbstractEventLoop,
        submitted_at_s: float,
        deadline_s: float,
        places: Limit,
    ) -> None:
        """`places`: where it has one, which it leaves once its outcome is known."""
        self.request = request
        self.lease = lease
        self.lock_wait_s = lock_wait_s
        self.guarded_by = guarded_by
        self.is_left = False  # by its caller, and there is no lease whose end would say so
        self.waits_alone = False  # for its row, which another session holds
        self.submitted_at_s = submitted_at_s
        self.deadline_s = deadline_s
        self._loop = loop
        self._places = places
        self._listener: asyncio.Future[None] | None = None
        self._entry: TimedEntry | None = None
        self._error: BaseException | None = None

    def __await__(self) -> Generator[Any, None, TimedEntry]:
        if not self.is_settled:
            assert self._listener is None or self._listener.done(), "one at a time may await a charge"
            self._listener = self._loop.create_future()
            try:
                yield from self._listener
            except asyncio.CancelledError:
                self.is_left = self.lease is None
                raise
        if self._error is not None:
            raise self._error
        assert self._entry is not None
        return self._entry

    @property
    def is_settled(self) -> bool:
        """Whether the outcome is known."""
        return self._entry is not None or self._error is not None

    def answer(self, entry: TimedEntry) -> bool:
        """Whether it was not answered before."""
        if self.is_settled:
            return False
        self._entry = entry
        self._wake()
        return True

    def fail(self, error: BaseException) -> None:
        if not self.is_settled:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        self._places.leave(self.request.user_id)
        if self._listener is not None and not self._listener.done():
            self._listener.set_result(None)
