"""One hold of a SafeLock, and the keeper's thread that renews it and tells of its loss on time."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from locks import suspension
from locks.clock import SYSTEM
from locks.errors import LeaseLost, LocksError, LockStoreDown, LossReason
from locks.lease import is_over, margin_s
from locks.sync_store import EXTENDED, UNEXPIRING, SyncStore

if TYPE_CHECKING:
    from locks.sync_returns import GiveBack

RENEWALS_PER_LEASE, RETRIES_PER_LEASE = 3, 12
KEEPER_LINGERS_S = 1.0
# For how long an exit waits for threads of ours that are at work.
LAST_WORK_S = 0.5


class UntilTheEnd(threading.Condition):
    """A lock that nobody waits for once the interpreter ends: whoever had it runs no more, nor does anybody else."""

    def __enter__(self) -> bool:
        return sys.is_finalizing() or super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        if not sys.is_finalizing():
            super().__exit__(*exception)

    def notify(self, n: int = 1) -> None:
        """As Condition.notify."""
        if not sys.is_finalizing():
            super().notify(n)


class SyncLease:
    """One hold of one lock: its end by the local clock, and its loss. It changes under KEEPER.changing.

    Redis keeps it for `lasts_s` after its last extension at the most; inf without expiry. Where that may be beyond its
    end, it is given back then by `owe`, and is `owed`.
    """

    def __init__(
        self,
        store: SyncStore,
        name: str,
        lease_id: str,
        *,
        fencing_token: int,
        expire_s: float | None,
        sent_at_s: float,
        auto_renewal: bool,
        on_lost: Callable[[LossReason], None] | None,
        owe: Callable[[SyncLease], GiveBack],
    ) -> None:
        self.store, self._name, self.lease_id, self._on_lost = store, name, lease_id, on_lost
        self._owe = owe
        self.owed: GiveBack | None = None
        self._asked = 0  # extensions that have not been answered, or never will be
        self._auto_renewal, self._sending = auto_renewal, UntilTheEnd()
        self._renewing = self._unanswered = False
        self.fencing_token = fencing_token
        self.lost = threading.Event()
        self.loss_reason: LossReason | None = None
        self.closed = False
        self._expire_s = self.lasts_s = math.inf if expire_s is None else expire_s
        self._ends_at_s = self._renewal_due_s = math.inf
        if expire_s is not None:
            self._count_from(sent_at_s, expire_s)

    @property
    def due_s(self) -> float:
        """When it is to be looked at next."""
        renews = self._auto_renewal and not self._renewing
        return min(self._ends_at_s, self._renewal_due_s) if renews else self._ends_at_s

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to look after."""
        return self.closed or self.loss_reason is not None

    def remaining_s(self) -> float:
        return 0.0 if self.is_over else max(0.0, self._ends_at_s - SYSTEM.monotonic_s())

    def loss(self) -> LeaseLost:
        return LeaseLost(self._name, reason=self.loss_reason or LossReason.EXPIRED, fencing_token=self.fencing_token)

    def look(self) -> None:
        """Declares the lease lost whose time is over, and sends a renewal that is due; never waits for Redis."""
        with KEEPER.changing:
            self._notice_lapse()
            now_s = SYSTEM.monotonic_s()
            if not self.is_over and now_s >= self.due_s:
                # Until an answer says otherwise it is unanswered, and due again.
                self._renewal_due_s = now_s + self._expire_s / RETRIES_PER_LEASE
                self._unanswered = True
                with contextlib.suppress(RuntimeError):  # no thread to give: due again
                    self._renewing = KEEPER.start(self._renew, "safe-lock-renewal")

    def extend(self, expire_s: float) -> str:
        """Raises LeaseLost, or LockStoreDown: unknown is not extended."""
        with self._sending:  # the order of the answers is the order of the commands
            self._raise_if_lost()
            sent_at_s = SYSTEM.monotonic_s()
            self.lasts_s = max(self.lasts_s, expire_s)  # unanswered, it may be done
            self._asked += 1
            try:
                outcome = self.store.extend(self.lease_id, expire_s, grant_fence=self.fencing_token)
            except LockStoreDown:
                with KEEPER.changing:
                    self._ends_at_s = min(self._ends_at_s, sent_at_s + expire_s - margin_s(expire_s))
                raise
            with KEEPER.changing:
                self._raise_if_lost()
                self._asked -= 1
                if outcome not in (EXTENDED, UNEXPIRING):
                    if not self.closed:
                        self.lose(LossReason(outcome))
                        raise self.loss()
                elif is_over(expire_s, after_s=SYSTEM.monotonic_s() - sent_at_s):
                    pass  # a shorter lease is heard of too late to begin: the old end stands
                elif outcome == EXTENDED or self._ends_at_s < math.inf:
                    self._count_from(sent_at_s, expire_s)
        KEEPER.look_again()
        return outcome

    def close(self) -> bool:
        """The holder's release: nothing is renewed from now on. False when it was closed before."""
        with KEEPER.changing:
            self._notice_lapse()
            was_open, self.closed = not self.closed, True
            KEEPER.forget(self)
        return was_open

    def lose(self, reason: LossReason) -> None:
        """Tells the holder, once."""
        with KEEPER.changing:
            if self.loss_reason is None:
                self.loss_reason = reason
                self.lost.set()
                on_lost = self._on_lost
                if on_lost is not None:
                    with contextlib.suppress(RuntimeError):
                        KEEPER.start(lambda: on_lost(reason), "safe-lock-on-lost")

    def _renew(self) -> None:
        try:
            with contextlib.suppress(LocksError):
                self.extend(self._expire_s)
        finally:
            self._renewing = False
            KEEPER.look_again()

    def _count_from(self, sent_at_s: float, expire_s: float) -> None:
        self._expire_s, self._unanswered = expire_s, False
        self._ends_at_s = sent_at_s + expire_s - margin_s(expire_s)
        self._renewal_due_s = sent_at_s + expire_s / RENEWALS_PER_LEASE

    def _notice_lapse(self) -> None:
        if not self.is_over and SYSTEM.monotonic_s() >= self._ends_at_s:
            if self._asked or self.lasts_s > self._expire_s:
                self.owed = self._owe(self)
            self.lose(LossReason.UNREACHABLE if self._unanswered else LossReason.EXPIRED)

    def _raise_if_lost(self) -> None:
        with KEEPER.changing:
            self._notice_lapse()
        if self.loss_reason is not None:
            raise self.loss()


class _Keeper:
    """One thread of this process looks at every lease on time, and ends when there is none.

    It never waits for Redis, so no dead socket makes it late: a renewal travels in a thread of its own.
    """

    def __init__(self) -> None:
        self.begin_again()

    def begin_again(self) -> None:
        """Without any lease: also in a forked child, whose parent keeps its own."""
        self.changing = UntilTheEnd()
        # As in the original, a lock thrown away is not renewed.
        self._leases: weakref.WeakSet[SyncLease] = weakref.WeakSet()
        self._runs = False
        self._end = threading.Event()
        self._wakes_at_s = 0.0
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def watch(self, lease: SyncLease) -> None:
        """Looks at the lease from now on, if it has an end."""
        with self.changing:
            if lease.due_s == math.inf:
                return
            self._leases.add(lease)
            if not self._runs:
                self._runs = self.start(self._run, "safe-lock-keeper")
            elif lease.due_s < self._wakes_at_s:
                self.changing.notify()

    def forget(self, lease: SyncLease) -> None:
        with self.changing:
            self._leases.discard(lease)

    def end(self) -> None:
        """The interpreter ends: no thread of ours is to be stopped while it holds what `__del__` would wait for.

        Whoever still holds a lock, or gets one, has its end by the clock alone.
        """
        with self.changing:
            self._end.set()
            self.changing.notify()
        ends_at_s = SYSTEM.monotonic_s() + LAST_WORK_S
        for thread in tuple(self._threads):
            thread.join(max(0.0, ends_at_s - SYSTEM.monotonic_s()))

    def ends_within(self, wait_s: float) -> bool:
        """Waits for the interpreter's end; whether it has come."""
        return self._end.wait(wait_s)

    def start(self, work: Callable[[], None], name: str) -> bool:
        """Whether a thread of its own does the work: none does it where the interpreter is on its way out.

        Raises RuntimeError where the system has none to give.
        """
        if (
            self._end.is_set() or sys.is_finalizing()
        ):  # a thread that is started now does not begin, and start() waits for it
            return False
        thread = threading.Thread(target=work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if threading.main_thread().is_alive():
                raise
            return False
        self._threads.add(thread)
        return True

    def look_again(self) -> None:
        """A lease has another end than before."""
        with self.changing:
            self.changing.notify()

    def _run(self) -> None:
        with self.changing:
            try:
                idle = False
                while (self._leases or not idle) and not self._end.is_set():
                    idle = not self._leases
                    self._wakes_at_s = min(SYSTEM.monotonic_s() + KEEPER_LINGERS_S, self._look())
                    self._wait()
            finally:
                self._runs = False

    def _wait(self) -> None:
        # In short pieces: a thread's wait stands still in a suspend, and leases do not.
        while (left_s := self._wakes_at_s - SYSTEM.monotonic_s()) > 0:
            if self.changing.wait(min(left_s, suspension.LOOK_S)):
                return

    def _look(self) -> float:
        for lease in tuple(self._leases):
            lease.look()
            if lease.is_over:
                self._leases.discard(lease)
        return min((lease.due_s for lease in self._leases), default=math.inf)


KEEPER = _Keeper()
os.register_at_fork(after_in_child=KEEPER.begin_again)
atexit.register(KEEPER.end)
