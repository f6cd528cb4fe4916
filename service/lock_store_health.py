"""What is known of the lock store, from a lock that is taken and given back in it; told in one line when it changes."""

from __future__ import annotations

import contextlib
import time

import structlog

from locks import Locker, LockStoreDown

log = structlog.get_logger()

# What requests were refused with is told at most so often: an outage has thousands of them.
TELL_AGAIN_S = 10.0


class LockStoreHealth:
    """Whether locks can be had. For one event loop."""

    def __init__(self, locker: Locker) -> None:
        self._trial = locker.trial
        self._is_up: bool | None = None
        self._policy: str | None = None
        self._refused_count = 0
        self._tell_at_s = 0.0

    @property
    def is_up(self) -> bool:
        """As of the last look, or of a connection that was lost since."""
        return bool(self._is_up)

    async def look(self) -> None:
        """Takes a lock and gives it back."""
        try:
            await self._trial.take_and_give_back()
        except LockStoreDown as error:
            self.lost(str(error))
        else:
            if not self._is_up:
                self._is_up = True
                log.info("lock store up")
                await self._warn_of_eviction()

    def lost(self, reason: str) -> None:
        """A connection was lost, or the store refuses."""
        if self._is_up is not False:
            log.error("lock store lost", reason=reason)
        self._is_up = False

    def failed(self, error: LockStoreDown) -> None:
        """A request has failed with it; what the server said is for the log, and not for the client."""
        self._refused_count += 1
        now_s = time.monotonic()
        if now_s >= self._tell_at_s:
            log.warning("lock store failed requests", count=self._refused_count, reason=_first_reason(error))
            self._refused_count, self._tell_at_s = 0, now_s + TELL_AGAIN_S

    async def _warn_of_eviction(self) -> None:
        policy = None
        with contextlib.suppress(LockStoreDown):
            policy = await self._trial.evicting_policy()
        if policy is not None and policy != self._policy:
            log.warning("lock store may evict locks that are held", maxmemory_policy=policy, wanted="noeviction")
        self._policy = policy


def _first_reason(error: BaseException) -> str:
    """What the lock store has said, where an outage's rule has refused in words of its own since."""
    while isinstance(error.__context__, LockStoreDown):
        error = error.__context__
    return str(error)
