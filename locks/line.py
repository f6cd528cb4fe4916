"""Who waits in this process for one lock, in order; one of them at a time stands in line at the server for all.

Everything here is a callback: a command that is on its way is nobody's to cancel, and its answer finds the line as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hiredis

from locks.errors import LockBusy, LockStoreDown, LockStoreRefused, LossReason, TooManyWaiters
from locks.events import WakeSource
from locks.keys import name_of_lock_key, packed_keys
from locks.lease import Lease, margin_s
from locks.node import Node
from locks.store import LockStore

# A timer looks a moment after the holder's end: Redis removes a key in the millisecond after it.
TIMER_SLACK_S = 0.002
# While the holder is of this process, its release brings the next waiter along; a waiter stands in line at the server
# only if the holder takes longer than this.
LAZY_S = 0.05
LOOK_AGAIN_S = 0.1


class Waiter:
    """One caller of acquire, from its refusal to its lease."""

    __slots__ = (
        "begins_at_once",
        "ends_at_s",
        "future",
        "keep_extended",
        "lease",
        "lease_ms",
        "lease_ttl_s",
        "request_id",
        "started_at_s",
        "timer",
    )

    def __init__(
        self,
        *,
        lease_ttl_s: float,
        lease_ms: int,
        keep_extended: bool,
        request_id: str,
        started_at_s: float,
        wait_s: float | None,
        begins_at_once: bool,
    ) -> None:
        self.lease_ttl_s = lease_ttl_s
        self.lease_ms = lease_ms
        self.keep_extended = keep_extended
        self.begins_at_once = begins_at_once  # under the claim, while the whole lease is being confirmed
        self.request_id = request_id
        self.started_at_s = started_at_s
        self.ends_at_s = None if wait_s is None else started_at_s + wait_s
        self.future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.lease: Lease | None = None

    def came_after_us(self, other: Waiter) -> int:
        """Microseconds; not below zero."""
        return max(0, int((self.started_at_s - other.started_at_s) * 1_000_000))

    @property
    def waited_s(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self.started_at_s

    @property
    def age_us(self) -> int:
        """The same in microseconds: what its place in line goes by."""
        return int(self.waited_s * 1_000_000)

    def refuse(self, error: Exception) -> None:
        """Ends the wait without a lease."""
        self.stop_timer()
        if not self.future.done():
            self.future.set_exception(error)

    def grant(self, lease: Lease) -> None:
        """Ends the wait with a lease; whoever cancelled it meanwhile gives the lease back."""
        self.stop_timer()
        self.lease = lease
        if not self.future.done():
            self.future.set_result(lease)

    def stop_timer(self) -> None:
        """Its patience is of no interest any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a line was given: for its first waiter. `sent_at_s`: when the command that did it was sent.

    `ends_at_s`: its lease ends then at the latest, until the server has confirmed it; None: it is confirmed.
    """

    lease_id: str
    fencing_token: int
    sent_at_s: float
    source: WakeSource
    takeover: bool
    handoff_s: float | None
    ends_at_s: float | None = None


@dataclass(slots=True)
class Run:
    """Turns that were granted at once, since nobody else came before those who wait here: each has a token of its own.

    A turn begins without asking the server, under the run's lease; a command makes it the holder right behind.
    """

    lease: Lease  # of the turn that is on now
    turns_left: int
    last_fence: int
    begins_until_s: float  # no turn begins later: the run's lease would not cover it
    ends_at_s: float


class Request:
    """A command whose answer goes to a callback, whatever becomes of whoever wanted it."""

    __slots__ = ("_command", "_lines", "_name", "_node", "_on_error", "_on_reply", "sent_at_s")

    def __init__(
        self,
        lines: Lines,
        name: str,
        on_reply: Callable[[Request, Any], None],
        on_error: Callable[[Request, LockStoreDown], None],
    ) -> None:
        self._lines = lines
        self._name = name
        self._on_reply = on_reply
        self._on_error = on_error
        self.sent_at_s = 0.0

    def send(self, node: Node, command: str) -> None:
        """On its way with this tick's others. Raises LockStoreDown at once while there is no connection."""
        self._node = node
        self._command = command
        self.sent_at_s = time.monotonic()
        node.send(command, self)

    def done(self) -> bool:
        """Never before its answer."""
        return False

    def set_result(self, reply: Any) -> None:
        """The connection's answer; one that is an error is first asked about again where that helps."""
        if reply.__class__ is hiredis.ReplyError:
            self._lines.spawn(self._settle(reply))
        else:
            self._on_reply(self, reply)

    def set_exception(self, error: LockStoreDown) -> None:
        """The connection was lost."""
        self._on_error(self, error)

    async def _settle(self, error: Any) -> None:
        try:
            reply = await self._lines.store.settle(self._name, self._node, self._command, error)
        except LockStoreDown as down:
            self._on_error(self, down)
        else:
            self._on_reply(self, reply)


class _Watch(Request):
    """Reads the lock's holder so as to hear of the next change; only the server that was asked will tell of it."""

    def set_result(self, reply: Any) -> None:
        """The holder. An error ends it: what another server answered would be read, and not watched."""
        if reply.__class__ is hiredis.ReplyError:
            self._on_error(self, LockStoreDown(str(reply)))
        else:
            self._on_reply(self, reply)


class Line:
    """The waiters of this process for one lock. `lease_id` is what the next grant will be known by."""

    def __init__(self, lines: Lines, name: str) -> None:
        self._lines = lines
        self.name = name
        self.lease_id = lines.new_lease_id()
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        self.asked: object | None = None  # the look, or the first caller's acquire, that is on its way
        self._again: WakeSource | None = None
        self._next_look: asyncio.TimerHandle | None = None
        self._watched = False
        self._run: Run | None = None
        self._stood_at_s = 0.0  # the last time at which we certainly still stood in line
        self._stands = False  # in line at the server, as far as is known
        self._down_since_s: float | None = None
        self._lapses_at_s: float | None = None  # when the holder's lease ends, by the last look
        self.expires_in_s: float | None = None

    @property
    def packed_keys(self) -> str:
        """The lock's keys."""
        return packed_keys(self.name)

    @property
    def first(self) -> Waiter:
        """Who gets the next grant."""
        return next(iter(self.waiters))

    @property
    def takes_over(self) -> bool:
        """Whether a release may grant our lease id to the first waiter; not while the first caller asks under it."""
        return bool(self.waiters) and self.asked is not self

    def join(self, waiter: Waiter) -> None:
        """One more waiter, last in order."""
        self.waiters[waiter] = None
        if waiter.ends_at_s is not None:
            wait_s = max(0.0, waiter.ends_at_s - time.monotonic())
            waiter.timer = asyncio.get_running_loop().call_later(wait_s, self._give_up, waiter)

    @property
    def later(self) -> str:
        """How many microseconds after the first waiter the next ones came: what a run goes by."""
        waiters = iter(self.waiters)
        first = next(waiters)
        most = self._lines.store.scripts.limits.run_turns - 1
        return ",".join([str(waiter.came_after_us(first)) for waiter in itertools.islice(waiters, most)])

    def wait_for_holder(self) -> None:
        """The holder is of this process: its release brings the first waiter along, unless it takes long."""
        if self.asked is None and self._next_look is None:
            self._look_in(LAZY_S, WakeSource.HEARTBEAT)

    def first_refused(self, waiter: Waiter, reply: Any) -> None:
        """The caller who had asked for itself waits now, before those who came meanwhile. `reply` may be an error."""
        self.asked = None
        self.join(waiter)
        self.waiters.move_to_end(waiter, last=False)
        if isinstance(reply, LockStoreDown):
            self._store_is_down(reply)
        else:
            self.look(WakeSource.NONE)

    def first_is_gone(self) -> None:
        """The caller who had asked for itself has its lease, or has given up; others look under a new lease id."""
        self.asked = None
        if self.waiters:
            self._renew_lease_id()
            self.look(WakeSource.MESSAGE)
        else:
            self._lines.forget(self)

    def leave(self, waiter: Waiter) -> None:
        """A waiter waits no longer; the last one gives up this process' place too."""
        waiter.stop_timer()
        if waiter not in self.waiters:
            return
        del self.waiters[waiter]
        if self.waiters or self.asked is self:
            return  # also while the first caller still asks for itself: the line and its lease id are that one's
        if self.asked is not None or self._stands:
            self._lines.give_back(self.name, self.lease_id)
        self._lines.forget(self)

    def look(self, source: WakeSource) -> None:
        """Asks for the lock in the name of the first waiter; `source` is what made us."""
        if self.asked is not None:
            self._again = source
            return
        self._stop_next_look()
        waiter = self.first
        store, lease_id = self._lines.store, self.lease_id
        request = Request(
            self._lines,
            self.name,
            lambda request, reply: self._answered(request, reply, lease_id, source),
            self._failed,
        )
        self.asked = request
        try:
            node = store.node_of(self.name)
            command = store.scripts.acquire_or_queue(
                node,
                self.packed_keys,
                lease_id,
                lease_ms=waiter.lease_ms,
                seen_fence=self._lines.seen_fence(),
                age_us=waiter.age_us,
                later=self.later,
                waiter_count=len(self.waiters),
                request_id=waiter.request_id,
            )
            request.send(node, command)
        except LockStoreDown as error:
            self.asked = None
            self._store_is_down(error)

    def changed(self) -> None:
        """The lock key has changed, or may have."""
        self._watched = False
        if self.waiters:
            self.look(WakeSource.TRACKING)

    def look_anew(self, source: WakeSource) -> None:
        """A connection has come back: the server may have forgotten that we stand in line, and what we watch."""
        self._watched = False
        self.look(source)

    def granted_by_release(self, fencing_token: int, turns: int, sent_at_s: float) -> None:
        """The release that was sent then by a holder of this process has given the lock to the first waiter."""
        self._grant(fencing_token, turns, sent_at_s, WakeSource.HANDOFF, handoff_s=time.monotonic() - sent_at_s)

    def take_turn(self, lease: Lease) -> bool:
        """Passes the lock on from this lease to the first waiter, within a run; False where there is none. LockStoreDown."""
        run, self._run = self._run, None
        now_s = time.monotonic()
        if run is None or run.lease is not lease or not run.turns_left or not self.waiters:
            return False
        if now_s >= run.begins_until_s:
            return False
        waiter, lease_id = self.first, self._lines.new_lease_id()
        run.turns_left -= 1
        turn = _Turn(self._lines, self.name, lease.lease_id, lease_id, waiter, run.last_fence, run.turns_left)
        turn.send()
        del self.waiters[waiter]
        token = run.last_fence - run.turns_left
        handoff_s = time.monotonic() - now_s
        grant = Grant(lease_id, token, now_s, WakeSource.HANDOFF, False, handoff_s, run.ends_at_s)
        run.lease = turn.lease = self._lines.grant(self, waiter, grant)
        if self.waiters:
            self._run = run
        else:
            self._lines.forget(self)
        return True

    def granted_by_message(self, fencing_token: int, turns: int) -> None:
        """Another process has handed the lock over; the claim is short, so the first waiter confirms.

        It begins at once where it may and where the claim, counted from when we still stood in line, leaves time enough.
        """
        if self.asked is self or not self.waiters:
            self.look(WakeSource.HANDOFF)
            return
        waiter, lease_id, heard_at_s = self.first, self.lease_id, time.monotonic()
        claim_s = min(waiter.lease_ttl_s, self._lines.store.scripts.limits.claim_ms / 1000)
        ends_at_s = self._stood_at_s + claim_s - margin_s(claim_s)
        if not waiter.begins_at_once or ends_at_s - heard_at_s < claim_s / 3:
            self.look(WakeSource.HANDOFF)
            return
        last_fence = fencing_token + turns - 1
        confirmation = _Turn(self._lines, self.name, lease_id, lease_id, waiter, last_fence, turns - 1)
        try:
            confirmation.send()
        except LockStoreDown:
            return  # the connection that comes back wakes us
        confirmation.lease = self._grant(
            fencing_token,
            turns,
            heard_at_s,
            WakeSource.HANDOFF,
            handoff_s=time.monotonic() - heard_at_s,
            ends_at_s=ends_at_s,
        )

    def stands_in_line(self, sent_at_s: float) -> None:
        """The release that was sent then has left the first waiter in line behind another process."""
        self._stands = True
        self._stood_at_s = sent_at_s
        if self.asked is None:
            self._look_in(LAZY_S, WakeSource.HEARTBEAT)

    def fail(self, error: LockStoreDown) -> None:
        """Ends the wait of everybody here."""
        waiters = list(self.waiters)
        self.waiters.clear()
        self._lines.forget(self)
        for waiter in waiters:
            waiter.refuse(error)

    def close(self) -> None:
        """Not in use any more."""
        self._stop_next_look()

    def _give_up(self, waiter: Waiter) -> None:
        self.leave(waiter)
        waiter.refuse(LockBusy(self.name, waited_s=waiter.waited_s, expires_in_s=self.expires_in_s))

    def _answered(self, request: Request, reply: Any, lease_id: str, source: WakeSource) -> None:
        if self.asked is not request or not self.waiters:
            # What it was about has been granted or given back meanwhile. One that was asked again since has come too late.
            if not _is_refusal(reply):
                self._lines.give_back_unless_held(self.name, lease_id)
            return
        self.asked = None
        self._down_since_s = None
        if _is_refusal(reply):
            self._refused(reply, request.sent_at_s)
        else:
            handoff_s = time.monotonic() - request.sent_at_s if source is WakeSource.HANDOFF else None
            fencing_token, turns = (reply, 1) if isinstance(reply, int) else reply
            self._grant(fencing_token, turns, request.sent_at_s, source, handoff_s=handoff_s)

    def _failed(self, request: Request, error: LockStoreDown) -> None:
        if self.asked is request:
            self.asked = None
            self._store_is_down(error)

    def _grant(
        self,
        fencing_token: int,
        turns: int,
        sent_at_s: float,
        source: WakeSource,
        *,
        handoff_s: float | None,
        ends_at_s: float | None = None,
    ) -> Lease:
        waiter, _ = self.waiters.popitem(last=False)
        lease_id = self.lease_id
        lapsed = self._lapses_at_s is not None and time.monotonic() >= self._lapses_at_s - TIMER_SLACK_S
        takeover = lapsed and source is not WakeSource.HANDOFF
        self._lapses_at_s = None
        self._watched = False
        self._again = None
        self._down_since_s = None
        if self.waiters:
            self._renew_lease_id()
            self._look_in(min(LAZY_S, waiter.lease_ttl_s), WakeSource.HEARTBEAT)
        else:
            self._lines.forget(self)
        grant = Grant(lease_id, fencing_token, sent_at_s, source, takeover, handoff_s, ends_at_s)
        lease = self._lines.grant(self, waiter, grant)
        if turns > 1 and self.waiters:
            begins_until_s = sent_at_s + self._lines.store.scripts.limits.run_ms / 1000
            if ends_at_s is None:
                ends_at_s = begins_until_s + waiter.lease_ttl_s - margin_s(waiter.lease_ttl_s)
            self._run = Run(lease, turns - 1, fencing_token + turns - 1, begins_until_s, ends_at_s)
        return lease

    def _refused(self, reply: list[int], sent_at_s: float) -> None:
        remaining_ms, place, look_within_ms, _ = reply
        self._stands = True
        self._stood_at_s = sent_at_s
        self.expires_in_s = remaining_ms / 1000 if remaining_ms >= 0 else None
        self._lapses_at_s = sent_at_s + self.expires_in_s if self.expires_in_s is not None else None
        if self._again is not None:
            source, self._again = self._again, None
            self.look(source)
            return
        wait_s, source = look_within_ms / 1000, WakeSource.HEARTBEAT
        if place == 0:
            if self.expires_in_s is not None and self.expires_in_s + TIMER_SLACK_S < wait_s:
                wait_s, source = self.expires_in_s + TIMER_SLACK_S, WakeSource.TIMER
            if not self._watched:
                self._watch(is_free=remaining_ms == -2)
        self._look_in(wait_s, source)

    def _watch(self, *, is_free: bool) -> None:
        def watching(request: Request, holder: bytes | None) -> None:
            if holder is None and self.waiters and not is_free:
                self.changed()  # it went before we watched

        def not_watching(request: Request, error: LockStoreDown) -> None:
            self._watched = False

        try:
            node = self._lines.store.node_of(self.name)
        except LockStoreDown:
            return
        request = _Watch(self._lines, self.name, watching, not_watching)
        self._watched = node.watch(f"lock:{{{self.name}}}", request)

    def _store_is_down(self, error: LockStoreDown) -> None:
        if not self.waiters:
            return
        now_s = time.monotonic()
        down_for_s = self._lines.down_for_s(self.name)
        if self._down_since_s is None:
            self._down_since_s = now_s - down_for_s
        left_s = self._down_since_s + self._lines.outage_wait_s - now_s
        if left_s <= 0 or isinstance(error, LockStoreRefused):
            self.fail(error)
        else:
            # A connection that comes back wakes us. One that is there, and says that it cannot yet, does not.
            self._look_in(left_s if down_for_s else min(left_s, LOOK_AGAIN_S), WakeSource.HEARTBEAT)

    def _look_in(self, wait_s: float, source: WakeSource) -> None:
        self._stop_next_look()
        self._next_look = asyncio.get_running_loop().call_later(max(0.0, wait_s), self._look_now, source)

    def _look_now(self, source: WakeSource) -> None:
        self._next_look = None
        if self.waiters:
            self.look(source)

    def _stop_next_look(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _renew_lease_id(self) -> None:
        self._stands = False
        self.asked = None
        self._lines.rename(self, self._lines.new_lease_id())


class _Turn:
    """The command that makes a turn the holder for its whole time; the turn is on already when its answer comes."""

    def __init__(
        self, lines: Lines, name: str, before: str, lease_id: str, waiter: Waiter, last_fence: int, turns_left: int
    ) -> None:
        self._lines = lines
        self._name = name
        self._lease_ids = before, lease_id
        self._waiter = waiter
        self._last_fence, self._turns_left = last_fence, turns_left
        self.lease: Lease | None = None

    def send(self) -> None:
        """Raises LockStoreDown at once while there is no connection."""
        node = self._lines.store.node_of(self._name)
        Request(self._lines, self._name, self._answered, self._failed).send(node, self._command(node))

    def _command(self, node: Node) -> str:
        before, lease_id = self._lease_ids
        return self._lines.store.scripts.turn(
            node,
            packed_keys(self._name),
            before,
            next_lease_id=lease_id,
            lease_ms=self._waiter.lease_ms,
            last_fence=self._last_fence,
            turns_left=self._turns_left,
            request_id=self._waiter.request_id,
        )

    def _answered(self, request: Request, reply: Any) -> None:
        assert self.lease is not None
        if self.lease.ended:
            return
        if isinstance(reply, int):
            # Confirmed; but an extension that was asked for meanwhile may have been answered before.
            self.lease.confirmed(sent_at_s=request.sent_at_s)
        else:
            self._lines.lose(self.lease, LossReason(reply.decode()))

    def _failed(self, request: Request, error: LockStoreDown) -> None:
        self._lines.spawn(self._again(request))

    async def _again(self, request: Request) -> None:
        """Unknown is not confirmed: the run's end stands. Once more does no harm."""
        with contextlib.suppress(LockStoreDown):
            self._answered(request, await self._lines.store.run(self._name, self._command))


def _is_refusal(reply: Any) -> bool:
    return isinstance(reply, list) and len(reply) > 2


class Lines:
    """All lines of this process, by lock and by the lease id that the next grant will be known by."""

    def __init__(
        self,
        store: LockStore,
        *,
        max_waiters: int,
        max_waiters_per_lock: int,
        outage_wait_s: float,
        new_lease_id: Callable[[], str],
        seen_fence: Callable[[], int],
        is_held: Callable[[str], bool],
        grant: Callable[[Line, Waiter, Grant], Lease],
        lose: Callable[[Lease, LossReason], None],
        spawn: Callable[[Any], None],
    ) -> None:
        self.store = store
        self.new_lease_id = new_lease_id
        self.seen_fence = seen_fence
        self.grant = grant
        self.lose = lose
        self.spawn = spawn
        self.by_name: dict[str, Line] = {}
        self._by_lease_id: dict[str, Line] = {}
        self._max_waiters = max_waiters
        self._max_waiters_per_lock = max_waiters_per_lock
        self.outage_wait_s = outage_wait_s
        self._is_held = is_held
        self.waiter_count = 0

    def begin(self, name: str) -> Line:
        """The line of a lock for which nobody here waits; its first caller asks for itself."""
        line = Line(self, name)
        line.asked = line
        self.by_name[name] = line
        self._by_lease_id[line.lease_id] = line
        return line

    def open(self, name: str) -> Line:
        """The line of a lock that this process holds: nobody needs to ask the server."""
        line = Line(self, name)
        self.by_name[name] = line
        self._by_lease_id[line.lease_id] = line
        return line

    @property
    def is_full(self) -> bool:
        """Whether one more waiter would be one too many for this process."""
        return self.waiter_count >= self._max_waiters

    def check_room(self, line: Line | None) -> None:
        """Raises TooManyWaiters when there is none for one more."""
        if self.is_full:
            raise TooManyWaiters(f"{self.waiter_count} callers of this process wait already")
        if line is not None and len(line.waiters) >= self._max_waiters_per_lock:
            raise TooManyWaiters(f"{len(line.waiters)} callers of this process wait for this lock already")

    def on_granted(self, lease_id: str, fencing_token: int, turns: int, name: str) -> None:
        """Another process has handed the lock over to whoever stands in line under this lease id."""
        line = self._by_lease_id.get(lease_id)
        if line is not None and (line.waiters or line.asked is not None):
            line.granted_by_message(fencing_token, turns)
        else:
            self.give_back_unless_held(name, lease_id)

    def on_look(self, lease_id: str) -> None:
        """The lock is free, and the first place in line is ours."""
        line = self._by_lease_id.get(lease_id)
        if line is not None and (line.waiters or line.asked is not None):
            line.look(WakeSource.MESSAGE)

    def on_changed(self, lock_key: bytes | None) -> None:
        """A lock key that was watched has changed; None: all of them."""
        if lock_key is None:
            for line in list(self.by_name.values()):
                line.changed()
        elif (named := self.by_name.get(name_of_lock_key(lock_key))) is not None:
            named.changed()

    def look_all(self, source: WakeSource) -> None:
        """Every line stands in line again: the server may have forgotten it."""
        for line in list(self.by_name.values()):
            if line.waiters:
                line.look_anew(source)

    def holder_is_gone(self, name: str) -> None:
        """A lease of this process has ended without a release: whoever waits here asks for the lock."""
        line = self.by_name.get(name)
        if line is not None and line.waiters:
            line.look(WakeSource.TIMER)

    def granted_by_release(self, lease_id: str, fencing_token: int, turns: int, sent_at_s: float) -> bool:
        """A release of this process has granted this lease id; False where nobody waits under it any more."""
        line = self._by_lease_id.get(lease_id)
        if line is None or not line.waiters:
            return False
        line.granted_by_release(fencing_token, turns, sent_at_s)
        return True

    def rename(self, line: Line, lease_id: str) -> None:
        """The line stands, or will stand, under another lease id."""
        self._by_lease_id.pop(line.lease_id, None)
        line.lease_id = lease_id
        self._by_lease_id[lease_id] = line

    def forget(self, line: Line) -> None:
        """Nobody waits there any more."""
        line.close()
        if self.by_name.get(line.name) is line:
            del self.by_name[line.name]
        self._by_lease_id.pop(line.lease_id, None)

    def give_back(self, name: str, lease_id: str) -> None:
        """Releases the lock, or leaves the line, without waiting for the answer; it travels behind what was sent before."""
        try:
            node = self.store.node_of(name)
        except LockStoreDown:
            return
        self.store.send_and_forget(node, self.store.scripts.release(node, packed_keys(name), lease_id))

    def give_back_unless_held(self, name: str, lease_id: str) -> None:
        """The same for a grant that nobody here waits for, or that is long in use."""
        if lease_id not in self._by_lease_id and not self._is_held(lease_id):
            self.give_back(name, lease_id)

    def down_for_s(self, name: str) -> float:
        """For how long the lock's server has been out of reach."""
        return self.store.down_for_s(name)

    def leave_all(self) -> None:
        """Gives up this process' places, while there is still a connection to say so."""
        for line in self.by_name.values():
            self.give_back(line.name, line.lease_id)

    def close(self, error: LockStoreDown) -> None:
        """Everybody's wait ends."""
        for line in list(self.by_name.values()):
            line.fail(error)
