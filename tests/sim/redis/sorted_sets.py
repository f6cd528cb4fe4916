"""Commands on sorted sets."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from tests.sim.redis.keyspace import Keyspace
from tests.sim.redis.lists import span
from tests.sim.redis.resp import ErrorReply, Reply, integer, number
from tests.sim.redis.sorted_set import SortedSet

_PART_NEEDS_FLOATS = "ERR min or max is not a float"


def zadd(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    scores = [number(text) for text in command[2::2]]
    found = _of(keys, command[1])
    added = changed = 0
    for member, score in zip(command[3::2], scores, strict=True):
        old = found.scores.get(member)
        if old != score:
            added += old is None
            changed += 1
            found.put(member, score)
    if changed:
        keys.changed(command[1])
    return added


def zincrby(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    by, member = number(command[2]), command[3]
    found = _of(keys, command[1])
    score = found.scores.get(member, 0.0) + by
    found.put(member, score)
    keys.changed(command[1])
    return keys.dialect.text_of(score)


def zrem(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    found = keys.sorted_set(command[1])
    if found is None:
        return 0
    count = sum([found.remove(member) for member in command[2:]])
    _changed(keys, command[1], found, count)
    return count


def zremrangebyrank(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    first, last = integer(command[2]), integer(command[3])
    found = keys.sorted_set(command[1])
    if found is None:
        return 0
    gone = found.order[span(first, last, len(found.order))]
    for _, member in gone:
        found.remove(member)
    _changed(keys, command[1], found, len(gone))
    return len(gone)


def zrank(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    found = keys.sorted_set(command[1])
    return None if found is None else found.rank(command[2])


def zrange(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    first, last = integer(command[2]), integer(command[3])
    found = keys.sorted_set(command[1])
    if found is None:
        return []
    return _told(keys, found.order[span(first, last, len(found.order))], command[4:])


def zrevrange(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    first, last = integer(command[2]), integer(command[3])
    found = keys.sorted_set(command[1])
    if found is None:
        return []
    return _told(keys, found.order[::-1][span(first, last, len(found.order))], command[4:])


def zrangebyscore(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    low, beyond_low = _edge(command[2])
    high, short_of_high = _edge(command[3])
    found = keys.sorted_set(command[1])
    if found is None:
        return []
    first: Callable[..., int] = bisect_right if beyond_low else bisect_left
    last: Callable[..., int] = bisect_left if short_of_high else bisect_right
    scores = [score for score, _ in found.order]
    return _told(keys, found.order[first(scores, low) : last(scores, high)], command[4:])


def _edge(text: bytes) -> tuple[float, bool]:
    try:
        return (float(text[1:]), True) if text[:1] == b"(" else (float(text), False)
    except ValueError:
        raise ErrorReply(_PART_NEEDS_FLOATS) from None


def _told(keys: Keyspace, part: Sequence[tuple[float, bytes]], options: Sequence[bytes]) -> Reply:
    if not options:
        return [member for _, member in part]
    if len(options) > 1 or options[0].upper() != b"WITHSCORES":
        raise NotImplementedError(options)
    text_of = keys.dialect.text_of
    return [each for score, member in part for each in (member, text_of(score))]


def _changed(keys: Keyspace, key: bytes, found: SortedSet, count: int) -> None:
    if not found.order:
        keys.remove(key, keys.why)
    elif count:
        keys.changed(key)


def _of(keys: Keyspace, key: bytes) -> SortedSet:
    return keys.sorted_set(key) or keys.put_sorted_set(key)
