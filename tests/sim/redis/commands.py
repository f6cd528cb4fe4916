"""The commands on keys by their names, and what kind each is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.sim.redis import hashes, lists, sorted_sets, strings
from tests.sim.redis.keyspace import Keyspace
from tests.sim.redis.resp import Reply

Command = Callable[[Keyspace, Sequence[bytes]], Reply]

READS: dict[bytes, Command] = {
    b"GET": strings.get,
    b"MGET": strings.mget,
    b"EXISTS": strings.exists,
    b"PTTL": strings.pttl,
    b"TTL": strings.ttl,
    b"KEYS": strings.keys_,
    b"TYPE": strings.type_,
    b"HGET": hashes.hget,
    b"HGETALL": hashes.hgetall,
    b"LRANGE": lists.lrange,
    b"ZRANK": sorted_sets.zrank,
    b"ZRANGE": sorted_sets.zrange,
    b"ZREVRANGE": sorted_sets.zrevrange,
    b"ZRANGEBYSCORE": sorted_sets.zrangebyscore,
}
# What takes memory, and so is refused where there is none left.
_GROWS: dict[bytes, Command] = {
    b"SET": strings.set_,
    b"HSET": hashes.hset,
    b"HINCRBY": hashes.hincrby,
    b"LPUSH": lists.lpush,
    b"ZADD": sorted_sets.zadd,
    b"ZINCRBY": sorted_sets.zincrby,
}
_SHRINKS: dict[bytes, Command] = {
    b"DEL": strings.delete,
    b"PEXPIRE": strings.pexpire,
    b"EXPIRE": strings.expire,
    b"PERSIST": strings.persist,
    b"HDEL": hashes.hdel,
    b"LTRIM": lists.ltrim,
    b"ZREM": sorted_sets.zrem,
    b"ZREMRANGEBYRANK": sorted_sets.zremrangebyrank,
}
COMMANDS: dict[bytes, Command] = {b"TIME": strings.time, **READS, **_GROWS, **_SHRINKS}
GROWS = frozenset(_GROWS)
WRITES = frozenset((*_GROWS, *_SHRINKS, b"BLPOP"))


def keys_read(command: Sequence[bytes]) -> Sequence[bytes]:
    """The keys of a command that reads: who wants to hear of changes hears of these."""
    name = command[0].upper()
    if name not in READS or name == b"KEYS":
        return ()
    return command[1:] if name in (b"MGET", b"EXISTS") else command[1:2]
