"""Commands on hashes."""

from __future__ import annotations

from collections.abc import Sequence

from tests.sim.redis.keyspace import Keyspace
from tests.sim.redis.resp import ErrorReply, Reply, integer


def hget(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    fields = keys.hash(command[1])
    return None if fields is None else fields.get(command[2])


def hgetall(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    """In the order of entry; a real server has no order once the hash is large."""
    fields = keys.hash(command[1]) or {}
    return [each for pair in fields.items() for each in pair]


def hset(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    fields = _of(keys, command[1])
    before = len(fields)
    for at in range(2, len(command), 2):
        fields[command[at]] = command[at + 1]
    keys.changed(command[1])
    return len(fields) - before


def hdel(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    fields = keys.hash(command[1])
    if fields is None:
        return 0
    count = 0
    for field in command[2:]:
        if fields.pop(field, None) is not None:
            count += 1
    if not fields:
        keys.remove(command[1], keys.why)
    elif count:
        keys.changed(command[1])
    return count


def hincrby(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    by, fields = integer(command[3]), _of(keys, command[1])
    try:
        value = int(fields.get(command[2], b"0")) + by
    except ValueError:
        raise ErrorReply("ERR hash value is not an integer") from None
    fields[command[2]] = b"%d" % value
    keys.changed(command[1])
    return value


def _of(keys: Keyspace, key: bytes) -> dict[bytes, bytes]:
    fields = keys.hash(key)
    if fields is None:
        fields = keys.values[key] = {}
    return fields
