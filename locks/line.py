"""Who waits in this process for one lock, in order; one of them at a time stands in line at the server for all.

Everything here is a callback: a command on its way is nobody's to cancel, and its answer finds the line as it is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import hiredis

from locks.errors import Dismissed, LockBusy, LockStoreDown, LockStoreRefused
from locks.events import WakeSource
from locks.keys import packed_keys
from locks.lease import LONGEST_LEASE_S, Lease, is_over, margin_s
from locks.request import Request, Watch
from locks.suspension import call_when
from locks.turns import Run
from locks.waiter import Grant, Waiter

if TYPE_CHECKING:
    from locks.lines import Lines

# A timer looks a moment after the holder's end: Redis removes a key in the millisecond after it.
TIMER_SLACK_S = 0.002
# While the holder is of this process, its release brings the next waiter along; a waiter stands in line at the server
# only if the holder takes longer than this.
LAZY_S = 0.05
LOOK_AGAIN_S = 0.1
LONGEST_LEASE_MS = 1000 * LONGEST_LEASE_S
# A look that is not answered for longer than this is no sign that another holds the lock.
UNANSWERED_S = 0.1
# After news of changes that were none, twice running, the next one is looked at so much later at the soonest. Once is
# nothing: it may have been on its way since before the key was read.
QUIET_S = 0.3
# An extension moves the holder's end by a third of a lease, and what tells us of the end is less exact.
MOVED_S = 0.01


class Line:
    """The waiters of this process for one lock. `lease_id` is what the next grant will be known by."""

    # As it begins, and as nearly every line ends: the first caller gets the lock, and nobody has come meanwhile.
    asked: object | None = None  # the look, or the first caller's acquire, that is on its way
    may_hold = False  # our lease id has been sent, and whatever became of the answer, it may have got the lock
    expires_in_s: float | None = None
    _again: WakeSource | None = None
    _next_look: asyncio.TimerHandle | None = None
    _watched = False
    _watched_holder: bytes | None = None
    _watched_end_s: float | None = None  # of the holder's lease, when the key was read last
    _unchanged = 0  # how often running the key was read again, and nothing had changed
    _quiet_until_s = 0.0  # until when the news that the lock's key has changed is no reason to look
    _run: Run | None = None
    _stood_at_s = 0.0  # the last time at which we certainly still stood in line
    _told_fence = 0  # a grant that was made since then has a larger token
    _wanted_ms = LONGEST_LEASE_MS  # the shortest lease that was asked for under our lease id
    _most_wanted_ms = 0  # and the longest
    _heard_at_s = 0.0  # when the server last told that somebody has the lock, or is to have it
    _stands = False  # in line at the server, as far as is known
    _down_since_s: float | None = None
    _lapses_at_s: float | None = None  # when the holder's lease ends, by the last look

    def __init__(self, lines: Lines, name: str) -> None:
        self._lines = lines
        self.name = name
        self.lease_id = lines.new_lease_id()
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()

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
        self._count_patience(waiter)

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

    def stand(self) -> None:
        """Takes the place in line that waits for the holder of this process to be slow; somebody asks past it."""
        if self.waiters and not self._stands:
            self.look(WakeSource.HEARTBEAT)

    def first_refused(self, waiter: Waiter, reply: Any) -> None:
        """The caller who had asked for itself waits now, before those who came meanwhile. `reply` may be an error."""
        self.asked = None
        self.join(waiter)
        self.waiters.move_to_end(waiter, last=False)
        if self._lines.held.was_forced(self.lease_id):
            self._stand_anew()
        if isinstance(reply, LockStoreDown):
            self._store_is_down(reply)
            return
        if not isinstance(reply, hiredis.ReplyError):
            self._heard_at_s = self._lines.now_s()
        self.look(WakeSource.NONE)

    def forced(self) -> None:
        """A grant to our lease id, of which nobody has heard yet, was ended by force: it is nobody's when it comes."""
        if self.asked is not self:
            self._stand_anew()
            self.look(WakeSource.MESSAGE)

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
        was_first = waiter is self.first
        del self.waiters[waiter]
        if was_first and self.waiters and self._stands:
            self.look(WakeSource.HEARTBEAT)  # the place goes by the age of the first one, which is another now
        if self.waiters or self.asked is self:
            return  # also while the first caller still asks for itself: the line and its lease id are that one's
        self._give_back()
        self._lines.forget(self)

    def look(self, source: WakeSource) -> None:
        """Asks for the lock in the name of the first waiter; `source` is what made us."""
        if self.asked is not None:
            self._again = source
            return
        self._stop_next_look()
        waiter = self.first
        store, lease_id, lease_ms = self._lines.store, self.lease_id, self.wants()
        request = Request(
            self._lines.store,
            self._lines.spawn,
            self.name,
            lambda request, reply: self._answered(request, reply, lease_id, lease_ms, source),
            lambda request, error: self._failed(request, error, lease_id, lease_ms),
        )
        self.asked = request
        try:
            node = store.node_of(self.name)
            command = store.scripts.acquire_or_queue(
                node,
                self.packed_keys,
                lease_id,
                lease_ms=lease_ms,
                seen_fence=self._lines.held.seen_fence,
                age_us=waiter.age_us(self._lines.now_s()),
                later=self.later,
                waiter_count=len(self.waiters),
                stood=self._stands,
                for_whom=waiter.for_whom,
            )
            request.send(node, command)
            self.may_hold = True
        except LockStoreDown as error:
            self.asked = None
            self._store_is_down(error)

    def wants(self) -> int:
        """The lease in ms that is asked for next, in the name of the first waiter."""
        lease_ms = self.first.lease_ms
        self._wanted_ms = min(self._wanted_ms, lease_ms)
        self._most_wanted_ms = max(self._most_wanted_ms, lease_ms)
        return lease_ms

    def changed(self) -> None:
        """The lock key has changed, or may have."""
        self._watched = False
        if not self.waiters:
            return
        quiet_s = self._quiet_until_s - self._lines.now_s()
        if quiet_s <= 0:
            self.look(WakeSource.TRACKING)
        elif self.asked is None and (self._next_look is None or self._next_look.when() > _loop_s() + quiet_s):
            self._look_in(quiet_s, WakeSource.TRACKING)

    def look_anew(self, source: WakeSource) -> None:
        """A connection has come back: the server may have forgotten that we stand in line, and what we watch."""
        self._watched = False
        self.look(source)

    def count_anew(self) -> None:
        """Timers are late: patience is counted by the clock, and the place in line may be gone."""
        for waiter in self.waiters:
            self._count_patience(waiter)
        if self.waiters:
            self.look_anew(WakeSource.TIMER)

    def granted_by_release(self, fencing_token: int, turns: int, lease_ms: int, sent_at_s: float) -> None:
        """The release that was sent then by a holder of this process has given the lock to the first waiter."""
        if not self._is_for_first(lease_ms, sent_at_s):
            self.look(WakeSource.HANDOFF)
            return
        self._grant(fencing_token, turns, sent_at_s, WakeSource.HANDOFF, handoff_s=self._lines.now_s() - sent_at_s)

    def take_turn(self, lease: Lease) -> bool:
        """Passes the lock on from this lease to the first waiter, within a run; False where there is none."""
        run, self._run = self._run, None
        now_s = self._lines.now_s()
        if run is None or not self.waiters or not run.goes_on_from(lease, now_s):
            return False
        if not (run.is_confirmed or self.first.begins_at_once):
            return False
        waiter, _ = self.waiters.popitem(last=False)
        grant = Grant(
            self._lines.new_lease_id(),
            run.next_fence,
            now_s,
            WakeSource.HANDOFF,
            takeover=False,
            handoff_s=self._lines.now_s() - now_s,
            ends_at_s=run.ends_at_s,
        )
        run.turn(self._lines.grant(self, waiter, grant))
        if self.waiters:
            self._run = run
        else:
            self._give_back()  # the place, where we stand at the server too
            self._lines.forget(self)
        return True

    def end_run(self, lease: Lease) -> None:
        """No turn follows this lease without asking the server: the server may give it to somebody else now."""
        if self._run is not None and self._run.lease is lease:
            self._run = None

    def granted_by_message(self, fencing_token: int, turns: int) -> None:
        """Another process has handed the lock over; the claim is short, so the first waiter confirms.

        It begins at once where it may, where the message alone makes it ours, and where the claim, counted from when we
        still stood in line, leaves time enough. A message that is late may be of a claim from before that: its token
        tells.
        """
        if self.asked is self or not self.waiters:
            self.look(WakeSource.HANDOFF)
            return
        waiter, heard_at_s = self.first, self._lines.now_s()
        claim_s = min(self._wanted_ms, self._lines.store.scripts.limits.claim_ms) / 1000
        ends_at_s = self._stood_at_s + claim_s - margin_s(claim_s)
        is_new = fencing_token > self._told_fence
        may_begin = is_new and waiter.begins_at_once and self._lines.store.messages_hold
        if not may_begin or ends_at_s - heard_at_s < claim_s / 3:
            self.look(WakeSource.HANDOFF)
            return
        handoff_s = self._lines.now_s() - heard_at_s
        run = self._grant(
            fencing_token, turns, heard_at_s, WakeSource.HANDOFF, handoff_s=handoff_s, ends_at_s=ends_at_s
        )
        run.tell()

    def stands_in_line(self, released: Lease, sent_at_s: float) -> None:
        """The release that was sent then has left the first waiter in line behind another process."""
        self._stood(released.grant_fence, sent_at_s)
        if self.asked is None:
            self._look_in(LAZY_S, WakeSource.HEARTBEAT)

    def fail(self, error: LockStoreDown) -> None:
        """Ends the wait of everybody here."""
        waiters = list(self.waiters)
        self.waiters.clear()
        self._give_back()
        self._lines.forget(self)
        for waiter in waiters:
            waiter.refuse(error)

    @property
    def may_stand(self) -> bool:
        """Whether the server may have a place, or a turn, for those who wait here."""
        return self.may_hold or self._stands

    def dismiss(self) -> None:
        """Nobody who waits here needs a turn any more; a first caller who still asks for itself is not waiting yet."""
        waiters = list(self.waiters)
        self.waiters.clear()
        if self.asked is not self:
            self._give_back()
            self._lines.forget(self)
        for waiter in waiters:
            waiter.refuse(Dismissed(self.name, waited_s=waiter.waited_s(self._lines.now_s())))

    def close(self) -> None:
        """Not in use any more."""
        self._stop_next_look()

    def _count_patience(self, waiter: Waiter) -> None:
        waiter.stop_timer()
        if waiter.ends_at_s is not None:
            waiter.timer = call_when(self._lines.now_s, waiter.ends_at_s, self._give_up, waiter)

    def _give_up(self, waiter: Waiter) -> None:
        if waiter.ends_at_s is not None and self._lines.now_s() < waiter.ends_at_s:
            self._count_patience(waiter)  # the timer was early
            return
        is_unheard, waited_s = self._is_unheard_by(waiter), waiter.waited_s(self._lines.now_s())
        self.leave(waiter)
        if is_unheard:
            waiter.refuse(LockStoreDown(f"Redis has not told within {waited_s:.3f} s who has {self.name!r}"))
        else:
            waiter.refuse(LockBusy(self.name, waited_s=waited_s, expires_in_s=self.expires_in_s))

    def _is_unheard_by(self, waiter: Waiter) -> bool:
        """Whether nobody knows that another has the lock: what was asked since this one came was never answered."""
        if self._heard_at_s >= waiter.started_at_s or self._lines.held.holder_of(self.name) is not None:
            return False
        if self._down_since_s is not None:
            return True
        if not isinstance(self.asked, Request):
            return self.asked is self  # who asks for itself has no answer yet, so nobody here has
        sent_at_s = self.asked.sent_at_s
        is_silent = sent_at_s <= waiter.started_at_s or self._lines.now_s() - sent_at_s > UNANSWERED_S
        return is_silent or self._heard_at_s == 0.0

    def _answered(self, request: Request, reply: Any, lease_id: str, lease_ms: int, source: WakeSource) -> None:
        if self.asked is not request or not self.waiters:
            # What it was about has been granted or given back meanwhile; asked again since, it has come too late.
            if not _is_refusal(reply):
                fencing_token, turns = _granted(reply)
                self._lines.granted_to_nobody(self.name, lease_id, fencing_token, turns)
            elif request.sent_again:
                self._lines.stands_for_nobody(self.name, lease_id)
            return
        self.asked = None
        self._down_since_s = None
        if _is_refusal(reply):
            self._refused(reply, request.sent_at_s, source)
        elif not self._is_for_first(lease_ms, request.sent_at_s):
            self.look(source)
        else:
            handoff_s = self._lines.now_s() - request.sent_at_s if source is WakeSource.HANDOFF else None
            fencing_token, turns = _granted(reply)
            self._grant(fencing_token, turns, request.sent_at_s, source, handoff_s=handoff_s)

    def _is_for_first(self, lease_ms: int, sent_at_s: float) -> bool:
        """Whether the first waiter may use a lease of this length that was asked for then.

        Not where another asked for it, who has left since: it is shorter or longer than we think. Nor where it is heard
        too late: we have stood still, and it is somebody else's by now. Asked again, the server says what we have.
        """
        first = self.first
        return lease_ms == first.lease_ms and not is_over(first.lease_ttl_s, after_s=self._lines.now_s() - sent_at_s)

    def _failed(self, request: Request, error: LockStoreDown, lease_id: str, lease_ms: int) -> None:
        if self.asked is not request or not self.waiters:
            self._lines.look_lost(self.name, lease_id, lease_ms / 1000)
            return
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
    ) -> Run:
        waiter, _ = self.waiters.popitem(last=False)
        lease_id, may_outlast = self.lease_id, self._most_wanted_ms > waiter.lease_ms
        lapsed = self._lapses_at_s is not None and self._lines.now_s() >= self._lapses_at_s - TIMER_SLACK_S
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
        lease.may_outlast = may_outlast
        begins_until_s = sent_at_s + self._lines.store.scripts.limits.run_ms / 1000
        run = Run(
            self._lines.turns,
            lease,
            turns_left=turns - 1,
            last_fence=fencing_token + turns - 1,
            begins_until_s=begins_until_s,
            is_confirmed=ends_at_s is None,
            ends_at_s=ends_at_s or begins_until_s + waiter.lease_ttl_s - margin_s(waiter.lease_ttl_s),
        )
        self._run = run if self.waiters else None
        return run

    def _stood(self, told_fence: int, sent_at_s: float) -> None:
        """We stood in line when the server had granted no token larger than this one."""
        self._heard_at_s = self._lines.now_s()
        self._stands = True
        self._stood_at_s = sent_at_s
        self._told_fence = max(self._told_fence, told_fence)

    def _refused(self, reply: list[int], sent_at_s: float, source: WakeSource) -> None:
        remaining_ms, place, look_within_ms, _, told_fence = reply
        self._stood(told_fence, sent_at_s)
        self.expires_in_s = remaining_ms / 1000 if remaining_ms >= 0 else None
        self._lapses_at_s = sent_at_s + self.expires_in_s if self.expires_in_s is not None else None
        if self._again is not None:
            again, self._again = self._again, None
            self.look(again)
            return
        # Where nobody has it and we are the first, it is ours in a moment, because of what has made us look now.
        wait_s = look_within_ms / 1000
        if place != 0 or remaining_ms != -2:
            source = WakeSource.HEARTBEAT
        if place == 0:
            if self.expires_in_s is not None and self.expires_in_s + TIMER_SLACK_S < wait_s:
                wait_s, source = self.expires_in_s + TIMER_SLACK_S, WakeSource.TIMER
            if not self._watched:
                self._watch(is_free=remaining_ms == -2)
        self._look_in(wait_s, source)

    def _watch(self, *, is_free: bool) -> None:
        def watching(request: Request, holder: bytes | None) -> None:
            end_s, before_s = self._lapses_at_s, self._watched_end_s
            is_extended = end_s is not None and before_s is not None and end_s > before_s + MOVED_S
            is_changed = holder is None or holder != self._watched_holder or is_extended
            self._unchanged = 0 if is_changed else self._unchanged + 1
            if self._unchanged > 1:
                # The server tracks too many keys, and has dropped this one.
                self._quiet_until_s = self._lines.now_s() + QUIET_S
            self._watched_holder, self._watched_end_s = holder, end_s
            if holder is None and self.waiters and not is_free:
                self.changed()  # it went before we watched

        def not_watching(request: Request, error: LockStoreDown) -> None:
            self._watched = False

        try:
            node = self._lines.store.node_of(self.name)
        except LockStoreDown:
            return
        request = Watch(self._lines.store, self._lines.spawn, self.name, watching, not_watching)
        self._watched = node.watch(f"lock:{{{self.name}}}", request)

    def _store_is_down(self, error: LockStoreDown) -> None:
        if not self.waiters:
            return
        now_s = self._lines.now_s()
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
        loop = asyncio.get_running_loop()
        self._next_look = loop.call_later(max(0.0, wait_s), self._look_now, source)

    def _look_now(self, source: WakeSource) -> None:
        self._next_look = None
        if self.waiters:
            self.look(source)

    def _stop_next_look(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _give_back(self) -> None:
        if self.may_stand:
            self._lines.give_back(self.name, self.lease_id)

    def _stand_anew(self) -> None:
        self._give_back()
        self._renew_lease_id()

    def _renew_lease_id(self) -> None:
        self._stands = self.may_hold = False
        self._wanted_ms, self._most_wanted_ms = LONGEST_LEASE_MS, 0
        self.asked = None
        self._lines.rename(self, self._lines.new_lease_id())


def _is_refusal(reply: Any) -> bool:
    return isinstance(reply, list) and len(reply) > 2


def _granted(reply: Any) -> tuple[int, int]:
    """Token and turns of a look that was not refused."""
    return (reply, 1) if isinstance(reply, int) else (reply[0], reply[1])


def _loop_s() -> float:
    return asyncio.get_running_loop().time()
