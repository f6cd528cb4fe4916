"""The `async with` of Locker.hold: acquire, keep extended, cancel the body when the lease is lost, release."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING

from locks.errors import LockStoreDown
from locks.lease import Lease

if TYPE_CHECKING:
    from locks.locker import Locker


class Hold:
    """The `async with` of Locker.hold."""

    __slots__ = ("_cancelling", "_lease", "_lease_ttl_s", "_locker", "_name", "_task", "_told", "_wait_s")

    def __init__(self, locker: Locker, name: str, *, lease_ttl_s: float, wait_s: float | None) -> None:
        self._locker = locker
        self._name = name
        self._lease_ttl_s = lease_ttl_s
        self._wait_s = wait_s
        self._lease: Lease | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._told = False

    async def __aenter__(self) -> Lease:
        lease = await self._locker.acquire(
            self._name, lease_ttl_s=self._lease_ttl_s, wait_s=self._wait_s, keep_extended=True
        )
        self._lease = lease
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        lease.when_lost(self._cancel_body)
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, task = self._lease, self._task
        assert lease is not None
        assert task is not None
        self._locker.notice_lapse(lease)
        if lease.loss_reason is not None:
            ours = self._told and task.uncancel() <= self._cancelling
            if kind is None or (kind is asyncio.CancelledError and ours):
                raise lease.loss() from error
            return
        try:
            await self._locker.release(lease)
        except LockStoreDown:
            # Release is politeness: what was done under the lease stays done, and the lease runs out by itself.
            return

    def _cancel_body(self) -> None:
        assert self._task is not None
        if self._task is asyncio.current_task():
            return  # the body has found out itself: a cancellation would meet whatever it awaits next
        self._told = True
        self._task.cancel()
