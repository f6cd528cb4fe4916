"""All lines of this process, by lock and by the lease id that the next grant will be known by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from locks.errors import LockStoreDown, LossReason, TooManyWaiters
from locks.events import WakeSource
from locks.held import HeldLeases
from locks.keys import name_of_lock_key, packed_keys
from locks.lease import LONGEST_LEASE_S, Lease
from locks.line import Line
from locks.node import Node
from locks.request import Spawn
from locks.returns import Returns
from locks.store import LockStore
from locks.turns import Lose, Turns
from locks.waiter import Grant, Waiter


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
        held: HeldLeases,
        grant: Callable[[Line, Waiter, Grant], Lease],
        lose: Lose,
        spawn: Spawn,
    ) -> None:
        self.store = store
        self.now_s = store.clock.monotonic_s
        self.new_lease_id = new_lease_id
        self.grant = grant
        self.spawn = spawn
        self.turns = Turns(store, spawn=spawn, lose=lose)
        self._lose = lose
        self.by_name: dict[str, Line] = {}
        self._by_lease_id: dict[str, Line] = {}
        self._max_waiters = max_waiters
        self._max_waiters_per_lock = max_waiters_per_lock
        self.outage_wait_s = outage_wait_s
        self.held = held
        self.returns = Returns(store, is_in_use=self._is_in_use, spawn=spawn)
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
            raise TooManyWaiters(f"callers of this process that wait already: {self.waiter_count}")
        if line is not None and len(line.waiters) >= self._max_waiters_per_lock:
            raise TooManyWaiters(f"callers of this process that wait for this lock already: {len(line.waiters)}")

    def on_granted(self, lease_id: str, fencing_token: int, turns: int, name: str) -> None:
        """Another process has handed the lock over to whoever stands in line under this lease id."""
        line = self._by_lease_id.get(lease_id)
        if line is not None and (line.waiters or line.asked is not None):
            line.granted_by_message(fencing_token, turns)
        else:
            self.granted_to_nobody(name, lease_id, fencing_token, turns)

    def on_look(self, lease_id: str) -> None:
        """The lock is free, and the first place in line is ours."""
        line = self._by_lease_id.get(lease_id)
        if line is not None and (line.waiters or line.asked is not None):
            line.look(WakeSource.MESSAGE)

    def on_forced(self, lease_id: str, fencing_token: int) -> None:
        """What was granted under an id that no lease here goes by, as far as we have heard, was ended by force."""
        self.held.forced(lease_id, fencing_token)
        line = self._by_lease_id.get(lease_id)
        if line is not None and line.waiters:
            line.forced()

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

    def count_anew(self) -> None:
        """Timers are late: every wait is counted by the clock, and every line stands in line again."""
        for line in list(self.by_name.values()):
            line.count_anew()

    def dismiss(self, name: str) -> None:
        """The holder has finished: everybody who waits here for this lock is told."""
        line = self.by_name.get(name)
        if line is not None:
            line.dismiss()

    def holder_is_gone(self, name: str) -> None:
        """A lease of this process has ended without a release: whoever waits here asks for the lock."""
        line = self.by_name.get(name)
        if line is not None and line.waiters:
            line.look(WakeSource.TIMER)

    def granted_by_release(
        self, name: str, lease_id: str, fencing_token: int, turns: int, *, lease_ms: int, sent_at_s: float
    ) -> None:
        """The release that was sent then has granted this lease id a lease of this length."""
        line = self._by_lease_id.get(lease_id)
        if line is not None and line.waiters:
            line.granted_by_release(fencing_token, turns, lease_ms, sent_at_s)
        else:
            self.granted_to_nobody(name, lease_id, fencing_token, turns)

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

    def give_back(self, name: str, lease_id: str, lease_ttl_s: float = LONGEST_LEASE_S) -> None:
        """Releases the lock, or leaves the line, without waiting for the answer; see Returns."""
        self.returns.give_back(name, lease_id, lease_ttl_s)

    def give_back_lease(self, lease: Lease) -> None:
        """The same for a lease that is over: its own grant, then what a late look may have taken under its run's id."""
        keys, scripts = packed_keys(lease.name), self.store.scripts

        def command(node: Node) -> str:
            return scripts.release(
                node, keys, lease.known_as, grant_fence=lease.grant_fence, fencing_token=lease.fencing_token
            )

        def answered(reply: Any) -> None:
            if reply == 0:
                for lease_id in dict.fromkeys((lease.known_as, lease.granted_as)):
                    self.give_back(lease.name, lease_id)

        self.returns.send(
            lease.name, lease.known_as, LONGEST_LEASE_S if lease.may_outlast else lease.lease_ttl_s, command, answered
        )

    def granted_to_nobody(self, name: str, lease_id: str, fencing_token: int, turns: int) -> None:
        """The server has granted the lock under an id under which nobody here waits.

        That may be the grant of the lease that is held, or was exported, under this id, told of once more. A later one
        means that this lease was over before: an old look, carried out late, has taken the lock again.
        """
        if lease_id in self._by_lease_id:
            return
        grant_fence, lease = fencing_token + turns - 1, self.held.known_as(name, lease_id)
        known_fence = self.held.exported_fence(lease_id) if lease is None else lease.grant_fence
        if known_fence is not None and grant_fence <= known_fence:
            return
        self.held.adopts(lease_id)
        if lease is not None and not lease.ended:
            self._lose(lease, LossReason.TAKEN)  # which gives back what has been taken, too
        else:
            self.give_back(name, lease_id)

    def stands_for_nobody(self, name: str, lease_id: str) -> None:
        """The server has put an id in line under which nobody here waits: asked again, after it was given back."""
        if self._is_in_use(name, lease_id):
            return
        self.give_back(name, lease_id)
        line = self.by_name.get(name)
        if line is not None and line.waiters:
            line.look(WakeSource.HEARTBEAT)  # who waits here now has no place any more: a process has one

    def look_lost(self, name: str, lease_id: str, lease_ttl_s: float) -> None:
        """Nobody will hear of a look that is out of date: it may have taken the lock, or given it more time."""
        lease = self.held.known_as(name, lease_id)
        if lease is not None:
            lease.may_outlast = True  # so it is given back at its end, whatever was granted under its id
        elif not self._is_in_use(name, lease_id):
            self.give_back(name, lease_id, lease_ttl_s)

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

    def _is_in_use(self, name: str, lease_id: str) -> bool:
        return lease_id in self._by_lease_id or self.held.knows(name, lease_id)
