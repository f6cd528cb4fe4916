"""One run as a value: it can be told in a command, run again, and run with fewer faults."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.sim import faults
from tests.sim.circumstances import Circumstances
from tests.sim.faults import KINDS, Fault
from tests.sim.scenes import BEGINS_S, CIRCUMSTANCES, IN_SCENES, SCENES
from tests.sim.simulation import Outcome, Plan, Simulation
from tests.sim.workload import RandomWork

WITHOUT_FAULTS = 0.1
ONLY_REMEMBERING = 0.6  # of the runs have no fault that loses data or time, so that nothing is excused
MOST_KINDS = 6
EVERY_S = (0.15, 0.4, 1.0)
LASTS_S = 16.0
ROOT, PYTHON = Path(__file__).parents[2], Path(sys.executable)
# As it is called from the root of the repository, whichever Python this is.
PYTHON_COMMAND = str(PYTHON.relative_to(ROOT) if PYTHON.is_relative_to(ROOT) else PYTHON)
PROGRAM = f"{PYTHON_COMMAND} -m tests.sim"
# Of the circumstances, those that a search makes smaller, each with the fewest that there can be.
SIZES = {"processes": 1, "workers": 1, "programs": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """`scene`: None for callers at random. `lasts_s`: of those. `delays`: as World.delays."""

    seed: int
    circumstances: Circumstances
    faults: tuple[Fault, ...] = ()
    scene: str | None = None
    lasts_s: float = LASTS_S
    delays: tuple[int, ...] = ()

    @classmethod
    def drawn(cls, seed: int, *, lasts_s: float = LASTS_S) -> Trial:
        """Callers at random under dense faults, in circumstances of this seed's own."""
        numbers = random.Random(f"{seed}/trial")
        circumstances = Circumstances.drawn(numbers)
        kinds: tuple[str, ...] = ()
        if numbers.random() >= WITHOUT_FAULTS:
            remembers = numbers.random() < ONLY_REMEMBERING
            pool = [name for name, kind in KINDS.items() if not (remembers and kind.forgets)]
            kinds = tuple(numbers.sample(pool, numbers.randint(1, min(MOST_KINDS, len(pool)))))
        struck = faults.drawn(
            numbers,
            kinds,
            every_s=numbers.choice(EVERY_S),
            lasts_s=lasts_s,
            processes=circumstances.processes + circumstances.programs,
        )
        return cls(seed=seed, circumstances=circumstances, faults=tuple(struck), lasts_s=lasts_s)

    @classmethod
    def of_scene(cls, scene: str, *struck: Fault, seed: int = 1, delays: tuple[int, ...] = ()) -> Trial:
        """A small scene with these faults."""
        circumstances = CIRCUMSTANCES.get(scene, IN_SCENES)
        return cls(seed=seed, circumstances=circumstances, faults=struck, scene=scene, delays=delays)

    def with_faults(self, struck: tuple[Fault, ...]) -> Trial:
        """The trial with these instead."""
        return replace(self, faults=struck)

    def with_sizes(self, sizes: Mapping[str, Any]) -> Trial:
        """The trial with so many of these instead."""
        return replace(self, circumstances=replace(self.circumstances, **sizes))

    def plan(self) -> Plan:
        """What the processes do; for one run."""
        if self.scene is not None:
            scene = SCENES[self.scene]()
            if not self.faults:
                scene.lasts_s = BEGINS_S  # and then as long as somebody is at work
            return scene
        return RandomWork(lasts_s=self.lasts_s, lease_s=max(self.circumstances.leases_s))

    def simulation(self) -> Simulation:
        """Ready to run."""
        return Simulation(self.seed, self.circumstances, self.plan(), self.faults, self.delays)

    def run(self) -> Outcome:
        """To the end."""
        return self.simulation().run()

    @property
    def command(self) -> str:
        """What runs it again; `again.parsed` understands it."""
        words = [f"{PROGRAM} again"]
        if self.scene is not None:
            words.append(f"--scene {self.scene}")
            if self.seed != 1:
                words.append(f"--seed {self.seed}")
            words += [f"--fault {fault.kind}:{fault.who}:{fault.at_event}:{fault.number}" for fault in self.faults]
            words += [f"--delay {event}" for event in self.delays]
            return " ".join(words)
        words.append(f"--seed {self.seed}")
        if self.lasts_s != LASTS_S:
            words.append(f"--lasts-s {self.lasts_s!r}")
        drawn = Trial.drawn(self.seed, lasts_s=self.lasts_s)
        for size in SIZES:
            if (count := getattr(self.circumstances, size)) != getattr(drawn.circumstances, size):
                words.append(f"--with {size}={count}")
        if self.faults != drawn.faults:
            words.append("--faults " + (",".join(str(fault.number) for fault in self.faults) or "none"))
        return " ".join(words)
