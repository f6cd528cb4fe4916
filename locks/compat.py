"""python-redis-lock for synchronous programs with its traps removed, on the same locks as Locker.

with SafeLock(client("redis://localhost"), "appointment:42", auto_renewal=True) as lock:
    ...  # under lock.fencing_token; lock.lost is set when the lease is lost, and then the `with` raises LeaseLost

Clients: client(url) states every limit. Of any other client SafeLock uses the address and the credentials, but makes
its own connections where the client's could wait for ever (socket_timeout=None) or for minutes (redis-py 8 retries ten
times in silence). A thread that waits needs one; a BLPOP lasts half a socket timeout, and at most a second.
"""

from __future__ import annotations

import base64
import contextlib
import math
import socket
import threading
from collections.abc import Callable
from typing import Self

import redis
import redis_lock
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from locks.clock import SYSTEM
from locks.errors import LeaseLost, LockStoreDown, LossReason
from locks.for_whom import text_for
from locks.keys import keys_of
from locks.lease import is_over
from locks.sync_lease import KEEPER, SyncLease
from locks.sync_returns import RETURNS, GiveBack, owe_lease
from locks.sync_store import (
    ANY_GRANT,
    EXTENDED,
    POOL_SIZE,
    RELEASED,
    RETRIES,
    RETRY_PAUSE_S,
    SOCKET_TIMEOUT_S,
    UNEXPIRING,
    SyncStore,
    bounded,
    check_expire,
    translated,
)

LONGEST_SIGNAL_WAIT_S = 1.0
# Redis removes a key in the millisecond after its end.
EXPIRY_SLACK_S = 0.002


def client(
    url: str, *, socket_timeout_s: float = SOCKET_TIMEOUT_S, retries: int = RETRIES, pool_size: int = POOL_SIZE
) -> redis.Redis:
    """A redis-py client as SafeLock wants it: what is not answered within socket_timeout_s fails, some retries later.

    url: redis://, rediss:// or unix://. pool_size: connections, one for each thread that waits. Raises ValueError.
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=socket_timeout_s,
        socket_connect_timeout=socket_timeout_s,
        retry=Retry(ConstantBackoff(RETRY_PAUSE_S), retries),
        max_connections=pool_size,
    )


class SafeLock(redis_lock.Lock):  # type: ignore[misc]  # it has no types
    """redis_lock.Lock(client, "{NAME}") that keeps its timeouts, tells of a loss, and outlives dead sockets.

    For one thread at a time. Every call to Redis raises LockStoreDown when it is out of reach or refuses.
    """

    def __init__(
        self,
        redis_client: redis.Redis,
        name: str,
        expire: float | None = 10.0,
        id: str | bytes | None = None,
        auto_renewal: bool = False,
        strict: bool = True,
        signal_expire: int = 1000,
        blocking: bool = True,
        *,
        instance_id: str | None = None,
        owner: str | None = None,
        on_lost: Callable[[LossReason], None] | None = None,
    ) -> None:
        """The words of redis_lock.Lock, except that `name` is the plain name that Locker uses, without braces.

        expire: seconds, 0.1 to 3600. None is the original's trap: a dead program holds the lock until it is forced out.
        id: of a hold elsewhere, to release it; where acquire() is called too, an id that nobody else uses.
        signal_expire: milliseconds. instance_id: shown as the holder, <host>-<pid> by default; owner: shown beside it.
        on_lost: called once a loss is known, in a thread of its own. Raises ValueError.
        """
        keys_of(name)
        if expire is not None:
            check_expire(expire)
        elif auto_renewal:
            raise ValueError("auto_renewal needs an expire")
        super().__init__(redis_client, f"{{{name}}}", None, id or _new_id(), False, strict, signal_expire, blocking)
        if "\t" in f"{instance_id}{self.id}":
            raise ValueError("instance_id and id may not contain a tab: it separates what Redis keeps of a grant")
        self.name = name
        self._client, socket_timeout_s = bounded(redis_client)
        self._expire_s, self._auto_renewal, self._on_lost = expire, auto_renewal, on_lost
        self._longest_wait_s = min(LONGEST_SIGNAL_WAIT_S, socket_timeout_s / 2)
        self._id_is_given = id is not None
        self._instance_id, self._for_whom = instance_id, text_for("", owner)
        self._store = SyncStore(self._client, name, signal_expire)
        self._pid = SYSTEM.pid()
        self._acquiring = threading.Lock()
        self._lease: SyncLease | None = None
        self._owed: GiveBack | None = None
        self._seen_fence = 0

    @classmethod
    def register_scripts(cls, redis_client: redis.Redis) -> None:
        """Leaves the original's scripts where the original looks for them, not in this subclass."""
        redis_lock.Lock.register_scripts(redis_client)

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Takes the lock and returns True, or False after `timeout` seconds: fractions count, 0 looks once, None never.

        While Redis does not answer, it takes some socket timeouts longer. Raises AlreadyAcquired, InvalidTimeout,
        TimeoutNotUsable or LockStoreDown; after any exception the lock is given back, whatever was on its way.
        """
        if timeout is not None and not blocking:
            raise redis_lock.TimeoutNotUsable("Timeout cannot be used if blocking=False")
        if timeout is not None and not timeout >= 0:
            raise redis_lock.InvalidTimeout(f"Timeout ({timeout}) cannot be less than 0")
        wait_s = (math.inf if timeout is None else timeout) if blocking else 0.0
        gives_up_at_s = SYSTEM.monotonic_s() + wait_s
        self._begin_again_after_fork()
        if not self._acquiring.acquire(blocking=False):
            raise redis_lock.AlreadyAcquired("Another thread is acquiring with this Lock instance.")
        try:
            if self._owed is not None or (self._lease is not None and self._lease.owed is not None):
                self._given_back()
            self._check_not_acquired()
            self._lease = None
            try:
                return self._acquire_until(gives_up_at_s)
            except BaseException:
                self._give_back()
                raise
        finally:
            self._acquiring.release()

    def release(self) -> None:
        """Gives the lock back. Raises LeaseLost when it was lost, NotAcquired when it was not ours, LockStoreDown.

        After LockStoreDown a thread sends it again until Redis has it or the lease is over; so does another release().
        """
        self._check_process()
        lease = self._lease
        if lease is None or not lease.close():
            if self._given_back() != RELEASED:
                raise redis_lock.NotAcquired(f"Lock({self.name}) is not acquired or it already expired.")
            return
        try:
            outcome = self._given_back()
        except LockStoreDown as error:
            if lease.loss_reason is not None:
                raise lease.loss() from error
            raise
        if outcome != RELEASED:
            lease.lose(LossReason(outcome))
        if lease.loss_reason is not None:
            raise lease.loss()

    def extend(self, expire: float | None = None) -> None:
        """Gives the lease `expire` seconds (None: the constructor's) from now; later renewals give as much.

        Raises LeaseLost, NotAcquired, NotExpirable, TypeError where no expire is known, ValueError,
        or LockStoreDown (then the earlier of the old end and the new one stands).
        """
        expire_s = self._expire_s if expire is None else expire
        if expire_s is None:
            raise TypeError("To extend a lock 'expire' must be given to extend() or to the constructor.")
        check_expire(expire_s)
        self._check_process()
        lease = self._lease
        open_lease = lease if lease is not None and not lease.closed else None
        outcome = (
            open_lease.extend(expire_s) if open_lease else self._store.extend(self._id, expire_s, grant_fence=ANY_GRANT)
        )
        if outcome == UNEXPIRING:
            raise redis_lock.NotExpirable(f"Lock {self.name} has no assigned expiration time")
        if outcome != EXTENDED:
            raise redis_lock.NotAcquired(f"Lock {self.name} is not acquired or it already expired.")

    def reset(self) -> None:
        """Frees the lock, whoever holds it; a SafeLock or Locker that held it is told. Raises LockStoreDown."""
        with translated():
            super().reset()

    def locked(self) -> bool:
        """Whether anybody holds the lock. Raises LockStoreDown."""
        with translated():
            return bool(super().locked())

    def get_owner_id(self) -> str | None:
        """The id under which the lock is held, None when it is free. Raises LockStoreDown."""
        with translated():
            owner_id: str | None = super().get_owner_id()
            return owner_id

    @property
    def fencing_token(self) -> int:
        """The last lease's number, larger than any before it on this name. Raises NotAcquired before the first."""
        return self._last_lease().fencing_token

    @property
    def lost(self) -> threading.Event:
        """Set when the last lease ended without release(); a new one each time. Raises NotAcquired before the first."""
        return self._last_lease().lost

    @property
    def loss_reason(self) -> LossReason | None:
        """Why the last lease was lost, None when it was not."""
        return self._lease.loss_reason if self._lease else None

    def remaining_s(self) -> float:
        """Seconds for which the lock is certainly ours, by the local clock; 0.0 when it is not, inf without expiry."""
        return self._lease.remaining_s() if self._lease and self._pid == SYSTEM.pid() else 0.0

    def __enter__(self) -> Self:
        if not self.acquire(blocking=self.blocking):
            raise redis_lock.NotAcquired(f"Lock({self.name}) is held by another.")
        return self

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        if self._pid != SYSTEM.pid():
            return  # a forked child leaves its parent's `with`
        try:
            self.release()
        except LockStoreDown:
            # Release is politeness: what was done stays done, and the lease runs out by itself, if it has an end.
            if kind is None and self._expire_s is None:
                raise
        except (LeaseLost, redis_lock.NotAcquired):
            if kind is None:  # else the body's own exception says more
                raise

    def _acquire_until(self, gives_up_at_s: float) -> bool:
        host = socket.gethostname()
        who = f"\t{self._instance_id or f'{host}-{self._pid}'}\t{host}\t{self._pid}\t{self._for_whom}"
        while True:
            sent_at_s = SYSTEM.monotonic_s()
            fence, busy_s = self._store.acquire(self._id, self._expire_s, who, self._seen_fence)
            if fence is not None and self._is_heard_late(sent_at_s):
                # We have waited so long for the answer that it is somebody else's by now; asked again, Redis says.
                if SYSTEM.monotonic_s() >= gives_up_at_s:
                    self._give_back()
                    return False
                continue
            if fence is not None:
                self._lease = SyncLease(
                    self._store,
                    self.name,
                    self._id,
                    fencing_token=fence,
                    expire_s=self._expire_s,
                    sent_at_s=sent_at_s,
                    auto_renewal=self._auto_renewal,
                    on_lost=self._on_lost,
                    owe=owe_lease,
                )
                self._seen_fence = fence
                KEEPER.watch(self._lease)
                return True
            patience_s = gives_up_at_s - SYSTEM.monotonic_s()
            if patience_s <= 0:
                return False
            self._store.wait_for_signal(min(patience_s, self._longest_wait_s, busy_s + EXPIRY_SLACK_S))

    def _is_heard_late(self, sent_at_s: float) -> bool:
        return self._expire_s is not None and is_over(self._expire_s, after_s=SYSTEM.monotonic_s() - sent_at_s)

    def _check_process(self) -> None:
        if self._pid != SYSTEM.pid():
            raise redis_lock.NotAcquired(f"Lock({self.name}) belongs to the process that forked this one.")

    def _check_not_acquired(self) -> None:
        lease = self._lease
        if lease is not None and not lease.closed:
            if lease.remaining_s() > 0:
                raise redis_lock.AlreadyAcquired("Already acquired from this Lock instance.")
            lease.close()
            self._renew_id()
        if self._id_is_given and self.get_owner_id() == self._id:
            raise redis_lock.AlreadyAcquired("Already acquired with this id.")

    def _give_back(self) -> None:
        if self._lease is not None:
            self._lease.close()
        with contextlib.suppress(LockStoreDown):
            self._given_back()

    def _given_back(self) -> str:
        """What became of the hold under this lock's id. Raises LockStoreDown; then it is owed, and the id stays."""
        if self._owed is None and self._lease is not None:
            self._owed = self._lease.owed
        if self._owed is None:
            lasts_s, grant_fence = math.inf if self._expire_s is None else self._expire_s, ANY_GRANT
            if self._lease is not None:
                lasts_s, grant_fence = self._lease.lasts_s, self._lease.fencing_token
            self._owed = GiveBack(self._store, self._id, grant_fence=grant_fence, lasts_s=lasts_s)
        owed = self._owed
        try:
            outcome = owed.send()
        except BaseException:
            RETURNS.owe(owed)
            raise
        self._owed = None
        self._renew_id()
        return outcome

    def _renew_id(self) -> None:
        # A command of an earlier hold that arrives late must not touch the next one.
        if not self._id_is_given:
            self._id = _new_id()

    def _begin_again_after_fork(self) -> None:
        if self._pid != SYSTEM.pid():
            self._pid, self._acquiring, self._lease, self._owed = SYSTEM.pid(), threading.Lock(), None, None
            self._renew_id()

    def _last_lease(self) -> SyncLease:
        if self._lease is None:
            raise redis_lock.NotAcquired(f"Lock({self.name}) was not acquired yet.")
        return self._lease


def _new_id() -> str:
    return base64.urlsafe_b64encode(SYSTEM.random_bytes(24)).decode()
