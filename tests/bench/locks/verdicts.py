"""From rounds and findings to verdicts. Pure: medians over sound rounds, ratios of medians, targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .candidates import PEERS
from .rounds import SHAPES, Round, Shape
from .turns import TurnStatistics

RATIOS_ON_DISTINCT = {"redis-py": 8.0, "python-redis-lock": 8.0, "node-redlock": 1.2}
RATIO_ON_HOT = 2.0
FAIRNESS = 0.9
LONGEST_WAIT_ROUNDS = 3.0
CONNECTIONS = 4
QUIET_COMMANDS_PER_S_AND_NAME = 10
QUIET_COMMANDS_PER_S_CONSTANT = 50

Figure = Callable[[Round], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A figure against its target: a least value, or a most one, or none for what is only told. None: not measured."""

    what: str
    value: float | None
    least: float | None = None
    most: float | None = None

    @property
    def passed(self) -> bool | None:
        """None when there is nothing to judge."""
        if self.value is None or (self.least is None and self.most is None):
            return None
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)


def median_of(rounds: Sequence[Round], shape: str, candidate: str, figure: Figure) -> float | None:
    """Over the candidate's rounds without a fault; None when there are none."""
    found = [figure(each) for each in rounds if (each.shape, each.candidate) == (shape, candidate) and not each.faults]
    known = [each for each in found if each is not None]
    return statistics.median(known) if known else None


def of_turns(figure: Callable[[TurnStatistics], float]) -> Figure:
    """The figure of a round that has turns."""
    return lambda each: None if each.turns is None else figure(each.turns)


def cycles_per_s(each: Round) -> float:
    """Cycles, or turns, a second."""
    return each.cycles_per_s


def passed_on_per_s(each: Round) -> float | None:
    """Turns a second that went to another task than the turn before."""
    return None if each.turns is None else each.turns.passed_on / each.measured_s


def medians(rounds: Sequence[Round], shape: str, figure: Figure) -> dict[str, float]:
    """The median of each candidate that was measured."""
    names = dict.fromkeys(each.candidate for each in rounds if each.shape == shape)
    found = {name: median_of(rounds, shape, name, figure) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def judge_rounds(rounds: Sequence[Round], scenes: Sequence[str]) -> list[Verdict]:
    """Ours against the peers, in the scenes that were asked for."""
    verdicts = []
    for shape in SHAPES:
        if shape.scene in scenes:
            verdicts += _on_distinct(rounds, shape) if shape.scene == "distinct" else _on_hot(rounds, shape)
    return verdicts


def judge_waiting(found: dict[str, Any]) -> list[Verdict]:
    """What thousands of waiters cost while nothing happens."""
    return [
        Verdict(what="waiting: connections", value=found["connections"], most=CONNECTIONS),
        Verdict(
            what="waiting: commands/s while nothing happens",
            value=found["commands_per_s"],
            most=found["names"] * QUIET_COMMANDS_PER_S_AND_NAME + QUIET_COMMANDS_PER_S_CONSTANT,
        ),
        Verdict(what="waiting: keys left after all gave up", value=found["keys_left"], most=0),
    ]


def judge_memory(found: dict[str, Any]) -> list[Verdict]:
    """Whether released locks leave anything behind."""
    return [Verdict(what="memory: keys left of released locks", value=found["churn"]["keys_in_the_end"], most=0)]


def _on_distinct(rounds: Sequence[Round], shape: Shape) -> list[Verdict]:
    return [_ratio(rounds, shape, [peer], least=least) for peer, least in RATIOS_ON_DISTINCT.items()]


def _on_hot(rounds: Sequence[Round], shape: Shape) -> list[Verdict]:
    fairness = median_of(rounds, shape.name, "ours", of_turns(lambda turns: turns.fairness))
    wait = median_of(rounds, shape.name, "ours", of_turns(lambda turns: turns.longest_wait_rounds))
    return [
        _ratio(rounds, shape, PEERS, least=RATIO_ON_HOT),
        _ratio(rounds, shape, PEERS, least=None, figure=passed_on_per_s, unit=", handoffs to another task alone"),
        Verdict(what=f"{shape.name}: our fewest / most turns", value=fairness, least=FAIRNESS),
        Verdict(what=f"{shape.name}: our longest wait / (tasks × mean cycle)", value=wait, most=LONGEST_WAIT_ROUNDS),
    ]


def _ratio(
    rounds: Sequence[Round],
    shape: Shape,
    peers: Sequence[str],
    *,
    least: float | None,
    figure: Figure = cycles_per_s,
    unit: str = "",
) -> Verdict:
    """Over the strongest of these peers, in whichever tuning."""
    peer_of = {each.candidate: each.peer for each in rounds}
    found = medians(rounds, shape.name, figure)
    peer = max((name for name in found if peer_of[name] in peers), key=lambda name: found[name], default=None)
    label = peer or (peers[0] if len(peers) == 1 else "the best peer")
    value = found["ours"] / found[peer] if peer and found[peer] and "ours" in found else None
    return Verdict(what=f"{shape.name}: ours / {label}{unit}", value=value, least=least)
