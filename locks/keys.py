"""Every key's name. The hash tag puts all keys of one lock into one Cluster slot."""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_NAME_LENGTH = 200
KEY_COUNT = 5
SLOT_COUNT = 16384
_is_name = re.compile(rf"[A-Za-z0-9:_./-]{{1,{MAX_NAME_LENGTH}}}").fullmatch


@dataclass(frozen=True, slots=True)
class LockKeys:
    """The keys of one lock. `lock` and `signal` are python-redis-lock's: Lock(client, "{NAME}") is the same lock."""

    lock: str  # the holder's lease id
    queue: str  # sorted set: a process that waits -> when its first waiter came, microseconds of the server's clock
    waiters: str  # hash: a process that waits -> what it wants and until when it counts as alive; and the queue's state
    grant: str  # the last grant: fencing token, lease, since when, to whom
    signal: str  # list that wakes python-redis-lock's waiters


def keys_of(name: str) -> LockKeys:
    """The keys of the lock `name`. Raises ValueError for a name outside 1 to 200 of A-Z a-z 0-9 : _ . / -"""
    check_name(name)
    return LockKeys(
        f"lock:{{{name}}}",
        f"lock-queue:{{{name}}}",
        f"lock-waiters:{{{name}}}",
        f"lock-grant:{{{name}}}",
        f"lock-signal:{{{name}}}",
    )


def packed_keys(name: str) -> str:
    """The same five keys in this order as Redis' protocol wants them. Raises ValueError."""
    check_name(name)
    n = len(name)
    return (
        f"${n + 7}\r\nlock:{{{name}}}\r\n${n + 13}\r\nlock-queue:{{{name}}}\r\n${n + 15}\r\nlock-waiters:{{{name}}}\r\n"
        f"${n + 13}\r\nlock-grant:{{{name}}}\r\n${n + 14}\r\nlock-signal:{{{name}}}\r\n"
    )


def packed_asked_key(name: str, lease_id: str) -> str:
    """The key that remembers a lease id which a client has chosen, of 32 characters."""
    return f"${len(name) + 46}\r\nlock-asked:{{{name}}}:{lease_id}\r\n"


def packed_acquire_keys(name: str) -> tuple[str, str]:
    """Lock and queue together, and the grant."""
    n = len(name)
    return (
        f"${n + 7}\r\nlock:{{{name}}}\r\n${n + 13}\r\nlock-queue:{{{name}}}\r\n",
        f"${n + 13}\r\nlock-grant:{{{name}}}\r\n",
    )


def packed_lock_keys(names: Sequence[str]) -> str:
    """The lock of each."""
    return "".join([f"${len(name) + 7}\r\nlock:{{{name}}}\r\n" for name in names])


def packed_signal_keys(names: Sequence[str]) -> str:
    """The signal of each."""
    return "".join([f"${len(name) + 14}\r\nlock-signal:{{{name}}}\r\n" for name in names])


def packed_queue_keys(names: Sequence[str]) -> str:
    """The queue of each."""
    return "".join([f"${len(name) + 13}\r\nlock-queue:{{{name}}}\r\n" for name in names])


def check_name(name: str) -> None:
    """Raises ValueError, which says what a name is made of."""
    if _is_name(name) is None:
        raise ValueError(f"a lock's name is 1 to {MAX_NAME_LENGTH} of A-Z a-z 0-9 : _ . / - , not {name[:50]!r}")


def name_of_lock_key(key: bytes) -> str:
    """The lock's name from `lock:{NAME}`."""
    return key[6:-1].decode()


def slot_of(name: str) -> int:
    """The Cluster slot of all keys of this lock: CRC16 of the hash tag."""
    return binascii.crc_hqx(name.encode(), 0) % SLOT_COUNT


def resource_of(name: str) -> str:
    """The part before the first colon: what a metric may carry as a label, where a whole name may not."""
    return name.partition(":")[0]
