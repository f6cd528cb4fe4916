"""The scenes in which ours meets the peers: what a round is asked for, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .candidates import Candidate
from .running import Said, run_window
from .server import Server
from .turns import TurnStatistics, judge, read


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """So many tasks in each of so many processes, on distinct names or on a hot one."""

    scene: str
    processes: int
    tasks: int

    @property
    def name(self) -> str:
        """As it stands in tables and verdicts."""
        return f"{self.scene} {self.processes} × {self.tasks}"


SHAPES = (
    Shape(scene="distinct", processes=1, tasks=64),
    Shape(scene="distinct", processes=1, tasks=256),
    Shape(scene="hot", processes=1, tasks=16),
    Shape(scene="hot", processes=4, tasks=8),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round of one candidate found. Anything in `faults` makes it worthless."""

    shape: str
    candidate: str
    peer: str
    cycles: int
    measured_s: float
    cycles_per_s: float
    cpu_us_per_cycle: dict[str, float]
    disturbed_share: float
    turns: TurnStatistics | None = None
    faults: tuple[str, ...] = field(default=())


def measure(
    server: Server,
    candidate: Candidate,
    shape: Shape,
    *,
    number: int,
    warm_up_s: float,
    measured_s: float,
    cores: int,
    folder: Path,
) -> Round:
    """One round on an empty server; leaves nothing running. Raises BenchFailed."""
    server.fresh()
    words = (shape.scene, "--url", server.url, "--tasks", str(shape.tasks), "--prefix", f"bench:{number}")
    log = folder / f"{candidate.peer}.log"
    said = run_window(
        server,
        (*candidate.command, *words),
        processes=shape.processes,
        warm_up_s=warm_up_s,
        measured_s=measured_s,
        log=log,
    )
    turns = _turns(said, shape, measured_s) if shape.scene == "hot" else None
    cycles = turns.turns if turns else sum(line["cycles"] for line in said.lines)
    return Round(
        shape=shape.name,
        candidate=candidate.name,
        peer=candidate.peer,
        cycles=cycles,
        measured_s=measured_s,
        cycles_per_s=cycles / measured_s,
        cpu_us_per_cycle={name: round(used_s / cycles * 1e6, 1) for name, used_s in said.cpu_s.items() if cycles},
        disturbed_share=(said.cpu_s.get("elsewhere", 0.0) + said.cpu_s.get("steal", 0.0)) / (measured_s * cores),
        turns=turns,
        faults=turns.faults if turns else () if cycles else ("not one cycle was finished",),
    )


def _turns(said: Said, shape: Shape, measured_s: float) -> TurnStatistics:
    turns, waiting = read(said.lines)
    return judge(
        turns,
        waiting,
        processes=shape.processes,
        tasks_per_process=shape.tasks,
        window_us=round(measured_s * 1e6),
    )
