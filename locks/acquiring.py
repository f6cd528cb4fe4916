"""Acquire: ask, wait in line, be granted; whoever gives up or is cancelled leaves nothing behind."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from threading import get_ident
from typing import Any

from locks.errors import Dismissed, HeldByCaller, LockBusy, LockStoreDown, LossReason
from locks.events import Acquired, GaveUp, Listener, Waiting, WakeSource, ignore
from locks.held import HeldLeases
from locks.keys import check_name, packed_keys
from locks.lease import Lease, LeaseKeeper, check_wait_s, is_over, milliseconds
from locks.line import Line
from locks.lines import Lines
from locks.node import Node
from locks.renewal import Renewal
from locks.store import LockStore
from locks.waiter import Grant, Waiter


class Acquiring:
    """All that stands between a call of acquire and its lease."""

    def __init__(
        self,
        keeper: LeaseKeeper,
        store: LockStore,
        held: HeldLeases,
        renewal: Renewal,
        emit: Listener,
        *,
        new_lease_id: Callable[[], str],
        drop: Callable[[Lease], None],
    ) -> None:
        self._keeper = keeper
        self._store = store
        self._now_s = store.clock.monotonic_s
        self._held = held
        self._renewal = renewal
        self._emit = emit
        self._new_lease_id = new_lease_id
        self._drop = drop
        self.lines: Lines  # set by whoever makes both: a line grants through us

    async def acquire(
        self,
        name: str,
        lease_ttl_s: float,
        wait_s: float | None,
        keep_extended: bool,
        for_whom: str,
        *,
        begins_at_once: bool,
    ) -> Lease:
        """As Locker.acquire; begins_at_once: as Locker.acquire_for_body. `for_whom`: of text_for.

        One long function, since each coroutine between a caller and the wire costs every cycle some of its time.
        """
        now_s, store = self._now_s, self._store
        started_at_s = now_s()
        if get_ident() != store.thread_id or not store.loop.is_running():
            store.check_loop()
        check_name(name)
        if wait_s is not None and not 0 < wait_s < math.inf:
            check_wait_s(wait_s)
            if wait_s != 0:
                wait_s = None
        holder = self._held.holder_of(name)
        if holder is not None and wait_s is None:
            _check_not_the_callers(holder)
        lease_ms = milliseconds(lease_ttl_s)
        self._held.check_room()
        self._held.asked_for += 1
        try:
            if wait_s is not None and wait_s <= 0:
                lease = await self._acquire_now(name, lease_ttl_s, keep_extended, for_whom, started_at_s)
                if keep_extended and not begins_at_once:
                    lease.task = asyncio.current_task()
                return lease
            lines = self.lines
            line = lines.by_name.get(name)
            if line is None and holder is not None:
                lines.check_room(None)
                line = lines.open(name)
            reply: Any = None
            if line is None and not lines.is_full:
                # Nobody here waits for it: the caller asks for itself, and in most cases that is all.
                line = lines.begin(name)
                lease_id = line.lease_id
                try:
                    node = self._store.node_of(name)
                    item = self._store.scripts.acquire_item(node, name, lease_id, lease_ms=lease_ms, for_whom=for_whom)
                    answer = node.gather(node.acquires, item)
                    line.may_hold = True
                    reply = await answer
                except LockStoreDown as error:
                    reply = error
                except asyncio.CancelledError:
                    # The command may be on the wire or the lock on its way to us. This one travels behind it.
                    lines.give_back(name, lease_id, lease_ttl_s)
                    line.first_is_gone()
                    self._gave_up(name, started_at_s, "cancelled", queued=False)
                    raise
                if reply.__class__ is int and reply > 0:
                    waited_s = now_s() - started_at_s
                    if not is_over(lease_ttl_s, after_s=waited_s):
                        line.first_is_gone()
                        lease = self._begin_at_once(
                            name, lease_id, reply, lease_ttl_s, keep_extended, for_whom, started_at_s, waited_s
                        )
                        lease.asked_once = True
                        if keep_extended and not begins_at_once:
                            lease.task = asyncio.current_task()
                        return lease
                    # We have stood still for so long that it is somebody else's by now: as if it had been refused.
            else:
                lines.check_room(line)
            assert line is not None
            waiter = Waiter(
                lease_ttl_s=lease_ttl_s,
                lease_ms=lease_ms,
                keep_extended=keep_extended,
                for_whom=for_whom,
                started_at_s=started_at_s,
                wait_s=wait_s,
                begins_at_once=begins_at_once,
            )
            return await self._wait(line, waiter, reply)
        finally:
            self._held.asked_for -= 1

    def grant(self, line: Line, waiter: Waiter, grant: Grant) -> Lease:
        """A line has been given the lock for its first waiter."""
        lease = Lease(
            self._keeper,
            line.name,
            grant.lease_id,
            fencing_token=grant.fencing_token,
            lease_ttl_s=waiter.lease_ttl_s,
            sent_at_s=grant.sent_at_s,
            waited_s=waiter.waited_s(self._now_s()),
            stood_in_line=grant.source is not WakeSource.NONE,
            keep_extended=waiter.keep_extended,
            for_whom=waiter.for_whom,
        )
        lease.is_for_body = waiter.begins_at_once
        if grant.ends_at_s is not None:
            lease.begins_unconfirmed(ends_at_s=grant.ends_at_s)
        self._begin(lease, grant.source, queued=True, takeover=grant.takeover, handoff_s=grant.handoff_s)
        waiter.grant(lease)
        return lease

    async def _acquire_now(
        self, name: str, lease_ttl_s: float, keep_extended: bool, for_whom: str, started_at_s: float
    ) -> Lease:
        lease_id, keys, lease_ms = self._new_lease_id(), packed_keys(name), milliseconds(lease_ttl_s)

        sent_count = 0

        def command(node: Node) -> str:
            nonlocal sent_count
            sent_count += node.commands.is_up
            fence = self._held.seen_fence
            return self._store.scripts.acquire_now(
                node, keys, lease_id, lease_ms=lease_ms, seen_fence=fence, for_whom=for_whom
            )

        line = self.lines.by_name.get(name)
        if line is not None:
            line.stand()
        try:
            for _ in range(2):
                asked_at_s = self._now_s()
                reply = await self._store.run(name, command)
                heard_late = isinstance(reply, int) and is_over(lease_ttl_s, after_s=self._now_s() - asked_at_s)
                if not heard_late:
                    break
        except LockStoreDown:
            if sent_count:
                self.lines.give_back(name, lease_id, lease_ttl_s)
            self._gave_up(name, started_at_s, "store-down", queued=False)
            raise
        except asyncio.CancelledError:
            self.lines.give_back(name, lease_id, lease_ttl_s)
            self._gave_up(name, started_at_s, "cancelled", queued=False)
            raise
        waited_s = self._now_s() - started_at_s
        if heard_late:  # twice: with answers that take so long nobody holds anything
            self.lines.give_back(name, lease_id, lease_ttl_s)
            reply = [-1]
        if not isinstance(reply, int):
            self._gave_up(name, started_at_s, "busy", queued=False)
            raise LockBusy(name, waited_s=waited_s, expires_in_s=reply[0] / 1000 if reply[0] >= 0 else None)
        lease = self._begin_at_once(name, lease_id, reply, lease_ttl_s, keep_extended, for_whom, asked_at_s, waited_s)
        lease.asked_once = sent_count == 1
        return lease

    async def _wait(self, line: Line, waiter: Waiter, first_reply: Any) -> Lease:
        """A place in line, until the lease is there. `first_reply`: what a caller who asked for itself was told."""
        name = line.name
        self.lines.waiter_count += 1
        if self._emit is not ignore:
            self._emit(Waiting(name))
        if first_reply is None:
            line.join(waiter)
            line.wait_for_holder()
        else:
            line.first_refused(waiter, first_reply)
        try:
            lease = await waiter.future
            if waiter.keep_extended and not waiter.begins_at_once:
                lease.task = asyncio.current_task()
            return lease
        except LockBusy:
            self._gave_up(name, waiter.started_at_s, "busy", queued=True)
            raise
        except Dismissed:
            self._gave_up(name, waiter.started_at_s, "dismissed", queued=True)
            raise
        except LockStoreDown:
            self._gave_up(name, waiter.started_at_s, "store-down", queued=True)
            raise
        except asyncio.CancelledError:
            line.leave(waiter)
            if waiter.lease is not None:
                self._drop(waiter.lease)
            self._gave_up(name, waiter.started_at_s, "cancelled", queued=waiter.lease is None)
            raise
        finally:
            self.lines.waiter_count -= 1

    def _begin_at_once(
        self,
        name: str,
        lease_id: str,
        fencing_token: int,
        lease_ttl_s: float,
        keep_extended: bool,
        for_whom: str,
        asked_at_s: float,
        waited_s: float,
    ) -> Lease:
        """The lease of a caller who did not have to wait, counted from a time before anything was sent for it."""
        lease = Lease(
            self._keeper,
            name,
            lease_id,
            fencing_token=fencing_token,
            lease_ttl_s=lease_ttl_s,
            sent_at_s=asked_at_s,
            waited_s=waited_s,
            stood_in_line=False,
            keep_extended=keep_extended,
            for_whom=for_whom,
        )
        return self._begin(lease, WakeSource.NONE)

    def _begin(
        self,
        lease: Lease,
        source: WakeSource,
        *,
        queued: bool = False,
        takeover: bool = False,
        handoff_s: float | None = None,
    ) -> Lease:
        if (before := self._held.keep(lease)) is not None:
            self._renewal.lose(before, LossReason.TAKEN)
        self._renewal.watch(lease)
        if self._emit is not ignore:
            token = lease.fencing_token
            self._emit(Acquired(lease.name, token, lease.waited_s, source, queued, takeover, handoff_s))
        if self._held.was_forced(lease.lease_id, lease.fencing_token):
            self._renewal.lose(lease, LossReason.FORCED)
        return lease

    def _gave_up(self, name: str, started_at_s: float, outcome: str, *, queued: bool) -> None:
        if self._emit is not ignore:
            self._emit(GaveUp(name, self._now_s() - started_at_s, outcome, queued))


def _check_not_the_callers(held: Lease) -> None:
    """Raises HeldByCaller where the caller would wait for ever for itself."""
    is_endless = held.keep_extended and held.holds_until_s == math.inf
    if is_endless and held.task is asyncio.current_task():
        raise HeldByCaller(held.name)
