"""What a run is like: drawn anew for each seed, so that all together see many worlds (swarm testing, Groce 2012)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.sim.network import Weather

CALM = Weather()
WEATHERS = (
    CALM,
    Weather(slow_share=0.01, slowest_s=0.003),
    Weather(slow_share=0.05, slowest_s=0.02),
    Weather(slow_share=0.02, slowest_s=0.3),
)
RATE_SPREAD = 0.003  # clocks go wrong by so much at the most; a lease has room for 1 %
LONGEST_PAUSE_S = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """`workers`: callers in each process. `think_s`, `held_s`: between two calls, and inside, on the average.

    `pauses`: how likely a process stands still at each look at its clock. `programs`: of python-redis-lock, and of
    SafeLock; `extensions`: how often each of them asks for more time in a turn.
    """

    processes: int = 5
    workers: int = 4
    programs: int = 0
    extensions: int = 0
    names: tuple[str, ...] = ("n:0", "n:1", "n:2")
    leases_s: tuple[float, ...] = (0.3,)
    think_s: float = 0.02
    held_s: float = 0.05
    weather: Weather = CALM
    pauses: float = 0.0
    uvloop_share: float = 0.0
    rate_spread: float = 0.0

    @classmethod
    def drawn(cls, numbers: random.Random) -> Circumstances:
        """Some of all that there are."""
        return cls(
            processes=numbers.choice((2, 3, 5, 5)),
            workers=numbers.choice((1, 2, 4, 4)),
            programs=numbers.choice((0, 0, 1, 2)),
            extensions=numbers.choice((0, 0, 1, 3)),
            names=("n:0", "n:1", "n:2")[: numbers.choice((1, 3, 3))],
            leases_s=numbers.choice(((0.3,), (0.3,), (1.0,), (0.3, 1.0, 2.0))),
            think_s=numbers.choice((0.002, 0.02, 0.2, 1.0)),
            held_s=numbers.choice((0.0005, 0.005, 0.05, 0.3, 0.8)),
            weather=numbers.choice(WEATHERS),
            pauses=numbers.choice((0.0, 0.0, 1e-4, 1e-3)),
            uvloop_share=numbers.choice((0.0, 0.5, 1.0)),
            rate_spread=RATE_SPREAD,
        )
