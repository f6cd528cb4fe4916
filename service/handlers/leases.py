"""Leases for any other program, in any language: had, extended and given back by whoever shows the lease id."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from locks import LockBusy, Locker
from locks.loan import Loan
from service.callers import LOCKS, Callers
from service.handlers.contention import party_answer
from service.handlers.http import JSON, answer, caller_with, json_body, path_name
from service.models import LeaseAnswer, LeaseExtension, NewLease
from service.refusals import Draining, LeaseRefused, Overloaded

LONGEST_RETRY_AFTER_S = 60.0


class LeaseHandlers:
    """Everything under /v1/locks/{name}/leases. A lease belongs to the client, not to the worker that granted it."""

    def __init__(self, locker: Locker, callers: Callers, *, max_waits: int, stopping: asyncio.Event) -> None:
        self._locker = locker
        self._lending = locker.lending
        self._callers = callers
        self._max_waits = max_waits
        self._stopping = stopping
        self._waits = 0

    async def lend(self, request: web.Request) -> web.Response:
        """A new lease, had within wait_ms; a client that hangs up meanwhile leaves neither place nor lease behind.

        One whose id it has chosen is the exception: the client is expected to ask for it again.
        """
        caller_with(request, self._callers, LOCKS)
        name = path_name(request)
        wanted = await json_body(request, NewLease)
        try:
            loan = await self._lent(name, wanted, request["id"])
        except LockBusy as busy:
            raise await self._refusal(busy) from busy
        if wanted.lease_id is not None:
            return answer(_shown(loan), status=201 if loan.is_new else 200)
        return _NewLease(_shown(loan), give_back=lambda: self._lending.give_back(loan))

    async def extend(self, request: web.Request) -> web.Response:
        """Its end is moved; the fencing token stays."""
        caller_with(request, self._callers, LOCKS)
        name = path_name(request)
        wanted = await json_body(request, LeaseExtension)
        lease_id = request.match_info["lease_id"]
        loan = await self._lending.extend(name, lease_id, lease_ttl_s=wanted.ttl_ms / 1000)
        return answer(_shown(loan))

    async def release(self, request: web.Request) -> web.Response:
        """The lock is free, or the next waiter's."""
        caller_with(request, self._callers, LOCKS)
        await self._lending.release(path_name(request), request.match_info["lease_id"])
        return web.Response(status=204, headers={"Cache-Control": "no-store"})

    async def _lent(self, name: str, wanted: NewLease, request_id: str) -> Loan:
        if wanted.wait_ms == 0:
            return await self._asked(name, wanted, request_id)
        if self._waits >= self._max_waits:
            raise Overloaded(f"clients that wait for leases already: {self._waits}")
        self._waits += 1
        try:
            loan = await self._unless_stopping(self._asked(name, wanted, request_id))
        finally:
            self._waits -= 1
        if wanted.lease_id is not None:
            return loan
        try:
            await asyncio.sleep(0)  # whoever has hung up while the lease came is found out now
        except asyncio.CancelledError:
            self._lending.give_back(loan)
            raise
        return loan

    def _asked(self, name: str, wanted: NewLease, request_id: str) -> Coroutine[Any, Any, Loan]:
        lease_ttl_s, wait_s = wanted.ttl_ms / 1000, wanted.wait_ms / 1000
        if wanted.lease_id is None:
            return self._lending.lend(name, lease_ttl_s=lease_ttl_s, wait_s=wait_s, request_id=request_id)
        return self._lending.lend_as(
            name, wanted.lease_id, lease_ttl_s=lease_ttl_s, wait_s=wait_s, request_id=request_id
        )

    async def _unless_stopping(self, lending: Coroutine[Any, Any, Loan]) -> Loan:
        """Raises Draining as soon as this instance is about to stop."""
        loop = asyncio.get_running_loop()
        stopping = loop.create_task(self._stopping.wait(), name="lease-wait")
        try:
            async with asyncio.timeout(None) as patience:
                stopping.add_done_callback(lambda told: None if told.cancelled() else patience.reschedule(loop.time()))
                return await lending
        except TimeoutError as error:
            raise Draining("this instance is about to stop") from error
        finally:
            stopping.cancel()

    async def _refusal(self, busy: LockBusy) -> LeaseRefused:
        view = await self._locker.inspect(busy.name)
        holder = party_answer(view.holder) if view else None
        expires_in_s = view.expires_in_s if view else busy.expires_in_s
        return LeaseRefused(
            f"another holds the lock {busy.name!r}",
            holder=holder.model_dump() if holder else None,
            expires_in_ms=None if expires_in_s is None else round(expires_in_s * 1000),
            waiters=view.waiter_count if view else 0,
            retry_after_s=min(expires_in_s or 0.0, LONGEST_RETRY_AFTER_S),
        )


class _NewLease(web.Response):
    """Where it cannot be written, because the client is gone, the lease is given back."""

    def __init__(self, shown: LeaseAnswer, *, give_back: Callable[[], None]) -> None:
        super().__init__(
            body=shown.model_dump_json().encode(),
            status=201,
            headers={"Content-Type": JSON, "Cache-Control": "no-store"},
        )
        self._give_back = give_back

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """As every response. Raises ConnectionError, CancelledError."""
        try:
            return await super().prepare(request)
        except BaseException:
            self._give_back()
            raise

    async def write_eof(self, data: bytes = b"") -> None:
        """As every response. Raises ConnectionError, CancelledError."""
        try:
            await super().write_eof(data)
        except BaseException:
            self._give_back()
            raise


def _shown(loan: Loan) -> LeaseAnswer:
    return LeaseAnswer(
        name=loan.name,
        lease_id=loan.lease_id,
        fencing_token=loan.fencing_token,
        ttl_ms=round(loan.lease_ttl_s * 1000),
        expires_at=datetime.fromtimestamp(time.time(), UTC) + timedelta(seconds=loan.ends_in_s()),
    )
