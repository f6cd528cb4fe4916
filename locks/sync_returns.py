"""What SafeLocks owe: locks that Redis did not take back, sent again by one thread until it has or their leases end."""

from __future__ import annotations

import contextlib
import os

from locks.clock import SYSTEM
from locks.errors import LockStoreDown, LockStoreRefused
from locks.returns import LONGEST_PAUSE_S, MOST_AT_ONCE, MOST_OWED, SHORTEST_PAUSE_S, OverAt
from locks.sync_lease import KEEPER, SyncLease, UntilTheEnd
from locks.sync_store import SyncStore


class GiveBack:
    """The end of one hold, sent as often as it takes: one call for Redis, whoever sends it."""

    def __init__(self, store: SyncStore, lease_id: str, *, grant_fence: int, lasts_s: float) -> None:
        self.store = store
        self._lease_id = lease_id
        self._grant_fence = grant_fence
        self._call_id = SYSTEM.random_bytes(8).hex()
        self._sending = UntilTheEnd()
        self._over_at = OverAt(lasts_s)
        self.outcome: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to give back."""
        return self.outcome is not None or self._over_at.has_come(SYSTEM.monotonic_s())

    def send(self) -> str:
        """What became of it, RELEASED or a LossReason's value; asked for unless it is known. Raises LockStoreDown."""
        with self._sending:
            if self.outcome is None:
                try:
                    self.outcome = self.store.release(self._lease_id, self._call_id, grant_fence=self._grant_fence)
                except LockStoreDown as error:
                    self._over_at.failed(SYSTEM.monotonic_s(), is_answered=isinstance(error, LockStoreRefused))
                    raise
            return self.outcome


class _Returns:
    """The thread that sends what is owed, and once more when the program ends; it ends when nothing is."""

    def __init__(self) -> None:
        self.begin_again()

    def begin_again(self) -> None:
        """Nothing is owed: also in a forked child, whose parent gives back its own."""
        self._changing = UntilTheEnd()
        self._owed: dict[GiveBack, None] = {}
        self._runs = False

    def owe(self, give_back: GiveBack) -> None:
        """It could not be sent, or was refused."""
        with self._changing:
            self._owed[give_back] = None
            if len(self._owed) > MOST_OWED:
                del self._owed[next(iter(self._owed))]
            if not self._runs:
                with contextlib.suppress(RuntimeError):  # no thread to give: the next that is owed tries again
                    self._runs = KEEPER.start(self._run, "safe-lock-returns")

    def _run(self) -> None:
        pause_s = SHORTEST_PAUSE_S
        try:
            is_last = False
            while not is_last:
                is_last = KEEPER.ends_within(pause_s)
                due = self._due()
                if not due:
                    return
                pause_s = SHORTEST_PAUSE_S if self._send(due) else min(2 * pause_s, LONGEST_PAUSE_S)
        except BaseException:
            self._runs = False
            raise

    def _due(self) -> list[GiveBack]:
        """Those that were tried longest ago; from now on they are the last. Without any the thread is at its end."""
        with self._changing:
            self._owed = {each: None for each in self._owed if not each.is_over}
            due = list(self._owed)[:MOST_AT_ONCE]
            for give_back in due:
                del self._owed[give_back]
                self._owed[give_back] = None
            self._runs = bool(due)
            return due

    def _send(self, due: list[GiveBack]) -> bool:
        """Whether Redis took one of them. A client that had no answer for one is not asked about another."""
        any_taken, silent = False, set()
        for give_back in due:
            if give_back.store.client in silent:
                continue
            try:
                give_back.send()
            except LockStoreRefused:
                continue
            except LockStoreDown:
                silent.add(give_back.store.client)
            else:
                any_taken = True
        return any_taken


def owe_lease(lease: SyncLease) -> GiveBack:
    """Gives back what Redis may keep of a lease that is over."""
    give_back = GiveBack(lease.store, lease.lease_id, grant_fence=lease.fencing_token, lasts_s=lease.lasts_s)
    RETURNS.owe(give_back)
    return give_back


RETURNS = _Returns()
os.register_at_fork(after_in_child=RETURNS.begin_again)
