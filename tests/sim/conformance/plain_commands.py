"""Random commands as synchronous programs send them: python-redis-lock's, SafeLock's, and reads of contention."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, cast

import redis
import redis_lock

from locks.contention_store import INCIDENTS, INDEX, PREFIX, hot_key, list_key, picture_key, slot_key
from locks.sync_store import ANY_GRANT, SyncStore
from tests.sim.conformance.drawing import PROCESSES, Draw, words

Command = tuple[bytes, ...]
Build = Callable[[Draw], Command]
SOURCES: dict[bytes, bytes] = {
    hashlib.sha1(source, usedforsecurity=False).hexdigest().encode(): source
    for source in (
        redis_lock.UNLOCK_SCRIPT,
        redis_lock.EXTEND_SCRIPT,
        redis_lock.RESET_SCRIPT,
        redis_lock.RESET_ALL_SCRIPT,
    )
}
_UNLOCK, _EXTEND, _RESET, _RESET_ALL = SOURCES


class _Recorder:
    """Instead of a client: keeps the command that a SyncStore sends. With knows_scripts False, EVAL."""

    def __init__(self, *, knows_scripts: bool) -> None:
        self._knows_scripts = knows_scripts
        self.command: Command = ()

    def evalsha(self, *arguments: Any) -> list[int]:
        if not self._knows_scripts:
            raise redis.exceptions.NoScriptError
        self.command = words(("EVALSHA", *arguments))
        return [1]

    def eval(self, *arguments: Any) -> list[int]:
        self.command = words(("EVAL", *arguments))
        return [1]


def _store(draw: Draw, name: str) -> tuple[SyncStore, _Recorder]:
    recorder = _Recorder(knows_scripts=draw.rng.random() < 0.7)
    return SyncStore(cast(redis.Redis, recorder), name, 1000), recorder


def safe_acquire(draw: Draw) -> Command:
    name = draw.name()
    store, recorder = _store(draw, name)
    lease_id = draw.new_id() if draw.rng.random() < 0.8 else draw.some_id(name)
    expire_s = draw.rng.choice((0.1, 0.5, 2.0, 2.0, None))
    store.acquire(lease_id, expire_s, "\tinstance-2\thost\t18\t", draw.seen_fence(name))
    return recorder.command


def safe_extend(draw: Draw) -> Command:
    name = draw.held_name()
    store, recorder = _store(draw, name)
    grant = draw.grant(name)
    store.extend(grant.lease_id, draw.rng.choice((0.1, 2.0)), grant_fence=draw.rng.choice((ANY_GRANT, grant.fence)))
    return recorder.command


def safe_release(draw: Draw) -> Command:
    name = draw.held_name()
    store, recorder = _store(draw, name)
    grant = draw.grant(name)
    call_id = draw.rng.choice(("call-1", "call-2"))
    store.release(grant.lease_id, call_id, grant_fence=draw.rng.choice((ANY_GRANT, grant.fence)))
    return recorder.command


def take(draw: Draw) -> Command:
    expires = draw.rng.choice((("EX", 1), ("EX", 2), ("PX", 150), ()))
    return words(("SET", _lock(draw.name()), draw.new_id(), *expires, "NX"))


def wait(draw: Draw) -> Command:
    return words(("BLPOP", _signal(draw.name()), draw.rng.choice((0, 1, 2, 0.001, 0.05, 0.4))))


def unlock(draw: Draw) -> Command:
    name = draw.held_name()
    return words(("EVALSHA", _UNLOCK, 2, _lock(name), _signal(name), draw.some_id(name), 1000))


def prolong(draw: Draw) -> Command:
    name = draw.held_name()
    return words(("EVALSHA", _EXTEND, 2, _lock(name), _signal(name), draw.some_id(name), draw.rng.choice((1, 2))))


def reset(draw: Draw) -> Command:
    name = draw.name()
    return words(("EVALSHA", _RESET, 2, _lock(name), _signal(name), "id", 1000))


def reset_all(draw: Draw) -> Command:
    return words(("EVALSHA", _RESET_ALL, 0))


def look(draw: Draw) -> Command:
    return words((draw.rng.choice(("GET", "EXISTS", "PTTL", "TTL", "TYPE")), _lock(draw.name())))


def delete(draw: Draw) -> Command:
    name = draw.name()
    return words(("DEL", _lock(name), *draw.rng.choice(((), (_signal(name),), (f"lock-grant:{{{name}}}",)))))


def prolong_directly(draw: Draw) -> Command:
    command, most = draw.rng.choice((("PEXPIRE", 3000), ("EXPIRE", 3)))
    return words((command, _lock(draw.name()), draw.rng.randint(0, most)))


def persist(draw: Draw) -> Command:
    return words(("PERSIST", _lock(draw.name())))


def in_the_way(draw: Draw) -> Command:
    """Another kind of value where a lock, a grant or a signal should be."""
    name = draw.name()
    return draw.rng.choice(
        (
            words(("SET", _lock(name), "other")),
            words(("LPUSH", _lock(name), "x", "y")),
            words(("HSET", f"lock-grant:{{{name}}}", "field", 1)),
            words(("SET", _signal(name), "x", "PX", 300)),
            words(("ZADD", f"lock-waiters:{{{name}}}", "1.5", "x")),
            words(("SET", f"lock-queue:{{{name}}}", "x", "PX", 100)),
        )
    )


def tell(draw: Draw) -> Command:
    return words(("PUBLISH", channel_of(draw.rng.choice(PROCESSES)), f"look {draw.old_id()}"))


def read_contention(draw: Draw) -> Command:
    at_s = draw.now_us // 1_000_000
    since_ms = draw.now_us // 1000 - 3500
    token = draw.rng.choice(PROCESSES)
    return words(
        draw.rng.choice(
            (
                ("ZRANGEBYSCORE", INDEX, since_ms, "+inf", "WITHSCORES"),
                ("MGET", picture_key(token), list_key(token), INDEX),
                ("HGETALL", slot_key(at_s, 5)),
                ("ZREVRANGE", hot_key(at_s), 0, 9, "WITHSCORES"),
                ("LRANGE", INCIDENTS, 0, 4),
                ("TIME",),
            )
        )
    )


def write_contention(draw: Draw) -> Command:
    token = draw.rng.choice(PROCESSES)
    return words(
        draw.rng.choice(
            (
                ("LPUSH", INCIDENTS, '{"kind": "instance-left"}'),
                ("ZREM", INDEX, f"{token}\tinstance/{token}\thost\t17"),
                ("DEL", picture_key(token), list_key(token)),
                ("SET", f"{PREFIX}told", "text", "PX", 700),
            )
        )
    )


def other(draw: Draw) -> Command:
    return words(draw.rng.choice((("PING",), ("ROLE",), ("CLUSTER", "MYID"), ("SELECT", 0), ("CLIENT", "ID"))))


WEIGHTS: dict[Build, int] = {
    safe_acquire: 14,
    safe_extend: 6,
    safe_release: 8,
    take: 12,
    wait: 14,
    unlock: 8,
    prolong: 3,
    reset: 2,
    reset_all: 1,
    look: 5,
    delete: 3,
    prolong_directly: 2,
    persist: 1,
    in_the_way: 2,
    tell: 2,
    read_contention: 6,
    write_contention: 3,
    other: 1,
}


def drawn(draw: Draw) -> Command:
    """One of them."""
    return draw.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0](draw)


def channel_of(process: str) -> str:
    """The process' name on the server."""
    return f"lock-wake:{process}:0000"


def _lock(name: str) -> str:
    return f"lock:{{{name}}}"


def _signal(name: str) -> str:
    return f"lock-signal:{{{name}}}"
