"""Commands on strings, and on keys of any kind."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tests.sim.redis.keyspace import Keyspace
from tests.sim.redis.resp import OK, ErrorReply, Reply, Status, integer
from tests.sim.redis.sorted_set import SortedSet

_TYPES: dict[type, str] = {bytes: "string", dict: "hash", deque: "list", SortedSet: "zset"}


def get(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    return keys.string(command[1])


def set_(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    """With NX, XX, GET, EX and PX."""
    key, value = command[1], command[2]
    wanted: bool | None = None
    tells_old, end_ms = False, None
    at, count = 3, len(command)
    while at < count:
        word = command[at].upper()
        if word == b"PX" or word == b"EX":
            at += 1
            end_ms = keys.now_ms + _duration_ms(command[at], 1000 if word == b"EX" else 1)
        elif word == b"NX":
            wanted = False
        elif word == b"GET":
            tells_old = True
        elif word == b"XX":
            wanted = True
        else:
            raise ErrorReply("ERR syntax error")
        at += 1
    old = keys.string(key) if tells_old else keys.get(key)
    if wanted is not None and wanted is (old is None):
        return old if tells_old else None
    keys.put(key, value, end_ms)
    return old if tells_old else OK


def _duration_ms(text: bytes, unit_ms: int) -> int:
    duration = integer(text)
    if duration <= 0:
        raise ErrorReply("ERR invalid expire time in 'set' command")
    return duration * unit_ms


def mget(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    values = [keys.get(key) for key in command[1:]]
    return [value if value.__class__ is bytes else None for value in values]


def exists(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    count = 0
    for key in command[1:]:
        if keys.get(key) is not None:
            count += 1
    return count


def delete(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    count = 0
    for key in command[1:]:
        if keys.get(key) is not None:
            keys.remove(key, keys.why)
            count += 1
    return count


def pexpire(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    return _expire(keys, command[1], integer(command[2]))


def expire(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    return _expire(keys, command[1], integer(command[2]) * 1000)


def _expire(keys: Keyspace, key: bytes, duration_ms: int) -> int:
    if keys.get(key) is None:
        return 0
    if duration_ms <= 0:
        keys.remove(key, keys.why)
    else:
        keys.ends_ms[key] = keys.now_ms + duration_ms
        keys.changed(key)
    return 1


def persist(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    key = command[1]
    if keys.get(key) is None or keys.ends_ms.pop(key, None) is None:
        return 0
    keys.changed(key)
    return 1


def pttl(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    key = command[1]
    if keys.get(key) is None:
        return -2
    end_ms = keys.ends_ms.get(key)
    return -1 if end_ms is None else end_ms - keys.now_ms


def ttl(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    left_ms = pttl(keys, command)
    return left_ms if left_ms < 0 else (left_ms + 500) // 1000


def keys_(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    """For patterns that end with a star and have no other magic; removes nothing. Real servers have another order."""
    prefix, star = command[1][:-1], command[1][-1:]
    if star != b"*" or any(magic in prefix for magic in (b"*", b"?", b"[", b"\\")):
        raise NotImplementedError(f"KEYS {command[1]!r}")
    ends_ms, now_ms = keys.ends_ms, keys.now_ms
    return [key for key in keys.values if key.startswith(prefix) and now_ms <= ends_ms.get(key, now_ms)]


def type_(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    value = keys.get(command[1])
    return Status("none" if value is None else _TYPES[value.__class__])


def time(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    return [b"%d" % (keys.now_us // 1_000_000), b"%d" % (keys.now_us % 1_000_000)]
