"""Leases under ids that their clients chose: asked for again, because an answer was lost, it is the same lease.

The script `lent_ask.lua` decides. A process only sees to it that all who wait here for one lease id have one place in
line, and look again when it has been lent through another process.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from locks.errors import LockBusy, LockStoreDown
from locks.events import Exported, Listener
from locks.for_whom import read_for_whom
from locks.lease import Lease, check_wait_s, milliseconds
from locks.loan import Loan
from locks.store import LockStore
from locks.wire import retrieve

if TYPE_CHECKING:
    from locks.lending import Borrower, Lending
    from locks.locker import Locker

# A loop's timer stands still while the machine is suspended, so that a wait is counted in pieces.
LONGEST_PIECE_S = 1.0


class _Wait:
    """All who wait here for one lease id: one task acquires the lock for them."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Loan]
        self.listener_count = 0
        self.is_had = False  # the lock is ours, and being lent under the lease id


class ChosenIds:
    """Lends locks under ids that clients chose."""

    def __init__(self, lending: Lending, locker: Locker, store: LockStore, emit: Listener) -> None:
        self._lending = lending
        self._locker = locker
        self._store = store
        self._clock = store.clock
        self._emit = emit
        self._waits: dict[tuple[str, str], _Wait] = {}

    async def lend(
        self, name: str, lease_id: str, *, lease_ttl_s: float, wait_s: float, for_whom: str, borrower: Borrower
    ) -> Loan:
        """As Lending.lend_as."""
        check_wait_s(wait_s)
        ends_at_s = self._clock.monotonic_s() + wait_s
        loan = await self._look(name, lease_id, lease_ttl_s, borrower)
        while loan is None:
            with self._lending.room_for(borrower):
                loan = await self._had(name, lease_id, lease_ttl_s, ends_at_s, for_whom, borrower)
            if loan is None:
                loan = await self._look(name, lease_id, lease_ttl_s, borrower)
        return loan

    def lent(self, name: str, lease_id: str) -> None:
        """It has been lent; who still waits for it here looks again."""
        wait = self._waits.get((name, lease_id))
        if wait is not None and not wait.is_had:
            wait.task.cancel()

    def leave(self) -> None:
        """Nobody waits here any more."""
        for wait in self._waits.values():
            wait.task.cancel()

    async def _had(
        self, name: str, lease_id: str, lease_ttl_s: float, ends_at_s: float, for_whom: str, borrower: Borrower
    ) -> Loan | None:
        """The lease, had or waited for; None for whoever is to look. Raises LockBusy."""
        left_s = ends_at_s - self._clock.monotonic_s()
        try:
            if left_s > 0:
                return await self._wait(name, lease_id, lease_ttl_s, left_s, for_whom, borrower)
            loan = await self._begin(_Wait(), name, lease_id, lease_ttl_s, 0.0, for_whom, borrower)
        except LockBusy:
            # The message that it has been lent through another process may be lost.
            loan_of_another = await self._look(name, lease_id, lease_ttl_s, borrower)
            if loan_of_another is None:
                raise
            return loan_of_another
        self.lent(name, lease_id)
        return loan

    async def _look(self, name: str, lease_id: str, lease_ttl_s: float, borrower: Borrower) -> Loan | None:
        """The lease, with its whole time, where it is held under this id. Raises LeaseOver, LockStoreDown."""
        reply, sent_at_s = await self._ask(name, lease_id, lease_ttl_s, "", None)
        if reply == b"none":
            return None
        if isinstance(reply, bytes):
            raise self._lending.over(name, lease_id, reply.decode())
        return self._lending.extended(
            Loan(name, lease_id, reply[0], lease_ttl_s, sent_at_s, clock=self._clock, is_new=False), reply, borrower
        )

    async def _wait(
        self, name: str, lease_id: str, lease_ttl_s: float, wait_s: float, for_whom: str, borrower: Borrower
    ) -> Loan | None:
        """The lease of whoever began to wait; None for those who came later, and are to look. Raises LockBusy."""
        gives_up_at_s = self._clock.monotonic_s() + wait_s
        wait = self._waits.get((name, lease_id))
        is_first = wait is None
        if wait is None:
            wait = self._waits[name, lease_id] = _Wait()
            work = self._begin(wait, name, lease_id, lease_ttl_s, math.inf, for_whom, borrower)
            wait.task = asyncio.create_task(work, name="lock-asked")
            wait.task.add_done_callback(retrieve)
        wait.listener_count += 1
        try:
            while not wait.task.done():
                left_s = gives_up_at_s - self._clock.monotonic_s()
                if left_s <= 0:
                    raise LockBusy(name, waited_s=wait_s - left_s, expires_in_s=None)
                await asyncio.wait([wait.task], timeout=min(left_s, LONGEST_PIECE_S))
        finally:
            wait.listener_count -= 1
            if wait.task.done() or not wait.listener_count:
                wait.task.cancel()
                if self._waits.get((name, lease_id)) is wait:
                    del self._waits[name, lease_id]
        if wait.task.cancelled():
            return None
        loan = wait.task.result()
        return loan if is_first else None

    async def _begin(
        self,
        wait: _Wait,
        name: str,
        lease_id: str,
        lease_ttl_s: float,
        wait_s: float,
        for_whom: str,
        borrower: Borrower,
    ) -> Loan:
        """Acquires the lock under an id of ours, and lends it under the client's. Raises as Lending.lend_as."""
        lease = await self._lending.acquired(name, lease_ttl_s, wait_s, for_whom)
        wait.is_had = True
        self._locker.end_run(lease)
        try:
            reply, sent_at_s = await self._ask(name, lease_id, lease_ttl_s, for_whom, lease)
            if reply == b"none":
                raise LockStoreDown("the lease was lost before it could be handed out")
            if isinstance(reply, bytes):
                raise self._lending.over(name, lease_id, reply.decode())
        except BaseException:
            self._locker.drop(lease)  # travels behind: what was lent already is not ours to release
            raise
        return self._lent(lease, lease_id, lease_ttl_s, sent_at_s, reply, borrower)

    def _lent(
        self, lease: Lease, lease_id: str, lease_ttl_s: float, sent_at_s: float, reply: Any, borrower: Borrower
    ) -> Loan:
        fencing_token, _, is_keeper, for_whom, _, is_new = reply
        owner = read_for_whom(for_whom.decode()).owner
        loan = Loan(
            lease.name, lease_id, fencing_token, lease_ttl_s, sent_at_s, owner, clock=self._clock, is_new=bool(is_new)
        )
        if not lease.ended:
            self._locker.hand_out(lease)
            if is_keeper:
                self._lending.keep(loan, lease.acquired_at_s, lease.for_whom, borrower)
            else:
                self._emit(Exported(lease.name, fencing_token, lease.held_s, lease.for_whom))
        return loan

    async def _ask(
        self, name: str, lease_id: str, lease_ttl_s: float, for_whom: str, lease: Lease | None
    ) -> tuple[Any, float]:
        """The script's reply, and when it was asked; `lease`: under which we hold the lock for the client."""
        sent_at_s, lease_ms = 0.0, milliseconds(lease_ttl_s)

        def command(node: Any) -> str:
            nonlocal sent_at_s
            sent_at_s = self._clock.monotonic_s()
            own = ("", 0, 0) if lease is None else (lease.known_as, lease.grant_fence, lease.fencing_token)
            own_id, own_fence, own_token = own
            return self._store.scripts.lent_ask(
                node,
                name,
                lease_id,
                lease_ms=lease_ms,
                for_whom=for_whom,
                own_id=own_id,
                own_fence=own_fence,
                own_token=own_token,
            )

        reply = await self._store.run(name, command)
        return reply, sent_at_s
