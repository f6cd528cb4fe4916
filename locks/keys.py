"""Every key's name. The hash tag puts all keys of one lock into one Cluster slot."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_NAME_LENGTH = 200
_NAME = re.compile(rf"[A-Za-z0-9:_./-]{{1,{MAX_NAME_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class LockKeys:
    """The keys of one lock. `lock` and `signal` are python-redis-lock's: Lock(client, "{NAME}") is the same lock."""

    lock: str
    queue: str
    meta: str
    signal: str


def keys_of(name: str) -> LockKeys:
    """The keys of the lock `name`. Raises ValueError for a name outside 1 to 200 of A-Z a-z 0-9 : _ . / -"""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"a lock's name is 1 to {MAX_NAME_LENGTH} of A-Z a-z 0-9 : _ . / - , not {name[:50]!r}")
    return LockKeys(f"lock:{{{name}}}", f"lock-queue:{{{name}}}", f"lock-meta:{{{name}}}", f"lock-signal:{{{name}}}")


def resource_of(name: str) -> str:
    """The part before the first colon: what a metric may carry as a label, where a whole name may not."""
    return name.partition(":")[0]
