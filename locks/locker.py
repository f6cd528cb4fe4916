"""Locker.hold(name): wait, acquire, keep extended, release."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Self

from locks.address import place_of
from locks.errors import HolderChanged, LockBusy, LockStoreDown, LossReason, TooManyLeases
from locks.events import (
    Acquired,
    Adopted,
    Exported,
    Extended,
    Forced,
    GaveUp,
    Listener,
    Released,
    StoreLost,
    StoreUp,
    Waiting,
    WakeSource,
    ignore,
)
from locks.hold import Hold, HoldMany
from locks.inspection import LockView, view_of
from locks.keys import check_name, packed_keys
from locks.lease import Lease, milliseconds
from locks.line import Line
from locks.lines import Lines
from locks.node import Node, NodeEvents
from locks.renewal import Renewal, extend
from locks.request import Request
from locks.servers import servers_at
from locks.store import ExtendOutcome, ForceOutcome, LockStore, QueueLimits, Scripts
from locks.waiter import Grant, Waiter

_RANDOM_BYTES, _IDS_AT_ONCE = 16, 256
_FREED, _HANDED_OVER = 1, 2


class Locker:
    """Every lock of this process, over two connections a server: for commands, and for messages. For one event loop."""

    def __init__(
        self,
        url: str,
        *,
        instance_id: str,
        command_timeout_s: float = 0.5,
        outage_wait_s: float | None = None,
        max_waiters: int = 10_000,
        max_waiters_per_lock: int = 10_000,
        max_leases: int = 100_000,
        queue_limits: QueueLimits | None = None,
        listener: Listener = ignore,
    ) -> None:
        """url: redis://, rediss://, redis+sentinel:// or redis+cluster://. Raises ValueError for any other.

        `command_timeout_s`: when a server counts as silent. `outage_wait_s`: how long callers wait for a connection to come
        back before they get LockStoreDown (None: command_timeout_s).
        """
        self.instance_id = instance_id
        self._emit = listener
        self._max_leases = max_leases
        self._lease_ids: list[str] = []
        self._held: dict[str, Lease] = {}  # also those that are being released
        self._holders: dict[str, Lease] = {}
        self._seen_fence = 0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._scripts = Scripts(queue_limits or QueueLimits(), holder=_holder(instance_id))
        node_events = NodeEvents(
            on_message=self._on_message,
            on_changed=lambda lock_key: self._lines.on_changed(lock_key),
            on_up=self._on_up,
            on_messages_up=lambda node: self._lines.look_all(WakeSource.RECONNECT),
            on_lost=lambda node, reason: self._emit(StoreLost(reason)),
        )

        def new_node(address: Any, **options: Any) -> Node:
            return Node(
                address,
                command_timeout_s=command_timeout_s,
                greeting=self._scripts.greeting,
                acquire_free=lambda items: self._scripts.acquire_free(items, seen_fence=self._seen_fence),
                release_alone=self._scripts.release_alone,
                events=node_events,
                **options,
            )

        self._servers = servers_at(place_of(url), new_node, command_timeout_s=command_timeout_s)
        self._store = LockStore(self._servers, self._scripts, command_timeout_s=command_timeout_s)
        self._renewal = Renewal(self._store, listener, on_lost=self._lost)
        self._lines = Lines(
            self._store,
            max_waiters=max_waiters,
            max_waiters_per_lock=max_waiters_per_lock,
            outage_wait_s=command_timeout_s if outage_wait_s is None else outage_wait_s,
            new_lease_id=self._new_lease_id,
            seen_fence=lambda: self._seen_fence,
            is_held=self._is_held,
            grant=self._grant,
            lose=self._renewal.lose,
            spawn=self._spawn,
        )
        self._command_timeout_s = command_timeout_s

    @classmethod
    def connect(
        cls, url: str, *, instance_id: str, command_timeout_s: float = 0.5, listener: Listener = ignore
    ) -> Self:
        """A locker for `async with`, which raises LockStoreDown when Redis does not answer at the start.

        url: redis://, rediss://, redis+sentinel:// or redis+cluster://. Raises ValueError for any other.
        """
        return cls(url, instance_id=instance_id, command_timeout_s=command_timeout_s, listener=listener)

    async def __aenter__(self) -> Self:
        await self.open()
        if not await self.up_within(max(1.0, 2 * self._command_timeout_s)):
            reason = self._servers.last_error
            await self.close()
            raise LockStoreDown(reason)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Begins to connect; until Redis answers, every call raises LockStoreDown."""
        await self._servers.open()

    async def up_within(self, wait_s: float) -> bool:
        """Waits for the first connections, or for those lost a moment ago; whether they are there."""
        return await self._servers.up_within(wait_s)

    async def close(self) -> None:
        """Leaves every line and closes the connections. Leases still held run out by themselves."""
        self._closed = True
        self._renewal.close()
        self._lines.leave_all()
        await self._servers.close()
        self._lines.close(LockStoreDown("closed"))
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @property
    def is_up(self) -> bool:
        """Whether Redis answers, as far as is known."""
        nodes = list(self._servers.nodes())
        return bool(nodes) and all(node.commands.is_up for node in nodes)

    @property
    def waiter_count(self) -> int:
        """How many callers of this process wait for a lock."""
        return self._lines.waiter_count

    @property
    def held(self) -> Sequence[Lease]:
        """The leases that this process holds now."""
        return [lease for lease in self._held.values() if not lease.ended]

    def hold(self, name: str, *, lease_ttl_s: float = 10.0, wait_s: float | None = None, request_id: str = "") -> Hold:
        """`async with` holds the lock, kept extended; when it is lost the body is cancelled and LeaseLost comes out.

        `request_id` is shown wherever the holder is. Raises LockBusy after wait_s (None waits for ever), LockStoreDown,
        TooManyWaiters, TooManyLeases, ValueError.
        """
        return Hold(self, name, lease_ttl_s=lease_ttl_s, wait_s=wait_s, request_id=request_id)

    def hold_many(
        self, names: Sequence[str], *, lease_ttl_s: float = 10.0, wait_s: float | None = None, request_id: str = ""
    ) -> HoldMany:
        """The same for several locks, all or none; the body gets their leases in the order of `names`."""
        return HoldMany(self, names, lease_ttl_s=lease_ttl_s, wait_s=wait_s, request_id=request_id)

    def acquire(
        self,
        name: str,
        *,
        lease_ttl_s: float = 10.0,
        wait_s: float | None = None,
        keep_extended: bool = False,
        request_id: str = "",
    ) -> Coroutine[Any, Any, Lease]:
        """A lease on `name`, which ends after lease_ttl_s unless it is extended or released.

        Raises LockBusy after wait_s (0: at once, None: never), LockStoreDown, TooManyWaiters, TooManyLeases, ValueError.
        """
        return self._acquire(name, lease_ttl_s, wait_s, keep_extended, request_id, begins_at_once=False)

    def acquire_for_body(
        self, name: str, *, lease_ttl_s: float, wait_s: float | None, request_id: str
    ) -> Coroutine[Any, Any, Lease]:
        """The same for the body of a hold, which begins under the claim of a handoff while its lease is confirmed."""
        return self._acquire(name, lease_ttl_s, wait_s, True, request_id, begins_at_once=True)

    async def _acquire(
        self,
        name: str,
        lease_ttl_s: float,
        wait_s: float | None,
        keep_extended: bool,
        request_id: str,
        *,
        begins_at_once: bool,
    ) -> Lease:
        started_at_s = time.monotonic()
        check_name(name)
        lease_ms = milliseconds(lease_ttl_s)
        if request_id:
            _check_request_id(request_id)
        if len(self._held) >= self._max_leases:
            raise TooManyLeases(f"this process holds {len(self._held)} leases already")
        if wait_s is not None and wait_s <= 0:
            return await self._acquire_now(name, lease_ttl_s, keep_extended, request_id, started_at_s)
        lines = self._lines
        line = lines.by_name.get(name)
        if line is None and name in self._holders:
            lines.check_room(None)
            line = lines.open(name)
        reply: Any = None
        if line is None and not lines.is_full:
            # Nobody here waits for it: the caller asks for itself, and in most cases that is all.
            line = lines.begin(name)
            lease_id = line.lease_id
            try:
                node = self._store.node_of(name)
                item = self._scripts.acquire_item(node, name, lease_id, lease_ms=lease_ms, request_id=request_id)
                answer = node.gather(node.acquires, item)
                line.may_hold = True
                reply = await answer
            except LockStoreDown as error:
                reply = error
            except asyncio.CancelledError:
                # The command may be on the wire or the lock on its way to us. This one travels behind it.
                lines.give_back(name, lease_id)
                line.first_is_gone()
                self._gave_up(name, started_at_s, "cancelled", queued=False)
                raise
            if reply.__class__ is int and reply > 0:
                line.first_is_gone()
                return self._begin(
                    Lease(
                        self,
                        name,
                        lease_id,
                        fencing_token=reply,
                        lease_ttl_s=lease_ttl_s,
                        sent_at_s=started_at_s,
                        waited_s=time.monotonic() - started_at_s,
                        stood_in_line=False,
                        keep_extended=keep_extended,
                        request_id=request_id,
                    ),
                    WakeSource.NONE,
                )
        else:
            lines.check_room(line)
        assert line is not None
        waiter = Waiter(
            lease_ttl_s=lease_ttl_s,
            lease_ms=lease_ms,
            keep_extended=keep_extended,
            request_id=request_id,
            started_at_s=started_at_s,
            wait_s=wait_s,
            begins_at_once=begins_at_once,
        )
        return await self._wait(line, waiter, reply)

    async def acquire_many(
        self,
        names: Sequence[str],
        *,
        lease_ttl_s: float = 10.0,
        wait_s: float | None = None,
        keep_extended: bool = False,
        request_id: str = "",
    ) -> list[Lease]:
        """Leases on all of `names` or on none, in their order; callers of overlapping names cannot deadlock.

        They are acquired in ascending order, and those already acquired are kept extended meanwhile; with
        keep_extended=False each then has lease_ttl_s from the return. Raises as acquire does, wait_s being for all
        together, and ValueError for a name that is there twice; LeaseLost where one was lost while the next was waited for.
        """
        if len(set(names)) != len(names):
            raise ValueError("each lock's name may be there only once")
        ends_at_s = None if wait_s is None else time.monotonic() + wait_s
        leases: dict[str, Lease] = {}
        try:
            for name in sorted(names):
                left_s = None if ends_at_s is None else max(0.0, ends_at_s - time.monotonic())
                leases[name] = await self.acquire(
                    name, lease_ttl_s=lease_ttl_s, wait_s=left_s, keep_extended=True, request_id=request_id
                )
            if not keep_extended:
                await asyncio.gather(*[lease.extend(lease_ttl_s) for lease in leases.values()])
            for lease in leases.values():
                lease.raise_if_lost()
        except BaseException:
            for lease in leases.values():
                self.drop(lease)
            raise
        if not keep_extended:
            for lease in leases.values():
                lease.keep_extended = False
                self._renewal.watch(lease)
        return [leases[name] for name in names]

    async def adopt(self, exported: str, *, keep_extended: bool = False, request_id: str = "") -> Lease:
        """The lease that Lease.export() gave this text for, ours with its whole time from now on.

        Raises LeaseLost when it has ended meanwhile, LockStoreDown, TooManyLeases, ValueError for a text of another kind.
        """
        name, lease_id, fencing_token, lease_ttl_s = _read_export(exported)
        keys = packed_keys(name)
        lease_ms = milliseconds(lease_ttl_s)
        _check_request_id(request_id)
        if len(self._held) >= self._max_leases:
            raise TooManyLeases(f"this process holds {len(self._held)} leases already")
        sent_at_s = time.monotonic()
        try:
            reply = await self._store.run(
                name,
                lambda node: self._scripts.adopt(node, keys, lease_id, lease_ms=lease_ms, request_id=request_id),
            )
        except asyncio.CancelledError:
            # Nobody keeps it from now on, neither the exporter nor we.
            self._lines.give_back_unless_held(name, lease_id)
            raise
        lease = Lease(
            self,
            name,
            lease_id,
            fencing_token=reply if isinstance(reply, int) else fencing_token,
            lease_ttl_s=lease_ttl_s,
            sent_at_s=sent_at_s,
            waited_s=0.0,
            stood_in_line=False,
            keep_extended=keep_extended,
            request_id=request_id,
        )
        if not isinstance(reply, int):
            lease.declare_lost(LossReason(reply.decode()))
            raise lease.loss()
        self._keep(lease)
        self._emit(Adopted(name, lease.fencing_token))
        return lease

    async def inspect(self, name: str) -> LockView | None:
        """Who holds the lock and who waits for it, in order; None when nobody does. Raises LockStoreDown, ValueError."""
        keys = packed_keys(name)
        return view_of(name, await self._store.run(name, lambda node: self._scripts.inspect(keys)))

    async def force_release(self, name: str, *, fencing_token: int) -> bool:
        """Ends the lease with this token, whoever holds it; its holder is told, and the next in line gets the lock.

        A python-redis-lock program has no token: 0 stands for it. False when nobody holds the lock. Raises
        HolderChanged when another lease is the current one, LockStoreDown, ValueError.
        """
        keys = packed_keys(name)
        reply = await self._store.run(name, lambda node: self._scripts.force(keys, fencing_token=fencing_token))
        outcome = ForceOutcome(reply.decode())
        if outcome is ForceOutcome.CHANGED:
            raise HolderChanged(f"the lease on {name!r} with the fencing token {fencing_token} is not the current one")
        if outcome is ForceOutcome.FREE:
            return False
        self._emit(Forced(name, fencing_token))
        return True

    async def extend(self, lease: Lease, lease_ttl_s: float) -> None:
        """See Lease.extend."""
        milliseconds(lease_ttl_s)
        lease.raise_if_over()
        sent_at_s, outcome = await extend(self._store, lease, lease_ttl_s)
        if outcome is not ExtendOutcome.EXTENDED:
            self._renewal.lose(lease, LossReason(outcome.value))
        lease.raise_if_over()
        lease.extended(sent_at_s=sent_at_s, lease_ttl_s=lease_ttl_s)
        self._renewal.watch(lease)
        self._emit(Extended(lease.name, lease.fencing_token))

    async def release(self, lease: Lease) -> bool:
        """See Lease.release."""
        if lease.ended:
            return False
        lease.ended = True
        self._renewal.forget(lease)
        line = self._lines.by_name.get(lease.name)
        try:
            node = self._store.node_of(lease.name)
            if line is not None and line.take_turn(lease):
                reply = _HANDED_OVER
            elif line is not None and line.takes_over:
                reply = await self._release_in_line(lease, line, node)
            else:
                reply = await node.gather(node.releases, (lease.name, lease.known_as))
                if reply != _FREED:
                    reply = await self._store.run(lease.name, lambda node: self._release_command(node, lease))
        except (LockStoreDown, asyncio.CancelledError):
            self._spawn(self._release_again(lease))
            if self._emit is not ignore:
                held_s = time.monotonic() - lease.acquired_at_s
                self._emit(Released(lease.name, lease.fencing_token, held_s, still_ours=False, handed_over=False))
            raise
        finally:
            # Not before: an old look of its line, answered meanwhile, must not take it for a lease that nobody wants.
            self._forget(lease)
        still_ours = bool(reply != 0)
        if self._emit is not ignore:
            held_s = time.monotonic() - lease.acquired_at_s
            self._emit(Released(lease.name, lease.fencing_token, held_s, still_ours, still_ours and reply != _FREED))
        return still_ours

    def export(self, lease: Lease) -> str:
        """See Lease.export."""
        lease.raise_if_over()
        lease.ended = True
        self._renewal.forget(lease)
        self._lost(lease)
        self._emit(Exported(lease.name, lease.fencing_token, time.monotonic() - lease.acquired_at_s))
        return json.dumps([lease.name, lease.known_as, lease.fencing_token, lease.lease_ttl_s])

    def notice_lapse(self, lease: Lease) -> None:
        """Declares a lease lost whose time is over, where a blocked event loop has not looked in time."""
        if lease.is_lost:
            self._renewal.lose(lease, LossReason.EXPIRED)

    def drop(self, lease: Lease) -> None:
        """Releases without waiting for the answer; harmless twice."""
        if not lease.ended:
            self._spawn(self._release_quietly(lease))

    async def _acquire_now(
        self, name: str, lease_ttl_s: float, keep_extended: bool, request_id: str, started_at_s: float
    ) -> Lease:
        lease_id, keys, lease_ms = self._new_lease_id(), packed_keys(name), milliseconds(lease_ttl_s)

        may_hold = False

        def command(node: Node) -> str:
            nonlocal may_hold
            may_hold = may_hold or node.commands.is_up
            fence = self._seen_fence
            return self._scripts.acquire_now(
                node, keys, lease_id, lease_ms=lease_ms, seen_fence=fence, request_id=request_id
            )

        line = self._lines.by_name.get(name)
        if line is not None:
            line.stand()
        try:
            reply = await self._store.run(name, command)
        except LockStoreDown:
            if may_hold:
                self._lines.give_back(name, lease_id)
            self._gave_up(name, started_at_s, "store-down", queued=False)
            raise
        except asyncio.CancelledError:
            self._lines.give_back(name, lease_id)
            self._gave_up(name, started_at_s, "cancelled", queued=False)
            raise
        waited_s = time.monotonic() - started_at_s
        if not isinstance(reply, int):
            self._gave_up(name, started_at_s, "busy", queued=False)
            raise LockBusy(name, waited_s=waited_s, expires_in_s=reply[0] / 1000 if reply[0] >= 0 else None)
        return self._begin(
            Lease(
                self,
                name,
                lease_id,
                fencing_token=reply,
                lease_ttl_s=lease_ttl_s,
                sent_at_s=started_at_s,
                waited_s=waited_s,
                stood_in_line=False,
                keep_extended=keep_extended,
                request_id=request_id,
            ),
            WakeSource.NONE,
        )

    async def _wait(self, line: Line, waiter: Waiter, first_reply: Any) -> Lease:
        """A place in line, until the lease is there. `first_reply`: what a caller who asked for itself was told."""
        name = line.name
        self._lines.waiter_count += 1
        if self._emit is not ignore:
            self._emit(Waiting(name))
        if first_reply is None:
            line.join(waiter)
            line.wait_for_holder()
        else:
            line.first_refused(waiter, first_reply)
        try:
            return await waiter.future
        except LockBusy:
            self._gave_up(name, waiter.started_at_s, "busy", queued=True)
            raise
        except LockStoreDown:
            self._gave_up(name, waiter.started_at_s, "store-down", queued=True)
            raise
        except asyncio.CancelledError:
            line.leave(waiter)
            if waiter.lease is not None:
                self.drop(waiter.lease)
            self._gave_up(name, waiter.started_at_s, "cancelled", queued=waiter.lease is None)
            raise
        finally:
            self._lines.waiter_count -= 1

    def _grant(self, line: Line, waiter: Waiter, grant: Grant) -> Lease:
        lease = Lease(
            self,
            line.name,
            grant.lease_id,
            fencing_token=grant.fencing_token,
            lease_ttl_s=waiter.lease_ttl_s,
            sent_at_s=grant.sent_at_s,
            waited_s=waiter.waited_s,
            stood_in_line=grant.source is not WakeSource.NONE,
            keep_extended=waiter.keep_extended,
            request_id=waiter.request_id,
        )
        lease.is_for_body = waiter.begins_at_once
        if grant.ends_at_s is not None:
            lease.begins_unconfirmed(ends_at_s=grant.ends_at_s)
        self._begin(lease, grant.source, queued=True, takeover=grant.takeover, handoff_s=grant.handoff_s)
        waiter.grant(lease)
        return lease

    async def _release_in_line(self, lease: Lease, line: Line, node: Node) -> Any:
        """The release that also says who of this process wants the lock next, so that a handoff within it is one command."""
        first = line.first
        command = self._scripts.release_in_line(
            node,
            line.packed_keys,
            lease.known_as,
            next_lease_id=line.lease_id,
            lease_ms=first.lease_ms,
            age_us=first.age_us,
            later=line.later,
            waiter_count=len(line.waiters),
            request_id=first.request_id,
        )
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_reply(request: Request, reply: Any) -> None:
            if not answered.done():
                answered.set_result(
                    reply
                )  # first: who comes back for the lock stands before those whose turn begins now
            self._released_in_line(lease, line, reply, request.sent_at_s)

        def on_error(request: Request, error: LockStoreDown) -> None:
            if not answered.done():
                answered.set_exception(error)

        Request(self._store, self._spawn, lease.name, on_reply, on_error).send(node, command)
        return await answered

    def _released_in_line(self, lease: Lease, line: Line, reply: Any, sent_at_s: float) -> None:
        if isinstance(reply, list):
            fencing_token, lease_id, turns = reply[0], reply[1].decode(), reply[2]
            if not self._lines.granted_by_release(lease_id, fencing_token, turns, sent_at_s):
                self._lines.give_back_unless_held(lease.name, lease_id)
        elif line.waiters:
            line.stands_in_line(sent_at_s)

    async def _release_again(self, lease: Lease) -> None:
        """Whether a release that was lost or cancelled is done is unknown; once more does no harm, and frees it sooner."""
        try:
            await self._store.run(lease.name, lambda node: self._release_command(node, lease))
        except LockStoreDown:
            self._lines.give_back(lease.name, lease.known_as)

    def _release_command(self, node: Node, lease: Lease) -> str:
        return self._scripts.release(node, packed_keys(lease.name), lease.known_as)

    def _begin(
        self,
        lease: Lease,
        source: WakeSource,
        *,
        queued: bool = False,
        takeover: bool = False,
        handoff_s: float | None = None,
    ) -> Lease:
        self._keep(lease)
        if self._emit is not ignore:
            token = lease.fencing_token
            self._emit(Acquired(lease.name, token, lease.waited_s, source, queued, takeover, handoff_s))
        return lease

    def _keep(self, lease: Lease) -> None:
        if lease.fencing_token > self._seen_fence:
            self._seen_fence = lease.fencing_token
        self._held[lease.lease_id] = self._holders[lease.name] = lease
        self._renewal.watch(lease)

    def _is_held(self, name: str, lease_id: str) -> bool:
        holder = self._holders.get(name)
        return lease_id in self._held or (holder is not None and holder.known_as == lease_id)

    def _lost(self, lease: Lease) -> None:
        self._forget(lease)
        self._lines.holder_is_gone(lease.name)

    def _forget(self, lease: Lease) -> None:
        self._held.pop(lease.lease_id, None)
        if self._holders.get(lease.name) is lease:
            del self._holders[lease.name]

    async def _release_quietly(self, lease: Lease) -> None:
        with contextlib.suppress(LockStoreDown):
            await self.release(lease)

    def _gave_up(self, name: str, started_at_s: float, outcome: str, *, queued: bool) -> None:
        if self._emit is not ignore:
            self._emit(GaveUp(name, time.monotonic() - started_at_s, outcome, queued))

    def _on_up(self, node: Node) -> None:
        self._emit(StoreUp())
        self._lines.give_back_owed()
        self._lines.look_all(WakeSource.RECONNECT)

    def _on_message(self, message: bytes) -> None:
        """What the scripts publish: granted <lease id> <token> <turns> <name>, look <lease id>, forced <lease id> <name>."""
        word, lease_id, *rest = message.decode().split(" ")
        if word == "granted":
            self._lines.on_granted(lease_id, int(rest[0]), int(rest[1]), rest[2])
        elif word == "look":
            self._lines.on_look(lease_id)
        elif word == "forced" and (lease := self._holders.get(rest[0])) is not None and lease.known_as == lease_id:
            self._renewal.lose(lease, LossReason.FORCED)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            work.close()
            return
        task = asyncio.create_task(work, name="lock-settling")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _new_lease_id(self) -> str:
        """A lease id is a capability: 128 random bits, of which many are asked for at once."""
        ids = self._lease_ids
        if not ids:
            text = os.urandom(_RANDOM_BYTES * _IDS_AT_ONCE).hex()
            size = 2 * _RANDOM_BYTES
            ids.extend(text[at : at + size] for at in range(0, len(text), size))
        return ids.pop()


def _holder(instance_id: str) -> str:
    """Instance, host and pid as the scripts keep them: ASCII, separated by tabs."""
    return "\t".join(_plain(part) for part in (instance_id, socket.gethostname(), str(os.getpid())))


def _plain(text: str) -> str:
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:100]


def _check_request_id(request_id: str) -> None:
    if request_id and (len(request_id) > 200 or not request_id.isascii() or not request_id.isprintable()):
        raise ValueError("a request_id is at most 200 printable ASCII characters")


def _read_export(exported: str) -> tuple[str, str, int, float]:
    try:
        name, lease_id, fencing_token, lease_ttl_s = json.loads(exported)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError("not an exported lease") from error
    sane = isinstance(name, str) and isinstance(fencing_token, int) and isinstance(lease_ttl_s, int | float)
    if not (sane and isinstance(lease_id, str) and len(lease_id) == 2 * _RANDOM_BYTES):
        raise ValueError("not an exported lease")
    if not (lease_id.isascii() and lease_id.isalnum()):
        raise ValueError("not an exported lease")
    return name, lease_id, fencing_token, lease_ttl_s
