"""Who waits in this process, and what wakes them: the handoff's message, a timer, and the regular sign of life."""

from __future__ import annotations

import asyncio
import time

from locks.events import WakeSource


class Waiter:
    """One caller in the queue of one lock."""

    __slots__ = ("_future", "_loop", "granted_fence", "woken")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] | None = None
        self.granted_fence: int | None = None
        self.woken = False

    async def wait(self, pause_s: float, source: WakeSource) -> WakeSource:
        """Waits for a message, at most `pause_s`; says what came first, `source` standing for the pause's end."""
        if not self.woken and pause_s > 0:
            self._future = self._loop.create_future()
            timer = self._loop.call_later(pause_s, self._stop_waiting)
            try:
                await self._future
            finally:
                timer.cancel()
                self._future = None
        if self.granted_fence is not None:
            return WakeSource.HANDOFF
        if self.woken:
            self.woken = False
            return WakeSource.MESSAGE
        return source

    def wake(self, granted_fence: int | None) -> None:
        """A message has come: granted, or look again."""
        if granted_fence is not None:
            self.granted_fence = granted_fence
        self.woken = True
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class Waiters:
    """The waiters of this process by their lease ids."""

    def __init__(self, *, max_waiters: int) -> None:
        self.max_waiters = max_waiters
        self._by_id: dict[str, Waiter] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def full(self) -> bool:
        """Whether one more would be one too many."""
        return len(self._by_id) >= self.max_waiters

    def join(self, lease_id: str) -> Waiter:
        """A new waiter, who hears of messages from now on."""
        waiter = self._by_id[lease_id] = Waiter(asyncio.get_running_loop())
        return waiter

    def leave(self, lease_id: str) -> None:
        """Messages for it are ignored from now on."""
        self._by_id.pop(lease_id, None)

    def on_message(self, message: bytes) -> None:
        """`<lease id>`: look again; `<lease id> <fencing token>`: the lock was handed over to you."""
        lease_id, _, fence = message.decode().partition(" ")
        waiter = self._by_id.get(lease_id)
        if waiter is not None:
            waiter.wake(int(fence) if fence else None)


class Patience:
    """How long a caller still waits. None is for ever."""

    __slots__ = ("_ends_at_s", "started_at_s")

    def __init__(self, wait_s: float | None) -> None:
        self.started_at_s = time.monotonic()
        self._ends_at_s = None if wait_s is None else self.started_at_s + wait_s

    @property
    def waited_s(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self.started_at_s

    def left_s(self, at_most_s: float) -> float:
        """Seconds left, at most `at_most_s`; 0.0 when there are none."""
        if self._ends_at_s is None:
            return at_most_s
        return max(0.0, min(at_most_s, self._ends_at_s - time.monotonic()))

    @property
    def over(self) -> bool:
        """Whether the caller has waited long enough."""
        return self._ends_at_s is not None and time.monotonic() >= self._ends_at_s
