"""Noticing that the machine was suspended: the timers of event loops stand still meanwhile, and leases do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from locks import clock

# How long after a resume it goes unnoticed at the most, by those who wait for timers; locks.clock knows at once.
LOOK_S = 0.1
# What two readings may lie apart because the process was interrupted between them.
SLACK_S = 0.01


class ResumeWatch:
    """Calls `on_resume` within LOOK_S after the machine goes on, in the event loop that opened it."""

    def __init__(self, on_resume: Callable[[], None]) -> None:
        self._on_resume = on_resume
        self._slept_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begins to look; harmless twice."""
        self.close()
        self._slept_s = _slept_s()
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def close(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        before_s, self._slept_s = self._slept_s, _slept_s()
        if self._slept_s - before_s > SLACK_S:
            self._on_resume()


def _slept_s() -> float:
    """By how much the clock of timers is behind ours; it grows in a suspend, and only there."""
    timers_s = time.monotonic()
    return clock.monotonic_s() - timers_s
