"""Release: to the next in line, at once where that one is of this process; and never an error for work that is done."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from threading import get_ident
from typing import Any

from locks import events
from locks.errors import LockStoreDown
from locks.events import Listener, Released, WakeSource, ignore
from locks.held import HeldLeases
from locks.keys import packed_keys
from locks.lease import Lease
from locks.line import Line
from locks.lines import Lines
from locks.node import Node
from locks.renewal import Renewal
from locks.request import Request, Spawn
from locks.store import LockStore

_FREED, _HANDED_OVER = 1, 2


class Releasing:
    """The end of a lease by its holder's will."""

    def __init__(
        self, store: LockStore, lines: Lines, held: HeldLeases, renewal: Renewal, emit: Listener, *, spawn: Spawn
    ) -> None:
        self._store = store
        self._lines = lines
        self._held = held
        self._renewal = renewal
        self._emit = emit
        self._spawn = spawn
        self._kept_s = store.scripts.limits.keep_ms / 1000

    async def release(self, lease: Lease) -> bool:
        """As Lease.release."""
        store = self._store
        if get_ident() != store.thread_id or not store.loop.is_running():
            store.check_loop()
        if lease.ended:
            return False
        lease.ended = True
        if self._emit is not ignore:
            self._emit(events.Releasing(lease.name, lease.fencing_token, lease.for_whom))
        self._renewal.forget(lease)
        line = self._lines.by_name.get(lease.name)
        try:
            node = self._store.node_of(lease.name)
            if line is not None and line.take_turn(lease):
                reply = _HANDED_OVER
            elif line is not None and line.takes_over:
                reply = await self._release_in_line(lease, line, node)
            else:
                reply = 0
                if lease.asked_once and lease.lease_ttl_s <= self._kept_s:
                    reply = await node.gather(node.releases, (lease.name, lease.known_as))
                if reply != _FREED:
                    # There is more to it: others wait, or the grant of so long a lease would outlive it for as long.
                    reply = await self._store.ask(lease.name, partial(self._release_command, lease))
        except (LockStoreDown, asyncio.CancelledError):
            # Whether it is done is unknown; once more does no harm.
            self._lines.give_back_lease(lease)
            self._emit_released(lease, still_ours=False, handed_over=False)
            raise
        finally:
            # Not before: an old look of its line, answered meanwhile, must not take it for a lease that nobody wants.
            self._held.forget(lease)
        still_ours = bool(reply != 0)
        if not still_ours:
            self._give_back_what_is_nobodys(lease)
        if self._emit is not ignore:
            self._emit_released(lease, still_ours=still_ours, handed_over=still_ours and reply != _FREED)
        return still_ours

    def finish(self, lease: Lease) -> None:
        """As Lease.finish. Only a lost connection, or a lock that others wait for, makes it more than one command."""
        self._store.check_loop()
        if lease.ended:
            return
        lease.ended = True
        if self._emit is not ignore:
            self._emit(events.Releasing(lease.name, lease.fencing_token, lease.for_whom))
        self._renewal.forget(lease)
        line = self._lines.by_name.get(lease.name)
        try:
            node = self._store.node_of(lease.name)
            # Where our own callers stand in line at the server, others may behind them. These hear first that it is
            # done: our leaving the line would wake the next of them, who would take a turn for nothing.
            is_alone = lease.asked_once and not (line is not None and line.may_stand)
            if is_alone and lease.lease_ttl_s <= self._kept_s:
                node.gather_for(_Finishing(self, lease), node.releases, (lease.name, lease.known_as))
            else:
                self.finish_before_all(lease)
        except LockStoreDown:
            self.not_finished(lease)
        self._lines.dismiss(lease.name)

    def finish_before_all(self, lease: Lease) -> None:
        """Others wait at the server, and are told. Raises LockStoreDown at once while there is no connection."""
        node = self._store.node_of(lease.name)
        keys = packed_keys(lease.name)
        command = self._store.scripts.finish(
            keys, lease.known_as, grant_fence=lease.grant_fence, fencing_token=lease.fencing_token
        )
        Request(
            self._store,
            self._spawn,
            lease.name,
            lambda request, reply: self._told_all(lease, still_ours=reply == _FREED),
            lambda request, error: self.not_finished(lease),
        ).send(node, command)

    def _told_all(self, lease: Lease, *, still_ours: bool) -> None:
        if not still_ours:
            self._give_back_what_is_nobodys(lease)
        self.finished(lease, still_ours=still_ours)

    def finished(self, lease: Lease, *, still_ours: bool) -> None:
        """The server has answered."""
        self._held.forget(lease)
        self._emit_released(lease, still_ours=still_ours, handed_over=False)

    def not_finished(self, lease: Lease) -> None:
        """It has not, so nobody knows; another release does no harm, and who waits elsewhere gets a turn."""
        self._lines.give_back_lease(lease)
        self.finished(lease, still_ours=False)

    def drop(self, lease: Lease) -> None:
        """Releases without waiting for the answer; harmless twice."""
        if not lease.ended:
            self._spawn(self._release_quietly(lease))

    def _give_back_what_is_nobodys(self, lease: Lease) -> None:
        """The lease was over: an acquire carried out late may have taken the lock under its id since, for nobody."""
        self._lines.give_back_lease(lease)

    def _emit_released(self, lease: Lease, *, still_ours: bool, handed_over: bool) -> None:
        if self._emit is not ignore:
            self._emit(Released(lease.name, lease.fencing_token, lease.held_s, still_ours, handed_over, lease.for_whom))

    async def _release_in_line(self, lease: Lease, line: Line, node: Node) -> Any:
        """The release that also says who here wants the lock next, so that a handoff to it is one command."""
        first = line.first
        lease_ms = line.wants()
        command = self._store.scripts.release_in_line(
            node,
            line.packed_keys,
            lease.known_as,
            grant_fence=lease.grant_fence,
            fencing_token=lease.fencing_token,
            next_lease_id=line.lease_id,
            lease_ms=lease_ms,
            age_us=first.age_us(self._store.clock.monotonic_s()),
            later=line.later,
            waiter_count=len(line.waiters),
            for_whom=first.for_whom,
        )
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_reply(request: Request, reply: Any) -> None:
            if not answered.done():
                # First: who comes back for the lock stands before those whose turn begins now.
                answered.set_result(reply)
            self._released_in_line(lease, line, reply, lease_ms, request.sent_at_s)

        def on_error(request: Request, error: LockStoreDown) -> None:
            if not answered.done():
                answered.set_exception(error)

        Request(self._store, self._spawn, lease.name, on_reply, on_error).send(node, command)
        line.may_hold = True  # the line's id has been sent, and may be granted though nobody hears the answer
        return await answered

    def _released_in_line(self, lease: Lease, line: Line, reply: Any, lease_ms: int, sent_at_s: float) -> None:
        if isinstance(reply, list):
            fencing_token, lease_id, turns = reply[0], reply[1].decode(), reply[2]
            self._lines.granted_by_release(
                lease.name, lease_id, fencing_token, turns, lease_ms=lease_ms, sent_at_s=sent_at_s
            )
        elif not line.waiters:
            return
        elif reply == 0:
            line.look(WakeSource.TIMER)  # the lease was over, so the release has left nobody in line
        else:
            line.stands_in_line(lease, sent_at_s)

    def _release_command(self, lease: Lease, node: Node) -> str:
        keys = packed_keys(lease.name)
        return self._store.scripts.release(
            node, keys, lease.known_as, grant_fence=lease.grant_fence, fencing_token=lease.fencing_token
        )

    async def _release_quietly(self, lease: Lease) -> None:
        with contextlib.suppress(LockStoreDown):
            await self.release(lease)


class _Finishing:
    """Hears whether the lock was freed with those that nobody waits for; if not, there is more to do."""

    __slots__ = ("_lease", "_releasing")

    def __init__(self, releasing: Releasing, lease: Lease) -> None:
        self._releasing = releasing
        self._lease = lease

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any) -> None:
        if reply == _FREED:
            self._releasing.finished(self._lease, still_ours=True)
            return
        try:
            self._releasing.finish_before_all(self._lease)
        except LockStoreDown as error:
            self.set_exception(error)

    def set_exception(self, error: LockStoreDown) -> None:
        self._releasing.not_finished(self._lease)
