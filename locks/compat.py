"""python-redis-lock for synchronous programs with its traps removed, on the same locks as Locker.

with SafeLock(client("redis://localhost"), "appointment:42", auto_renewal=True) as lock:
    ...  # under lock.fencing_token; lock.lost is set when the lease is lost, and then the `with` raises LeaseLost

Clients: client(url) states every limit. Of any other client SafeLock uses the address and the credentials, but makes
its own connections where the client's could wait for ever (socket_timeout=None) or for minutes (redis-py 8 retries ten
times in silence). A thread that waits needs one; a BLPOP lasts half a socket timeout, and at most a second.

One file for one promise, though a long one: the lock, below it the lease and its keeper, below these the wire.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any, Self

import redis
import redis_lock
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from locks.errors import LeaseLost, LocksError, LockStoreDown, LockStoreRefused, LossReason
from locks.keys import keys_of
from locks.lease import margin_s
from locks.store import QueueLimits

SHORTEST_EXPIRE_S, LONGEST_EXPIRE_S = 0.1, 3600
SOCKET_TIMEOUT_S, RETRIES, RETRY_PAUSE_S, POOL_SIZE = 2.0, 1, 0.05, 1024
RENEWALS_PER_LEASE, RETRIES_PER_LEASE = 3, 12
# For how long the fencing token of a lock without expiry is known.
UNEXPIRING_MS = LONGEST_EXPIRE_S * 1000
LONGEST_SIGNAL_WAIT_S = 1.0
# Redis removes a key in the millisecond after its end.
EXPIRY_SLACK_S = 0.002
KEEPER_LINGERS_S = 1.0
RELEASED, EXTENDED, UNEXPIRING = "released", "extended", "unexpiring"


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
        on_lost: Callable[[LossReason], None] | None = None,
    ) -> None:
        """The words of redis_lock.Lock, except that `name` is the plain name that Locker uses, without braces.

        expire: seconds, 0.1 to 3600. None is the original's trap: a dead program holds the lock until it is forced out.
        id: of a hold elsewhere, to release it; where acquire() is called too, an id that nobody else uses.
        signal_expire: milliseconds. instance_id: shown as the holder, <host>-<pid> by default.
        on_lost: called once a loss is known, in a thread of its own. Raises ValueError.
        """
        keys_of(name)
        if expire is not None:
            _check_expire(expire)
        elif auto_renewal:
            raise ValueError("auto_renewal needs an expire")
        super().__init__(redis_client, f"{{{name}}}", None, id or _new_id(), False, strict, signal_expire, blocking)
        if "\t" in f"{instance_id}{self.id}":
            raise ValueError("instance_id and id may not contain a tab: it separates what Redis keeps of a grant")
        self.name = name
        self._client, socket_timeout_s = _bounded(redis_client)
        self._expire_s, self._auto_renewal, self._on_lost = expire, auto_renewal, on_lost
        self._longest_wait_s = min(LONGEST_SIGNAL_WAIT_S, socket_timeout_s / 2)
        self._id_is_given = id is not None
        self._instance_id = instance_id
        self._remote = _Remote(self._client, name, signal_expire)
        self._pid = os.getpid()
        self._acquiring = threading.Lock()
        self._lease: _Lease | None = None
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
        gives_up_at_s = time.monotonic() + wait_s
        self._begin_again_after_fork()
        if not self._acquiring.acquire(blocking=False):
            raise redis_lock.AlreadyAcquired("Another thread is acquiring with this Lock instance.")
        try:
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
        """Gives the lock back. Raises LeaseLost when it was lost, NotAcquired when it was not ours, LockStoreDown."""
        self._check_process()
        lease = self._lease
        if lease is None or not lease.close():
            if self._remote.release(self._id) != RELEASED:
                raise redis_lock.NotAcquired(f"Lock({self.name}) is not acquired or it already expired.")
            return
        try:
            outcome = self._remote.release(self._id)
        except LockStoreDown as error:
            if lease.loss_reason is not None:
                raise lease.loss() from error
            raise
        self._renew_id()
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
        _check_expire(expire_s)
        self._check_process()
        lease = self._lease
        open_lease = lease if lease is not None and not lease.closed else None
        outcome = open_lease.extend(expire_s) if open_lease else self._remote.extend(self._id, expire_s)
        if outcome == UNEXPIRING:
            raise redis_lock.NotExpirable(f"Lock {self.name} has no assigned expiration time")
        if outcome != EXTENDED:
            raise redis_lock.NotAcquired(f"Lock {self.name} is not acquired or it already expired.")

    def reset(self) -> None:
        """Frees the lock, whoever holds it; a SafeLock or Locker that held it is told. Raises LockStoreDown."""
        with _translated():
            super().reset()

    def locked(self) -> bool:
        """Whether anybody holds the lock. Raises LockStoreDown."""
        with _translated():
            return bool(super().locked())

    def get_owner_id(self) -> str | None:
        """The id under which the lock is held, None when it is free. Raises LockStoreDown."""
        with _translated():
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
        return self._lease.remaining_s() if self._lease and self._pid == os.getpid() else 0.0

    def __enter__(self) -> Self:
        if not self.acquire(blocking=self.blocking):
            raise redis_lock.NotAcquired(f"Lock({self.name}) is held by another.")
        return self

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        if self._pid != os.getpid():
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
        who = f"\t{self._instance_id or f'{socket.gethostname()}-{self._pid}'}\t{socket.gethostname()}\t{self._pid}\t"
        while True:
            sent_at_s = time.monotonic()
            fence, busy_s = self._remote.acquire(self._id, self._expire_s, who, self._seen_fence)
            if fence is not None:
                self._lease = _Lease(
                    self._remote,
                    self.name,
                    self._id,
                    fence,
                    self._expire_s,
                    sent_at_s,
                    self._auto_renewal,
                    self._on_lost,
                )
                self._seen_fence = fence
                _KEEPER.watch(self._lease)
                return True
            patience_s = gives_up_at_s - time.monotonic()
            if patience_s <= 0:
                return False
            self._remote.wait_for_signal(min(patience_s, self._longest_wait_s, busy_s + EXPIRY_SLACK_S))

    def _check_process(self) -> None:
        if self._pid != os.getpid():
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
            self._remote.release(self._id)
            self._renew_id()

    def _renew_id(self) -> None:
        # A command of an earlier hold that arrives late must not touch the next one. While a hold's end is unknown the
        # id stays, so that the next acquire() finds its own lock.
        if not self._id_is_given:
            self._id = _new_id()

    def _begin_again_after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._acquiring, self._lease = os.getpid(), threading.Lock(), None
            self._renew_id()

    def _last_lease(self) -> _Lease:
        if self._lease is None:
            raise redis_lock.NotAcquired(f"Lock({self.name}) was not acquired yet.")
        return self._lease


class _Lease:
    """One hold of one lock: its end by the local clock, and its loss. It changes under _KEEPER.changing."""

    def __init__(
        self,
        remote: _Remote,
        name: str,
        lease_id: str,
        fencing_token: int,
        expire_s: float | None,
        sent_at_s: float,
        auto_renewal: bool,
        on_lost: Callable[[LossReason], None] | None,
    ) -> None:
        self._remote, self._name, self._lease_id, self._on_lost = remote, name, lease_id, on_lost
        self._auto_renewal, self._sending = auto_renewal, threading.Lock()
        self._renewing = self._unanswered = False
        self.fencing_token = fencing_token
        self.lost = threading.Event()
        self.loss_reason: LossReason | None = None
        self.closed = False
        self._expire_s = math.inf if expire_s is None else expire_s
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
        return 0.0 if self.is_over else max(0.0, self._ends_at_s - time.monotonic())

    def loss(self) -> LeaseLost:
        return LeaseLost(self._name, reason=self.loss_reason or LossReason.EXPIRED, fencing_token=self.fencing_token)

    def look(self) -> None:
        """Declares the lease lost whose time is over, and sends a renewal that is due; never waits for Redis."""
        with _KEEPER.changing:
            self._notice_lapse()
            now_s = time.monotonic()
            if not self.is_over and now_s >= self.due_s:
                # Until an answer says otherwise it is unanswered, and due again.
                self._renewal_due_s = now_s + self._expire_s / RETRIES_PER_LEASE
                self._unanswered = True
                self._renewing = _started(self._renew, "safe-lock-renewal")

    def extend(self, expire_s: float) -> str:
        """Raises LeaseLost, or LockStoreDown: unknown is not extended."""
        with self._sending:  # the order of the answers is the order of the commands
            self._raise_if_lost()
            sent_at_s = time.monotonic()
            try:
                outcome = self._remote.extend(self._lease_id, expire_s)
            except LockStoreDown:
                with _KEEPER.changing:
                    self._ends_at_s = min(self._ends_at_s, sent_at_s + expire_s - margin_s(expire_s))
                raise
            with _KEEPER.changing:
                self._raise_if_lost()
                if outcome not in (EXTENDED, UNEXPIRING):
                    if not self.closed:
                        self.lose(LossReason(outcome))
                        raise self.loss()
                elif outcome == EXTENDED or self._ends_at_s < math.inf:
                    self._count_from(sent_at_s, expire_s)
        _KEEPER.look_again()
        return outcome

    def close(self) -> bool:
        """The holder's release: nothing is renewed from now on. False when it was closed before."""
        with _KEEPER.changing:
            self._notice_lapse()
            was_open, self.closed = not self.closed, True
            _KEEPER.forget(self)
        return was_open

    def lose(self, reason: LossReason) -> None:
        """Tells the holder, once."""
        with _KEEPER.changing:
            if self.loss_reason is None:
                self.loss_reason = reason
                self.lost.set()
                on_lost = self._on_lost
                if on_lost is not None:
                    _started(lambda: on_lost(reason), "safe-lock-on-lost")

    def _renew(self) -> None:
        try:
            with contextlib.suppress(LocksError):
                self.extend(self._expire_s)
        finally:
            self._renewing = False
            _KEEPER.look_again()

    def _count_from(self, sent_at_s: float, expire_s: float) -> None:
        self._expire_s, self._unanswered = expire_s, False
        self._ends_at_s = sent_at_s + expire_s - margin_s(expire_s)
        self._renewal_due_s = sent_at_s + expire_s / RENEWALS_PER_LEASE

    def _notice_lapse(self) -> None:
        if not self.is_over and time.monotonic() >= self._ends_at_s:
            self.lose(LossReason.UNREACHABLE if self._unanswered else LossReason.EXPIRED)

    def _raise_if_lost(self) -> None:
        with _KEEPER.changing:
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
        self.changing = threading.Condition()
        self._leases: weakref.WeakSet[_Lease] = (
            weakref.WeakSet()
        )  # as in the original, a lock thrown away is not renewed
        self._runs = False
        self._wakes_at_s = 0.0

    def watch(self, lease: _Lease) -> None:
        """Looks at the lease from now on, if it has an end."""
        with self.changing:
            if lease.due_s == math.inf:
                return
            self._leases.add(lease)
            if not self._runs:
                threading.Thread(target=self._run, name="safe-lock-keeper", daemon=True).start()
                self._runs = True
            elif lease.due_s < self._wakes_at_s:
                self.changing.notify()

    def forget(self, lease: _Lease) -> None:
        with self.changing:
            self._leases.discard(lease)

    def look_again(self) -> None:
        """A lease has another end than before."""
        with self.changing:
            self.changing.notify()

    def _run(self) -> None:
        with self.changing:
            try:
                idle = False
                while self._leases or not idle:
                    idle = not self._leases
                    self._wakes_at_s = min(time.monotonic() + KEEPER_LINGERS_S, self._look())
                    self.changing.wait(max(0.0, self._wakes_at_s - time.monotonic()))
            finally:
                self._runs = False

    def _look(self) -> float:
        for lease in tuple(self._leases):
            lease.look()
            if lease.is_over:
                self._leases.discard(lease)
        return min((lease.due_s for lease in self._leases), default=math.inf)


class _Script:
    """One Lua file behind the limits and the prelude that Locker's scripts have too, sent by its hash."""

    def __init__(self, name: str) -> None:
        folder = resources.files("locks") / "scripts"
        limits = dataclasses.asdict(QueueLimits())
        constants = "".join(f"local {limit.upper()} = {value}\n" for limit, value in limits.items())
        parts = ("prelude.lua", f"sync_{name}.lua")
        self.source = constants + "\n".join((folder / part).read_text("utf-8") for part in parts)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


_ACQUIRE, _EXTEND, _RELEASE = _Script("acquire"), _Script("extend"), _Script("release")


class _Remote:
    """One lock's scripts on the wire. redis-py may send each of them again. All raise LockStoreDown."""

    def __init__(self, client: redis.Redis, name: str, signal_ms: int) -> None:
        keys = keys_of(name)
        released = f"lock-released:{{{name}}}"
        self._keys = (keys.lock, keys.queue, keys.waiters, keys.grant, keys.signal, released)
        self._client, self._signal, self._signal_ms = client, keys.signal, signal_ms

    def acquire(self, lease_id: str, expire_s: float | None, who: str, seen_fence: int) -> tuple[int | None, float]:
        """The fencing token, or None and the seconds that the holder has left (inf without expiry)."""
        granted_ms = UNEXPIRING_MS if expire_s is None else _ms(expire_s)
        lease_ms = "" if expire_s is None else granted_ms
        reply = self._run(_ACQUIRE, lease_id, lease_ms, granted_ms, who, seen_fence)
        if reply[0] is not None:
            return int(reply[0]), 0.0
        return None, math.inf if reply[1] < 0 else reply[1] / 1000

    def extend(self, lease_id: str, expire_s: float) -> str:
        """EXTENDED, UNEXPIRING, or a LossReason's value."""
        return _text(self._run(_EXTEND, lease_id, _ms(expire_s)))

    def release(self, lease_id: str) -> str:
        """RELEASED, or a LossReason's value."""
        return _text(self._run(_RELEASE, lease_id, secrets.token_urlsafe(9), self._signal_ms))

    def wait_for_signal(self, wait_s: float) -> None:
        """Returns when somebody has released the lock, after wait_s at the latest."""
        with _translated():
            self._client.blpop([self._signal], max(0.001, round(wait_s, 3)))  # 0 would wait for ever

    def _run(self, script: _Script, *arguments: str | int) -> Any:
        with _translated():
            try:
                return self._client.evalsha(script.sha, len(self._keys), *self._keys, *arguments)
            except redis.exceptions.NoScriptError:
                return self._client.eval(script.source, len(self._keys), *self._keys, *arguments)


_KEEPER = _Keeper()
_bounded_clients: weakref.WeakKeyDictionary[redis.ConnectionPool, redis.Redis] = weakref.WeakKeyDictionary()


def _bounded(given: redis.Redis) -> tuple[redis.Redis, float]:
    """The client itself where each of its commands ends soon, else one like it, and the socket timeout in seconds."""
    pool = getattr(given, "connection_pool", None)
    if pool is None:  # a Cluster's client: what it was given holds
        return given, SOCKET_TIMEOUT_S
    stated = pool.connection_kwargs
    socket_timeout_s = stated.get("socket_timeout") or SOCKET_TIMEOUT_S
    retry = stated.get("retry")
    if stated.get("socket_timeout") and (retry is None or 0 <= retry.get_retries() <= RETRIES):
        return given, socket_timeout_s
    bounded = _bounded_clients.get(pool)
    if bounded is None:
        limits = {
            "socket_timeout": socket_timeout_s,
            "socket_connect_timeout": stated.get("socket_connect_timeout") or socket_timeout_s,
            "retry": Retry(ConstantBackoff(RETRY_PAUSE_S), RETRIES),
            "max_connections": POOL_SIZE,
        }
        own_pool = redis.ConnectionPool(connection_class=pool.connection_class, **{**stated, **limits})
        bounded = _bounded_clients.setdefault(pool, redis.Redis(connection_pool=own_pool))
    return bounded, socket_timeout_s


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except redis.ResponseError as error:
        raise LockStoreRefused(f"Redis refuses: {error}") from error
    except redis.RedisError as error:
        raise LockStoreDown(str(error)) from error


def _started(work: Callable[[], None], name: str) -> bool:
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:  # the system has no thread to give, or the interpreter is on its way out
        return False
    return True


def _check_expire(expire_s: float) -> None:
    if not SHORTEST_EXPIRE_S <= expire_s <= LONGEST_EXPIRE_S:
        raise ValueError(f"expire is {SHORTEST_EXPIRE_S} to {LONGEST_EXPIRE_S} seconds, not {expire_s!r}")


def _new_id() -> str:
    return secrets.token_urlsafe(24)


def _ms(expire_s: float) -> int:
    return round(expire_s * 1000)


def _text(reply: bytes | str) -> str:
    return reply.decode() if isinstance(reply, bytes) else reply


os.register_at_fork(after_in_child=_KEEPER.begin_again)
