"""The keys with their values and ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tests.sim.redis.dialects import Dialect
from tests.sim.redis.resp import WRONG_TYPE, ErrorReply
from tests.sim.redis.sorted_set import SortedSet

Value = bytes | dict[bytes, bytes] | deque[bytes] | SortedSet
OnLock = Callable[[bytes, bytes | None, bytes | None, str], None]
OnQueue = Callable[[bytes, bool], None]
_LOCK, _QUEUE = b"lock:{", b"lock-queue:{"


@dataclass(frozen=True, slots=True)
class Data:
    """All that a server has in its keys at some moment; nobody changes it."""

    values: dict[bytes, Value]
    ends_ms: dict[bytes, int]


class Keyspace:
    """Keys, seen at the moment `now_us`. A key whose end has passed goes when it is touched, or by expire_all()."""

    __slots__ = (
        "changed",
        "dialect",
        "ends_ms",
        "keeps_expired",
        "now_ms",
        "now_us",
        "on_lock",
        "on_queue",
        "over",
        "pushed",
        "values",
        "why",
    )

    def __init__(self, dialect: Dialect, changed: Callable[[bytes], None]) -> None:
        self.dialect = dialect
        self.values: dict[bytes, Value] = {}
        self.ends_ms: dict[bytes, int] = {}
        self.now_us = self.now_ms = 0
        self.changed = changed  # who watches the key is told
        self.on_lock: OnLock = lambda key, old, new, why: None
        self.on_queue: OnQueue = lambda key, there: None
        self.why = ""  # what changes locks just now, for on_lock
        self.pushed: list[bytes] = []  # lists that have got something
        self.over = 0  # how many keys have gone because their end had passed
        self.keeps_expired = False  # a replica removes nothing by itself

    def at(self, now_us: int) -> None:
        """From now on it is this moment, which may be before the last one."""
        self.now_us = now_us
        self.now_ms = now_us // 1000

    def get(self, key: bytes) -> Value | None:
        """The value, None where there is none any more."""
        end_ms = self.ends_ms.get(key)
        if end_ms is not None and self.now_ms > end_ms:
            if not self.keeps_expired:
                self.remove(key, "expired")
            return None
        return self.values.get(key)

    def string(self, key: bytes) -> bytes | None:
        """A string. Raises ErrorReply where the value is something else, as the next ones do."""
        value = self.get(key)
        if value is None or value.__class__ is bytes:
            return value
        raise ErrorReply(WRONG_TYPE)

    def hash(self, key: bytes) -> dict[bytes, bytes] | None:
        """A hash's fields."""
        value = self.get(key)
        if value is None or value.__class__ is dict:
            return value
        raise ErrorReply(WRONG_TYPE)

    def list(self, key: bytes) -> deque[bytes] | None:
        """A list."""
        value = self.get(key)
        if value is None or value.__class__ is deque:
            return value
        raise ErrorReply(WRONG_TYPE)

    def sorted_set(self, key: bytes) -> SortedSet | None:
        """A sorted set."""
        value = self.get(key)
        if value is None or value.__class__ is SortedSet:
            return value
        raise ErrorReply(WRONG_TYPE)

    def put(self, key: bytes, value: bytes, end_ms: int | None) -> None:
        """A string in place of whatever was there."""
        if key.startswith(_LOCK):
            self.on_lock(key, _holder(self.values.get(key)), value, self.why)
        self.values[key] = value
        if end_ms is not None:
            self.ends_ms[key] = end_ms
        else:
            self.ends_ms.pop(key, None)
        self.changed(key)

    def put_sorted_set(self, key: bytes) -> SortedSet:
        """An empty sorted set where nothing was."""
        if key.startswith(_QUEUE):
            self.on_queue(key, True)
        found = self.values[key] = SortedSet()
        return found

    def remove(self, key: bytes, why: str) -> None:
        """The key, which is there, goes."""
        self.over += why == "expired"
        if key.startswith(_LOCK):
            self.on_lock(key, _holder(self.values[key]), None, why)
        elif key.startswith(_QUEUE):
            self.on_queue(key, False)
        del self.values[key]
        self.ends_ms.pop(key, None)
        self.changed(key)

    def expire_all(self) -> None:
        """Removes all whose end has passed."""
        if self.keeps_expired:
            return
        now_ms = self.now_ms
        for key in [key for key, end_ms in self.ends_ms.items() if now_ms > end_ms]:
            self.remove(key, "expired")

    def snapshot(self) -> Data:
        """All of it, as it is now."""
        return Data(_copied(self.values), self.ends_ms.copy())

    def replace(self, data: Data, why: str) -> None:
        """From now on it has this, and nothing else."""
        before, self.values = self.values, _copied(data.values)
        self.ends_ms = data.ends_ms.copy()
        for key in sorted(before.keys() | self.values.keys()):
            if key.startswith(_LOCK):
                old, new = _holder(before.get(key)), _holder(self.values.get(key))
                if old != new:
                    self.on_lock(key, old, new, why)
            elif key.startswith(_QUEUE):
                self.on_queue(key, key in self.values)


def _copied(values: dict[bytes, Value]) -> dict[bytes, Value]:
    return {key: value if isinstance(value, bytes) else value.copy() for key, value in values.items()}


def _holder(value: Value | None) -> bytes | None:
    return value if isinstance(value, bytes) else None
