"""Timers by our own clock, and noticing that the machine was suspended: those of event loops stand still meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from locks.clock import Clock

# How long after a resume it goes unnoticed at the most, by those who wait for timers; Clock.monotonic_s knows at once.
LOOK_S = 0.1
# What two readings may lie apart because the process was interrupted between them.
SLACK_S = 0.01


def call_when(
    now_s: Callable[[], float], due_s: float, callback: Callable[..., object], *args: Any
) -> asyncio.TimerHandle:
    """Calls back when now_s() shows due_s, however long the process stands still in here.

    The loop's time is read first: standing still behind that makes the call come early, and never late.
    """
    loop = asyncio.get_running_loop()
    loop_s = loop.time()
    return loop.call_at(loop_s + max(0.0, due_s - now_s()), callback, *args)


class ResumeWatch:
    """Calls `on_resume` within LOOK_S after the machine goes on, in the event loop that opened it."""

    def __init__(self, clock: Clock, on_resume: Callable[[], None]) -> None:
        self._clock = clock
        self._on_resume = on_resume
        self._last_slept_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begins to look; harmless twice."""
        self.close()
        self._last_slept_s = self._slept_s()
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def close(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        before_s, self._last_slept_s = self._last_slept_s, self._slept_s()
        if self._last_slept_s - before_s > SLACK_S:
            self._on_resume()

    def _slept_s(self) -> float:
        """By how much the clock of timers is behind ours; it grows in a suspend, and only there."""
        timers_s = self._clock.timers_s()
        return self._clock.monotonic_s() - timers_s
