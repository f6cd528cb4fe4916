"""The scripts on the wire: each method is one command, idempotent for its own lease id."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any

import hiredis

from locks.errors import LockStoreDown, LockStoreRefused
from locks.keys import LockKeys
from locks.link import Argument, Link

KEY_COUNT = 4
# How long the fence outlives its lease: a server clock that is set back may repeat a fencing token only after that.
KEEP_MS = 10_000


@dataclass(frozen=True, slots=True)
class Granted:
    """The lock is ours. `fencing_token` is larger than any before it on this name."""

    fencing_token: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Another holds the lock for `expires_in_s` (None: no expiry); `place` waiters stand before us (-1: not queued)."""

    expires_in_s: float | None
    place: int


class ReleaseOutcome(StrEnum):
    """What became of a lock that was given back."""

    HANDED_OVER = "handed-over"
    FREED = "freed"
    NOT_OURS = "not-ours"


class ExtendOutcome(StrEnum):
    """What became of a lease that was to be extended; the values are the script's words."""

    EXTENDED = "extended"
    TAKEN = "taken"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Times of the queue, milliseconds."""

    alive_ms: int = 1000  # a waiter that shows no sign of life for so long is dropped
    claim_ms: int = 1000  # the lease of a handoff, until its waiter has confirmed it
    grace_ms: int = 300  # how long a freed lock waits for the head of the queue before anybody may take it
    handoffs: int = 8  # so many in a row, then python-redis-lock's waiters get a turn


class _Script:
    """One Lua file behind the shared prelude, sent by its hash."""

    def __init__(self, name: str) -> None:
        folder = resources.files("locks") / "scripts"
        self.source = "\n".join((folder / part).read_text("utf-8") for part in ("prelude.lua", f"{name}.lua"))
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


ACQUIRE, RELEASE, EXTEND = _Script("acquire"), _Script("release"), _Script("extend")
GREETING: tuple[tuple[Argument, ...], ...] = tuple(
    ("SCRIPT", "LOAD", script.source) for script in (ACQUIRE, RELEASE, EXTEND)
)


class LockStore:
    """Acquire, release and extend on one Redis, through one link."""

    def __init__(self, link: Link, *, channel: str, limits: QueueLimits) -> None:
        self._link = link
        self._channel = channel
        self._limits = limits

    async def acquire(self, keys: LockKeys, lease_id: str, *, lease_ms: int) -> Granted | Refused:
        """Takes the lock if it is free now; never queues. Raises LockStoreDown."""
        return await self._acquire(keys, lease_id, lease_ms, 0)

    async def acquire_or_queue(self, keys: LockKeys, lease_id: str, *, lease_ms: int) -> Granted | Refused:
        """Takes the lock, or takes a place in its queue; repeated, a sign of life. Raises LockStoreDown."""
        return await self._acquire(keys, lease_id, lease_ms, 1)

    async def release(self, keys: LockKeys, lease_id: str) -> ReleaseOutcome:
        """Gives the lock, or the place in its queue, back; sent before the first await. Raises LockStoreDown."""
        reply = await self._run(RELEASE, self._release_tail(keys, lease_id))
        return (ReleaseOutcome.NOT_OURS, ReleaseOutcome.FREED, ReleaseOutcome.HANDED_OVER)[reply]

    def give_back(self, keys: LockKeys, lease_id: str) -> None:
        """A release that nobody waits for. When Redis is away, the lease's own end does it."""
        with contextlib.suppress(LockStoreDown):
            tail = self._release_tail(keys, lease_id)
            reply = self._link.call("EVALSHA", RELEASE.sha, *tail)
            reply.add_done_callback(lambda reply: self._hear(reply, tail))

    def _hear(self, reply: asyncio.Future[Any], tail: tuple[Argument, ...]) -> None:
        if reply.cancelled() or reply.exception() is not None:
            return
        if _script_is_unknown(reply.result()):
            with contextlib.suppress(LockStoreDown):
                self._link.call("EVAL", RELEASE.source, *tail).add_done_callback(_hear_and_forget)

    async def extend(self, keys: LockKeys, lease_id: str, *, lease_ms: int) -> ExtendOutcome:
        """Gives a lease that is still ours its time again. Raises LockStoreDown."""
        reply = await self._run(EXTEND, _tail(keys, lease_id, lease_ms, KEEP_MS))
        return ExtendOutcome(reply.decode())

    async def _acquire(self, keys: LockKeys, lease_id: str, lease_ms: int, enqueue: int) -> Granted | Refused:
        limits = self._limits
        tail = _tail(keys, lease_id, lease_ms, enqueue, limits.alive_ms, self._channel, limits.grace_ms, KEEP_MS)
        reply = await self._run(ACQUIRE, tail)
        if reply[0] is not None:
            return Granted(int(reply[0]))
        return Refused(None if reply[1] == -1 else max(0, reply[1]) / 1000, reply[2])

    def _release_tail(self, keys: LockKeys, lease_id: str) -> tuple[Argument, ...]:
        limits = self._limits
        return _tail(keys, lease_id, limits.claim_ms, limits.handoffs, limits.grace_ms)

    async def _run(self, script: _Script, tail: tuple[Argument, ...]) -> Any:
        reply = await self._link.call("EVALSHA", script.sha, *tail)
        if isinstance(reply, hiredis.ReplyError):
            if not _script_is_unknown(reply):
                raise LockStoreRefused(f"Redis refuses: {reply}")
            reply = await self._link.call("EVAL", script.source, *tail)
            if isinstance(reply, hiredis.ReplyError):
                raise LockStoreRefused(f"Redis refuses: {reply}")
        return reply


def _tail(keys: LockKeys, *arguments: Argument) -> tuple[Argument, ...]:
    return (KEY_COUNT, keys.lock, keys.queue, keys.meta, keys.signal, *arguments)


def _script_is_unknown(reply: Any) -> bool:
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")


def _hear_and_forget(reply: asyncio.Future[Any]) -> None:
    if not reply.cancelled():
        reply.exception()
