"""The `async with` of Locker.hold and hold_many: acquire, keep extended, cancel the body on a loss, release."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from locks.errors import LockStoreDown
from locks.lease import Lease

if TYPE_CHECKING:
    from locks.locker import Locker


class _Body:
    """The code under one or several leases: cancelled when one of them is lost."""

    __slots__ = ("_cancelling", "_locker", "_task", "_told")

    def __init__(self, locker: Locker) -> None:
        self._locker = locker
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._told = False

    def _begin(self, leases: Sequence[Lease]) -> None:
        task = self._task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()
        for lease in leases:
            lease.task = task
            lease.when_lost(self._cancel)
        for lease in leases:
            if lease.loss_reason is not None:  # before anybody could be told: forced in the moment of the handoff
                for other in leases:
                    self._locker.drop(other)
                raise lease.loss()

    async def _end(
        self, leases: Sequence[Lease], kind: type[BaseException] | None, error: BaseException | None
    ) -> None:
        task = self._task
        assert task is not None
        # The body is over: a cancellation would meet whatever is awaited here, or after it.
        for lease in leases:
            lease.when_lost(None)
        try:
            if any(lease.is_unconfirmed and lease.is_lost for lease in leases):
                # The body has blocked the loop, and the confirmation that has come meanwhile is not read yet.
                await asyncio.sleep(0.001)
            lost = None
            for lease in leases:
                if not lease.ended:
                    self._locker.notice_lapse(lease)
                if lease.loss_reason is not None and lost is None:
                    lost = lease
            ours = self._told and task.uncancel() <= self._cancelling
            for lease in leases:
                # Release is politeness: what was done under the lease stays done, and the lease runs out by itself.
                with contextlib.suppress(LockStoreDown):
                    await self._locker.release(lease)
        except asyncio.CancelledError:
            for lease in leases:
                self._locker.drop(lease)
            raise
        if lost is not None and (kind is None or (kind is asyncio.CancelledError and ours)):
            raise lost.loss() from error

    def _cancel(self) -> None:
        assert self._task is not None
        if self._told or self._task is asyncio.current_task():
            return  # told already, or the body has found out itself: a cancellation would meet whatever it awaits next
        self._told = True
        self._task.cancel()


class Hold(_Body):
    """The `async with` of Locker.hold."""

    __slots__ = ("_for_whom", "_lease", "_lease_ttl_s", "_max_hold_s", "_name", "_wait_s")

    def __init__(
        self,
        locker: Locker,
        name: str,
        *,
        lease_ttl_s: float,
        wait_s: float | None,
        max_hold_s: float | None,
        for_whom: str,
    ) -> None:
        super().__init__(locker)
        self._name = name
        self._lease_ttl_s = lease_ttl_s
        self._wait_s = wait_s
        self._max_hold_s = max_hold_s
        self._for_whom = for_whom
        self._lease: Lease | None = None

    async def __aenter__(self) -> Lease:
        lease = self._lease = await self._locker.acquire_for_body(
            self._name, lease_ttl_s=self._lease_ttl_s, wait_s=self._wait_s, for_whom=self._for_whom
        )
        if self._max_hold_s is not None:
            lease.bound(self._max_hold_s, from_s=lease.acquired_at_s)
        self._begin((lease,))
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease = self._lease
        assert lease is not None
        if kind is None and lease.ended and lease.loss_reason is None and not self._told:
            return  # the body has released it, or finished
        await self._end((lease,), kind, error)


class HoldMany(_Body):
    """The `async with` of Locker.hold_many."""

    __slots__ = ("_lease_ttl_s", "_leases", "_max_hold_s", "_names", "_owner", "_request_id", "_wait_s")

    def __init__(
        self,
        locker: Locker,
        names: Sequence[str],
        *,
        lease_ttl_s: float,
        wait_s: float | None,
        max_hold_s: float | None,
        request_id: str,
        owner: str | None,
    ) -> None:
        super().__init__(locker)
        self._names = names
        self._lease_ttl_s = lease_ttl_s
        self._wait_s = wait_s
        self._max_hold_s = max_hold_s
        self._request_id = request_id
        self._owner = owner
        self._leases: list[Lease] = []

    async def __aenter__(self) -> list[Lease]:
        self._leases = await self._locker.acquire_many(
            self._names,
            lease_ttl_s=self._lease_ttl_s,
            wait_s=self._wait_s,
            keep_extended=True,
            max_hold_s=self._max_hold_s,
            request_id=self._request_id,
            owner=self._owner,
        )
        self._begin(self._leases)
        return self._leases

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end(self._leases, kind, error)
