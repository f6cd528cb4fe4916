"""One lock's scripts on redis-py's synchronous client, within stated limits, with its errors as ours."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import sys
import weakref
from collections.abc import Iterator
from importlib import resources
from typing import Any

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from locks.errors import LockStoreDown, LockStoreRefused
from locks.keys import keys_of
from locks.store import QueueLimits

SHORTEST_EXPIRE_S, LONGEST_EXPIRE_S = 0.1, 3600
SOCKET_TIMEOUT_S, RETRIES, RETRY_PAUSE_S, POOL_SIZE = 2.0, 1, 0.05, 1024
# For how long the fencing token of a lock without expiry is known.
UNEXPIRING_MS = LONGEST_EXPIRE_S * 1000
ANY_GRANT = 0  # instead of a token: whatever was granted under the id
RELEASED, EXTENDED, UNEXPIRING = "released", "extended", "unexpiring"


class SyncStore:
    """One lock's scripts on the wire. redis-py may send each of them again. All raise LockStoreDown."""

    def __init__(self, client: redis.Redis, name: str, signal_ms: int) -> None:
        keys = keys_of(name)
        released = f"lock-released:{{{name}}}"
        self._keys = (keys.lock, keys.queue, keys.waiters, keys.grant, keys.signal, released)
        self.client, self._signal, self._signal_ms = client, keys.signal, signal_ms

    def acquire(self, lease_id: str, expire_s: float | None, who: str, seen_fence: int) -> tuple[int | None, float]:
        """The fencing token, or None and the seconds that the holder has left (inf without expiry)."""
        granted_ms = UNEXPIRING_MS if expire_s is None else _ms(expire_s)
        lease_ms = "" if expire_s is None else granted_ms
        reply = self._run(_ACQUIRE, lease_id, lease_ms, granted_ms, who, seen_fence)
        if reply[0] is not None:
            return int(reply[0]), 0.0
        return None, math.inf if reply[1] < 0 else reply[1] / 1000

    def extend(self, lease_id: str, expire_s: float, *, grant_fence: int) -> str:
        """EXTENDED, UNEXPIRING, or a LossReason's value. grant_fence: 0 for whatever was granted under the id."""
        return _text(self._run(_EXTEND, lease_id, _ms(expire_s), grant_fence))

    def release(self, lease_id: str, call_id: str, *, grant_fence: int) -> str:
        """RELEASED, also where an earlier call of this id has done it, or a LossReason's value; as extend()."""
        return _text(self._run(_RELEASE, lease_id, call_id, self._signal_ms, grant_fence))

    def wait_for_signal(self, wait_s: float) -> None:
        """Returns when somebody has released the lock, after wait_s at the latest."""
        with translated():
            self.client.blpop([self._signal], max(0.001, round(wait_s, 3)))  # 0 would wait for ever

    def _run(self, script: _Script, *arguments: str | int) -> Any:
        with translated():
            try:
                return self.client.evalsha(script.sha, len(self._keys), *self._keys, *arguments)
            except redis.exceptions.NoScriptError:
                return self.client.eval(script.source, len(self._keys), *self._keys, *arguments)


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
_bounded_clients: weakref.WeakKeyDictionary[redis.ConnectionPool, redis.Redis] = weakref.WeakKeyDictionary()


def bounded(given: redis.Redis) -> tuple[redis.Redis, float]:
    """The client itself where each of its commands ends soon, else one like it, and the socket timeout in seconds."""
    pool = getattr(given, "connection_pool", None)
    if pool is None:  # a Cluster's client: what it was given holds
        return given, SOCKET_TIMEOUT_S
    stated = pool.connection_kwargs
    socket_timeout_s = stated.get("socket_timeout") or SOCKET_TIMEOUT_S
    retry = stated.get("retry")
    if stated.get("socket_timeout") and (retry is None or 0 <= retry.get_retries() <= RETRIES):
        return given, socket_timeout_s
    own = _bounded_clients.get(pool)
    if own is None:
        limits = {
            "socket_timeout": socket_timeout_s,
            "socket_connect_timeout": stated.get("socket_connect_timeout") or socket_timeout_s,
            "retry": Retry(ConstantBackoff(RETRY_PAUSE_S), RETRIES),
            "max_connections": POOL_SIZE,
        }
        own_pool = redis.ConnectionPool(connection_class=pool.connection_class, **{**stated, **limits})
        own = _bounded_clients.setdefault(pool, redis.Redis(connection_pool=own_pool))
    return own, socket_timeout_s


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """What redis-py raises becomes LockStoreRefused or LockStoreDown; also that it imports what it needs to connect."""
    try:
        yield
    except redis.ResponseError as error:
        raise LockStoreRefused(f"Redis refuses: {error}") from error
    except redis.RedisError as error:
        raise LockStoreDown(str(error)) from error
    except ImportError as error:
        if not sys.is_finalizing():
            raise
        raise LockStoreDown("the interpreter ends, and nothing connects any more") from error


def check_expire(expire_s: float) -> None:
    """Raises ValueError for a lease that is too short or too long."""
    if not SHORTEST_EXPIRE_S <= expire_s <= LONGEST_EXPIRE_S:
        raise ValueError(f"expire is {SHORTEST_EXPIRE_S} to {LONGEST_EXPIRE_S} seconds, not {expire_s!r}")


def _ms(expire_s: float) -> int:
    return round(expire_s * 1000)


def _text(reply: bytes | str) -> str:
    return reply.decode() if isinstance(reply, bytes) else reply
