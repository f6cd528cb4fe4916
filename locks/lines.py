"""All lines of this process, by lock and by the lease id that the next grant will be known by."""

from __future__ import annotations

from collections.abc import Callable

from locks.errors import LockStoreDown, TooManyWaiters
from locks.events import WakeSource
from locks.held import HeldLeases
from locks.keys import name_of_lock_key
from locks.lease import LONGEST_LEASE_S, Lease
from locks.line import Line
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
        self.new_lease_id = new_lease_id
        self.grant = grant
        self.spawn = spawn
        self.turns = Turns(store, spawn=spawn, lose=lose, give_back_unless_held=self.give_back_unless_held)
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

    def give_back(self, name: str, lease_id: str, lease_ttl_s: float = LONGEST_LEASE_S) -> None:
        """Releases the lock, or leaves the line, without waiting for the answer; see Returns."""
        self.returns.give_back(name, lease_id, lease_ttl_s)

    def give_back_unless_held(self, name: str, lease_id: str) -> None:
        """The same for a grant that nobody here waits for, or that is long in use."""
        if not self._is_in_use(name, lease_id):
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

    def _is_in_use(self, name: str, lease_id: str) -> bool:
        return lease_id in self._by_lease_id or self.held.has(name, lease_id)
