"""Episode after episode, until so many commands were the same, or one was not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers.kinds import server_binary
from tests.sim.conformance.comparing import Difference, Pair
from tests.sim.conformance.episodes import Episode
from tests.sim.conformance.modelled import ModelSide
from tests.sim.conformance.real import RealSide
from tests.sim.conformance.steps import Do, Step
from tests.sim.redis import Dialect


@dataclass(slots=True)
class Report:
    """What was compared. difference: the first one."""

    version: str
    command_count: int = 0
    message_count: int = 0
    took_s: float = 0.0
    difference: Difference | None = None


@contextlib.contextmanager
def real_server(kind: str, folder: Path) -> Iterator[RealSide]:
    """One of this kind, whose clocks stand still; skips the test where there is none."""
    with RealSide(server_binary(kind), folder, now_us=1_000_000) as real:
        yield real


def compare(real: RealSide, dialect: Dialect, *, seed: int, command_count: int) -> Report:
    """At least so many commands to the server and to the model, up to the first difference."""
    began_at_s = time.monotonic()
    side = ModelSide(dialect)
    pair = Pair(real, side)
    report = Report(real.version)
    number = 0
    while report.command_count < command_count and report.difference is None:
        _run(pair, Episode(f"{seed}/{number}", side), report)
        number += 1
    report.message_count = pair.message_count
    report.took_s = time.monotonic() - began_at_s
    return report


def shortened(real: RealSide, dialect: Dialect, found: Difference) -> Difference:
    """The difference, or another one, after as few steps as can be found."""
    return Pair(real, ModelSide(dialect)).shortened(found)


def _run(pair: Pair, episode: Episode, report: Report) -> None:
    taken: list[Step] = []
    pair.begin(episode.begin_us)
    for step in episode.steps():
        taken.append(step)
        episode.last_reply, what = pair.take(step)
        if step.do is Do.COMMAND:
            report.command_count += 1
        if what is not None:
            report.difference = Difference(what, episode.begin_us, taken)
            return
