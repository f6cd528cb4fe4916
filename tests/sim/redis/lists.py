"""Commands on lists; what waits for them is the model's."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tests.sim.redis.keyspace import Keyspace
from tests.sim.redis.resp import OK, Reply, integer


def lpush(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    key = command[1]
    items = keys.list(key)
    if items is None:
        items = keys.values[key] = deque()
    items.extendleft(command[2:])
    keys.pushed.append(key)
    keys.changed(key)
    return len(items)


def lrange(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    first, last = integer(command[2]), integer(command[3])
    items = keys.list(command[1]) or ()
    return list(items)[span(first, last, len(items))]


def ltrim(keys: Keyspace, command: Sequence[bytes]) -> Reply:
    key, first, last = command[1], integer(command[2]), integer(command[3])
    items = keys.list(key)
    if items is None:
        return OK
    kept = list(items)[span(first, last, len(items))]
    if kept:
        keys.values[key] = deque(kept)
        keys.changed(key)
    else:
        keys.remove(key, keys.why)
    return OK


def pop_first(keys: Keyspace, key: bytes) -> bytes | None:
    """The first item, taken out, of which nobody is told; None where there is no such list."""
    items = keys.list(key)
    if items is None:
        return None
    first = items.popleft()
    if not items:
        del keys.values[key]
        keys.ends_ms.pop(key, None)
    return first


def span(first: int, last: int, count: int) -> slice:
    """From the place `first` to the place `last`, both included; negative ones count from the end."""
    first = max(first + count, 0) if first < 0 else first
    last = last + count if last < 0 else last
    return slice(first, max(last + 1, 0))
