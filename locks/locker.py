"""Locker.hold(name): wait, acquire, keep extended, release."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Self

from locks.acquiring import Acquiring
from locks.address import Address, place_of
from locks.adopting import Adopting
from locks.capability import LeaseIds, exported
from locks.clock import SYSTEM, Clock
from locks.errors import HolderChanged, LockStoreDown, LossReason
from locks.events import Exported, Extended, Forced, Listener, StoreLost, StoreUp, WakeSource, harmless, ignore
from locks.for_whom import text_for
from locks.held import HeldLeases
from locks.hold import Hold, HoldMany
from locks.inspection import LockView, view_of
from locks.keys import packed_keys
from locks.lease import Lease, check_max_hold_s, check_wait_s, is_over, milliseconds
from locks.lending import Lending
from locks.lines import Lines
from locks.link import LOOK_UP_EVERY_S
from locks.node import Node, NodeEvents
from locks.releasing import Releasing
from locks.renewal import Renewal, extend
from locks.servers import servers_at
from locks.store import ExtendOutcome, ForceOutcome, LockStore, QueueLimits, Scripts
from locks.suspension import ResumeWatch
from locks.trial import Trial


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
        max_leases_per_borrower: int | None = None,
        queue_limits: QueueLimits | None = None,
        credentials: Callable[[], tuple[str, ...]] | None = None,
        look_up_every_s: float = LOOK_UP_EVERY_S,
        listener: Listener = ignore,
        clock: Clock = SYSTEM,
    ) -> None:
        """url: redis://, rediss://, redis+sentinel:// or redis+cluster://. Raises ValueError for any other.

        `credentials`: gives (password,) or (username, password), instead of the URL's; it is called in a thread before
        each connection. `look_up_every_s`: how often a name is looked up, and a Sentinel asked, while all is well.
        `command_timeout_s`: when a server counts as silent. `outage_wait_s`: how long callers wait for a connection to
        come back before they get LockStoreDown (None: command_timeout_s). `max_leases_per_borrower`: of those that are
        lent (None: all). `clock`: what tells it the time and gives it random numbers.
        """
        self.instance_id = instance_id
        self.clock = clock
        self._emit = listener = harmless(listener)
        self._command_timeout_s = command_timeout_s
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = HeldLeases(max_leases=max_leases)
        self._scripts = Scripts(queue_limits or QueueLimits(), holder=_holder(instance_id, pid=clock.pid()))
        self._servers = servers_at(
            place_of(url, credentials=credentials),
            self._new_node,
            command_timeout_s=command_timeout_s,
            look_up_every_s=look_up_every_s,
            clock=clock,
        )
        self._store = LockStore(self._servers, self._scripts, command_timeout_s=command_timeout_s, clock=clock)
        self._renewal = Renewal(self._store, listener, on_lost=self._lost)
        new_lease_id = LeaseIds(clock.random_bytes).new
        self._acquiring = Acquiring(
            self, self._store, self._held, self._renewal, listener, new_lease_id=new_lease_id, drop=self.drop
        )
        self._lines = self._acquiring.lines = Lines(
            self._store,
            max_waiters=max_waiters,
            max_waiters_per_lock=max_waiters_per_lock,
            outage_wait_s=command_timeout_s if outage_wait_s is None else outage_wait_s,
            new_lease_id=new_lease_id,
            held=self._held,
            grant=self._acquiring.grant,
            lose=self._renewal.lose,
            spawn=self._spawn,
        )
        self._releasing = Releasing(self._store, self._lines, self._held, self._renewal, listener, spawn=self._spawn)
        self._adopting = Adopting(
            self, self._store, self._held, self._lines, self._renewal, listener, new_lease_id=new_lease_id
        )
        self.lending = Lending(
            self,
            self._store,
            self._held,
            self._lines.returns,
            listener,
            max_leases=max_leases,
            max_leases_per_borrower=max_leases if max_leases_per_borrower is None else max_leases_per_borrower,
            spawn=self._spawn,
        )
        self.trial = Trial(
            self._store,
            self._servers,
            instance_id=instance_id,
            command_timeout_s=command_timeout_s,
            new_lease_id=new_lease_id,
        )
        self._resume_watch = ResumeWatch(clock, self._resumed)

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        instance_id: str,
        command_timeout_s: float = 0.5,
        credentials: Callable[[], tuple[str, ...]] | None = None,
        listener: Listener = ignore,
        clock: Clock = SYSTEM,
    ) -> Self:
        """A locker for `async with`, which raises LockStoreDown when Redis does not answer at the start.

        url: redis://, rediss://, redis+sentinel:// or redis+cluster://. Raises ValueError for any other.
        """
        return cls(
            url,
            instance_id=instance_id,
            command_timeout_s=command_timeout_s,
            credentials=credentials,
            listener=listener,
            clock=clock,
        )

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
        """Begins to connect; until Redis answers, every call raises LockStoreDown. For this event loop from now on.

        Once: a locker that was closed is not opened again (RuntimeError).
        """
        self._store.check_loop()
        if self._closed:
            raise RuntimeError("this Locker was closed: make another one")
        self._store.open()
        self._resume_watch.open()
        await self._servers.open()

    async def up_within(self, wait_s: float) -> bool:
        """Waits for the first connections, or for those lost a moment ago; whether they are there."""
        return await self._servers.up_within(wait_s)

    async def close(self) -> None:
        """Leaves every line and closes the connections. Leases still held run out by themselves.

        No answer is heard once the lines are left, though closing takes its time: what they were granted is given back.
        """
        self._store.check_loop()
        self._closed = True
        self._resume_watch.close()
        self.lending.leave()
        self._renewal.close()
        self._lines.leave_all()
        for lease in self._held.ending:
            # A finish that others wait for takes a second command, for which it is too late now.
            self._lines.give_back(lease.name, lease.known_as)
        self._lines.returns.close()
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

    def is_wanted(self, name: str) -> bool:
        """Whether a caller of this process holds the lock, asks for it, or waits for it."""
        return name in self._lines.by_name or self._held.holder_of(name) is not None

    @property
    def store(self) -> LockStore:
        """Where the locks are; for locks/ itself."""
        return self._store

    @property
    def waits(self) -> Mapping[str, Sequence[float]]:
        """The locks that callers of this process wait for, and how many seconds each caller has waited so far."""
        now_s = self.clock.monotonic_s()
        return {
            line.name: [now_s - waiter.started_at_s for waiter in line.waiters]
            for line in self._lines.by_name.values()
            if line.waiters
        }

    @property
    def held(self) -> Sequence[Lease]:
        """The leases that this process holds now."""
        return self._held.all

    def hold(
        self,
        name: str,
        *,
        lease_ttl_s: float = 10.0,
        wait_s: float | None = None,
        max_hold_s: float | None = None,
        request_id: str = "",
        owner: str | None = None,
    ) -> Hold:
        """`async with` holds the lock, kept extended; when it is lost the body is cancelled and LeaseLost comes out.

        `max_hold_s` after the grant it is lost in any case (expired). `request_id`, and `owner` (1 to 200 printable
        characters: who holds, in your words), are shown wherever the holder is.
        Raises LockBusy after wait_s (None waits for ever), HeldByCaller, LockStoreDown, TooManyWaiters, TooManyLeases,
        ValueError.
        """
        if max_hold_s is not None:
            check_max_hold_s(max_hold_s, lease_ttl_s=lease_ttl_s)
        for_whom = text_for(request_id, owner)
        return Hold(self, name, lease_ttl_s=lease_ttl_s, wait_s=wait_s, max_hold_s=max_hold_s, for_whom=for_whom)

    def hold_many(
        self,
        names: Sequence[str],
        *,
        lease_ttl_s: float = 10.0,
        wait_s: float | None = None,
        max_hold_s: float | None = None,
        request_id: str = "",
        owner: str | None = None,
    ) -> HoldMany:
        """The same for several locks, all or none; the body gets their leases in the order of `names`.

        `max_hold_s` counts from the last of the grants.
        """
        check_max_hold_s(max_hold_s, lease_ttl_s=lease_ttl_s)
        return HoldMany(
            self,
            names,
            lease_ttl_s=lease_ttl_s,
            wait_s=wait_s,
            max_hold_s=max_hold_s,
            request_id=request_id,
            owner=owner,
        )

    def acquire(
        self,
        name: str,
        *,
        lease_ttl_s: float = 10.0,
        wait_s: float | None = None,
        keep_extended: bool = False,
        max_hold_s: float | None = None,
        request_id: str = "",
        owner: str | None = None,
    ) -> Coroutine[Any, Any, Lease]:
        """A lease on `name`, which ends after lease_ttl_s unless it is extended or released.

        Kept extended, it is lost max_hold_s after the grant (expired). Raises LockBusy after wait_s (0: at once,
        None: never), HeldByCaller, LockStoreDown, TooManyWaiters, TooManyLeases, ValueError.
        """
        for_whom = text_for(request_id, owner)
        acquiring = self._acquiring.acquire(name, lease_ttl_s, wait_s, keep_extended, for_whom, begins_at_once=False)
        if max_hold_s is None:
            return acquiring
        return self._bounded(acquiring, max_hold_s, lease_ttl_s=lease_ttl_s, keep_extended=keep_extended)

    def acquire_for_body(
        self, name: str, *, lease_ttl_s: float, wait_s: float | None, for_whom: str
    ) -> Coroutine[Any, Any, Lease]:
        """The same for the body of a hold, which begins under the claim of a handoff while its lease is confirmed."""
        return self._acquiring.acquire(name, lease_ttl_s, wait_s, True, for_whom, begins_at_once=True)

    def acquire_to_lend(
        self, name: str, *, lease_ttl_s: float, wait_s: float, for_whom: str
    ) -> Coroutine[Any, Any, Lease]:
        """A lease that is to be handed out to a client outside."""
        return self._acquiring.acquire(name, lease_ttl_s, wait_s, False, for_whom, begins_at_once=False)

    async def acquire_many(
        self,
        names: Sequence[str],
        *,
        lease_ttl_s: float = 10.0,
        wait_s: float | None = None,
        keep_extended: bool = False,
        max_hold_s: float | None = None,
        request_id: str = "",
        owner: str | None = None,
    ) -> list[Lease]:
        """Leases on all of `names` or on none, in their order; callers of overlapping names cannot deadlock.

        They are acquired in ascending order, and those already acquired are kept extended meanwhile; with
        keep_extended=False each then has lease_ttl_s from the return. Raises as acquire does, wait_s being for all
        together, ValueError for a name that is there twice, LeaseLost where one was lost while the next was waited for.
        """
        check_wait_s(wait_s)
        check_max_hold_s(max_hold_s, lease_ttl_s=lease_ttl_s, keep_extended=keep_extended)
        if len(set(names)) != len(names):
            raise ValueError("each lock's name may be there only once")
        ends_at_s = None if wait_s is None else self.clock.monotonic_s() + wait_s
        leases: dict[str, Lease] = {}
        try:
            for name in sorted(names):
                left_s = None if ends_at_s is None else max(0.0, ends_at_s - self.clock.monotonic_s())
                leases[name] = await self.acquire(
                    name,
                    lease_ttl_s=lease_ttl_s,
                    wait_s=left_s,
                    keep_extended=True,
                    request_id=request_id,
                    owner=owner,
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
        if max_hold_s is not None:
            from_s = max((lease.acquired_at_s for lease in leases.values()), default=0.0)
            for lease in leases.values():
                lease.bound(max_hold_s, from_s=from_s)
        return [leases[name] for name in names]

    async def adopt(
        self,
        exported: str,
        *,
        keep_extended: bool = False,
        max_hold_s: float | None = None,
        request_id: str = "",
        owner: str | None = None,
    ) -> Lease:
        """The lease that Lease.export() gave this text for, ours with its whole time from now on.

        Kept extended, it is lost max_hold_s after that. It is shown with this request and owner, and not with those
        that it had. Raises LeaseLost when it has ended meanwhile or was adopted before, LockStoreDown (then it is given
        back where it was adopted), TooManyLeases, ValueError for another text.
        """
        return await self._adopting.adopt(
            exported, keep_extended=keep_extended, max_hold_s=max_hold_s, for_whom=text_for(request_id, owner)
        )

    async def inspect(self, name: str) -> LockView | None:
        """Who holds the lock and who waits, in order; None when nobody does. Raises LockStoreDown, ValueError."""
        keys = packed_keys(name)
        return view_of(name, await self._store.run(name, lambda node: self._scripts.inspect(keys)))

    async def force_release(self, name: str, *, fencing_token: int) -> bool:
        """Ends the lease with this token, whoever holds it; its holder is told, and the next in line gets the lock.

        A python-redis-lock program has no token: 0 stands for it. False when nobody holds the lock. Raises
        HolderChanged when another lease is the current one, LockStoreDown, ValueError.
        """
        keys, call_id = packed_keys(name), self.clock.random_bytes(8).hex()
        reply = await self._store.run(
            name, lambda node: self._scripts.force(keys, fencing_token=fencing_token, call_id=call_id)
        )
        outcome = ForceOutcome(reply.decode())
        if outcome is ForceOutcome.CHANGED:
            raise HolderChanged(f"the lease on {name!r} with the fencing token {fencing_token} is not the current one")
        if outcome is ForceOutcome.FREE:
            return False
        self._emit(Forced(name, fencing_token))
        lease = self._held.holder_of(name)
        if lease is not None and lease.fencing_token == fencing_token:
            self._renewal.lose(lease, LossReason.FORCED)  # before the message that says so
        return True

    async def extend(self, lease: Lease, lease_ttl_s: float) -> None:
        """See Lease.extend."""
        milliseconds(lease_ttl_s)
        lease.raise_if_over()
        if lease_ttl_s != lease.lease_ttl_s:
            lease.may_outlast = True  # unanswered, it may be done; and Redis takes no time away
        sent_at_s, outcome = await extend(self._store, lease, lease_ttl_s)
        if outcome is not ExtendOutcome.EXTENDED:
            self._renewal.lose(lease, LossReason(outcome.value))
        lease.raise_if_over()
        if not is_over(lease_ttl_s, after_s=self.clock.monotonic_s() - sent_at_s):
            lease.extended(sent_at_s=sent_at_s, lease_ttl_s=lease_ttl_s)
        # Else a shorter lease is heard of too late to begin: Redis takes no time away, and the old end stands.
        self._renewal.watch(lease)
        self._raise_if_heard_late(lease)
        self._emit(Extended(lease.name, lease.fencing_token))

    def release(self, lease: Lease) -> Coroutine[Any, Any, bool]:
        """See Lease.release."""
        return self._releasing.release(lease)

    def finish(self, lease: Lease) -> None:
        """See Lease.finish."""
        self._releasing.finish(lease)

    def dismiss(self, name: str) -> None:
        """Whoever waits in this process for the lock gets Dismissed: what it was waited for is found to be done."""
        self._store.check_loop()
        self._lines.dismiss(name)

    def drop(self, lease: Lease) -> None:
        """Releases without waiting for the answer; harmless twice."""
        self._releasing.drop(lease)

    def export(self, lease: Lease) -> str:
        """See Lease.export."""
        self._store.check_loop()
        lease.raise_if_over()
        self.hand_out(lease)
        self._emit(Exported(lease.name, lease.fencing_token, lease.held_s, lease.for_whom))
        return exported(lease)

    def end_run(self, lease: Lease) -> None:
        """The lease may be somebody else's from now on, or not: who waits here next has to ask the server."""
        line = self._lines.by_name.get(lease.name)
        if line is not None:
            line.end_run(lease)

    def hand_out(self, lease: Lease) -> None:
        """The lease is somebody else's from now on: here it is neither extended nor released nor missed."""
        lease.ended = True
        self._renewal.forget(lease)
        self._held.exported(lease)
        self._gone(lease)

    def notice_lapse(self, lease: Lease) -> None:
        """Declares a lease lost whose time is over, where a blocked event loop has not looked in time."""
        if lease.is_lost:
            self._renewal.lose(lease, LossReason.EXPIRED)

    def _lost(self, lease: Lease, reason: LossReason) -> None:
        self._gone(lease)
        if reason is LossReason.TAKEN or lease.may_outlast or lease.unanswered:
            # Perhaps by nobody: an acquire of before, carried out late, takes the lock again under this lease's id.
            self._lines.give_back_lease(lease)

    async def _bounded(
        self, acquiring: Coroutine[Any, Any, Lease], max_hold_s: float, *, lease_ttl_s: float, keep_extended: bool
    ) -> Lease:
        try:
            check_max_hold_s(max_hold_s, lease_ttl_s=lease_ttl_s, keep_extended=keep_extended)
        except ValueError:
            acquiring.close()
            raise
        lease = await acquiring
        lease.bound(max_hold_s, from_s=lease.acquired_at_s)
        return lease

    def _raise_if_heard_late(self, lease: Lease) -> None:
        self.notice_lapse(lease)
        lease.raise_if_over()

    def _resumed(self) -> None:
        """The machine was suspended: leases and waits went on, and timers did not."""
        self._renewal.look_at_all()
        self._lines.count_anew()
        self.lending.count_anew()

    def _gone(self, lease: Lease) -> None:
        self._held.forget(lease)
        self._lines.holder_is_gone(lease.name)

    def _new_node(self, address: Address, **options: Any) -> Node:
        return Node(
            address,
            command_timeout_s=self._command_timeout_s,
            clock=self.clock,
            greeting=self._scripts.greeting,
            acquire_free=lambda items: self._scripts.acquire_free(items, seen_fence=self._held.seen_fence),
            release_alone=self._scripts.release_alone,
            events=NodeEvents(
                on_message=self._on_message,
                on_changed=lambda lock_key: self._lines.on_changed(lock_key),
                on_up=self._on_up,
                on_messages_up=lambda node: self._lines.look_all(WakeSource.RECONNECT),
                on_lost=lambda node, reason: self._emit(StoreLost(reason)),
            ),
            **options,
        )

    def _on_forced(self, lease_id: str, name: str, token: str = "") -> None:
        """`token`: the largest of the grant that was ended; '' from a process of an earlier version."""
        fencing_token, lease = int(token or sys.maxsize), self._held.holder_of(name)
        if lease is None or lease.known_as != lease_id:
            self._lines.on_forced(lease_id, fencing_token)
            self.lending.on_message("forced", lease_id, (str(fencing_token), name))
        elif lease.fencing_token <= fencing_token:  # else it has the lock again, under the same id
            self._renewal.lose(lease, LossReason.FORCED)

    def _on_up(self, node: Node) -> None:
        self._emit(StoreUp())
        self._lines.returns.go_on()
        self._lines.look_all(WakeSource.RECONNECT)

    def _on_message(self, message: bytes) -> None:
        """Scripts publish: granted <lease id> <token> <turns> <name>, look <lease id>, finished <name>, forced
        <lease id> <name> <token>; and of a lease that is lent: extended, released or ended <lease id> <what> <name>.
        """
        word, lease_id, *rest = message.decode().split(" ")
        if word == "granted":
            self._lines.on_granted(lease_id, int(rest[0]), int(rest[1]), rest[2])
        elif word == "look":
            self._lines.on_look(lease_id)
        elif word == "finished":
            self._lines.dismiss(lease_id)
        elif word == "forced":
            self._on_forced(lease_id, *rest)
        else:
            self.lending.on_message(word, lease_id, rest)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            work.close()
            return
        task = asyncio.create_task(work, name="lock-settling")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _holder(instance_id: str, *, pid: int) -> str:
    """Instance, host and pid as the scripts keep them: ASCII, separated by tabs."""
    return "\t".join(_plain(part) for part in (instance_id, socket.gethostname(), str(pid)))


def _plain(text: str) -> str:
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:100]
