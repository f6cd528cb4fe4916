"""The schedule of a run: which faults, where and when; drawn by the seed alone, printed, and replayed from its file.

A targeted fault names a point of an instance: 'the 3rd rows_locked of instance 2, counted from the end of its last
targeted fault'. An ambient one names a time.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.chaos.every_kind import EVERY_KIND
from tests.chaos.faults import FaultKind
from tests.chaos.points import TARGET_POINTS
from tests.chaos.workload.config import LEASE_CLIENTS, OVERSLEEPS

VERSION = 1
Fault = dict[str, Any]

# For how long a targeted fault keeps its instance, waiting for its point included: for how many fit into a run.
EXPECTED_S = {"freeze": 1.0, "redis_restart": 0.35, "die": 0.3, "die_later": 0.3, "delay": 0.3}
USUAL_S = 0.18
# For how long an ambient fault that draws no duration keeps its server, which is its own meanwhile.
TAKES_S = {
    "sentinel_kill_master": 4.8,
    "sentinel_freeze_master": 5.0,
    "sentinel_failover": 4.0,
    "cluster_kill_master": 3.2,
    "postgres_failover": 4.0,
    "split_brain": 6.0,
    "power_loss": 1.5,
}
QUICK_S = 0.3
STAGED_S = 1.2  # a point that comes only after another fault
# Killing a holder is what the run is for, so it comes more often than the rest.
EXTRA_DEATHS = 3
FREEZES_FOR_LOST: Fault = {"kind": "freeze", "point": "acquired", "leases": 1.35}


class ScheduleError(ValueError):
    """A schedule that cannot be run; the message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Everything that makes two runs the same."""

    seed: int
    instances: int
    duration_s: float
    clients: int = 32
    lease_ttl_s: float = 0.6
    lock_wait_s: float = 2.0
    guard: str = "lock-and-row"
    mutant: str | None = None
    world: str = "plain"
    mix: dict[str, float] = field(default_factory=dict)  # of the workload; empty: its own
    lease_clients: int = LEASE_CLIENTS  # of leases over HTTP
    oversleeps: float = OVERSLEEPS  # of them go on past the end of their lease
    quiet_leases: float = 4.0  # for so long the clients go on when all faults are over
    takeover_grace_ms: float = 50.0  # how late after a dead holder's lease is in time
    settle_s: float = 10.0  # for so long what is left may still go, once everything is drained
    faults: list[Fault] = field(default_factory=list)
    version: int = VERSION

    def save(self, path: Path) -> None:
        """Writes it, one fault a line."""
        whole = asdict(self)
        faults = whole.pop("faults")
        lines = ",\n  ".join(json.dumps(fault) for fault in faults)
        path.write_text(f'{json.dumps(whole)[:-1]}, "faults": [\n  {lines}\n]}}\n')

    def without(self, fault_ids: Collection[int]) -> Schedule:
        """The same without these faults."""
        return replace(self, faults=[fault for fault in self.faults if fault["id"] not in fault_ids])


def load(path: Path) -> Schedule:
    """Reads one. Raises ScheduleError, OSError."""
    try:
        whole = json.loads(path.read_text())
    except ValueError as error:
        raise ScheduleError(f"{path} is no JSON: {error}") from error
    if not isinstance(whole, dict) or whole.get("version") != VERSION:
        raise ScheduleError(f"{path}: version must be {VERSION}")
    known = set(Schedule.__dataclass_fields__)
    if unknown := set(whole) - known:
        raise ScheduleError(f"{path}: unknown field {sorted(unknown)[0]}")
    if missing := {"seed", "instances", "duration_s"} - set(whole):
        raise ScheduleError(f"{path}: {sorted(missing)[0]} is missing")
    schedule = Schedule(**whole)
    for fault in schedule.faults:
        _check(fault, schedule)
    return schedule


def _check(fault: Mapping[str, Any], schedule: Schedule) -> None:
    where = f"fault {fault.get('id')}"
    if fault.get("kind") not in EVERY_KIND:
        raise ScheduleError(f"{where}: kind must be one of {', '.join(sorted(EVERY_KIND))}")
    if "at_s" in fault:
        return
    if fault.get("point") not in TARGET_POINTS:
        raise ScheduleError(f"{where}: point must be one of {', '.join(TARGET_POINTS)}")
    if fault.get("instance") not in range(1, schedule.instances + 1):
        raise ScheduleError(f"{where}: instance must be 1 to {schedule.instances}")


def expand(
    schedule: Schedule,
    *,
    kinds: Collection[str],
    cells: Sequence[tuple[str, str]] | None = None,
    targets: int | None = None,
) -> Schedule:
    """The schedule with its faults, drawn by its seed alone.

    `kinds`: the names of the kinds that may be drawn. `cells`: (point, kind) pairs to aim at, over and over; without
    them every pair of a target point and a targeted kind. `targets`: only the first so many instances are aimed at.
    """
    rng = random.Random(schedule.seed)
    targeted = [EVERY_KIND[kind] for kind in sorted(kinds) if EVERY_KIND[kind].targeted]
    ambient = [EVERY_KIND[kind] for kind in sorted(kinds) if EVERY_KIND[kind].ambient and not EVERY_KIND[kind].targeted]
    aims = list(cells) if cells else list(itertools.product(TARGET_POINTS, [kind.name for kind in targeted]))
    faults = [
        *_targeted_faults(rng, schedule, aims, targets or schedule.instances),
        *_ambient_faults(rng, schedule, ambient),
    ]
    for number, fault in enumerate(faults, 1):
        fault["id"] = number
    return replace(schedule, faults=faults)


def _targeted_faults(
    rng: random.Random, schedule: Schedule, aims: Sequence[tuple[str, str]], targets: int
) -> list[Fault]:
    if not aims:
        return []
    faults: list[Fault] = []
    busy_s = dict.fromkeys(range(1, targets + 1), 0.5)
    for point, kind in _drawn(rng, aims):
        instance = min(busy_s, key=lambda number: busy_s[number])
        if busy_s[instance] >= schedule.duration_s:
            return faults
        if point == "lost":
            faults.append(_fault(rng, schedule, instance, **FREEZES_FOR_LOST))
            busy_s[instance] += STAGED_S
        faults.append(_fault(rng, schedule, instance, point=point, kind=kind))
        busy_s[instance] += EXPECTED_S.get(kind, USUAL_S)
    return faults


def _drawn(rng: random.Random, aims: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Each aim once a round, every round in another order; deaths of holders several times."""
    weighted = [aim for aim in aims for _ in range(EXTRA_DEATHS if _kills_a_holder(aim) else 1)]
    while True:
        rng.shuffle(weighted)
        # First each cell once, so that a short run has hit as many as it can.
        firsts = list(dict.fromkeys(weighted))
        again = list(weighted)
        for aim in firsts:
            again.remove(aim)
        yield from firsts
        yield from again


def _kills_a_holder(aim: tuple[str, str]) -> bool:
    point, kind = aim
    return kind.startswith("die") and point in ("acquired", "rows_locked", "decided", "committing", "committed")


def _fault(rng: random.Random, schedule: Schedule, instance: int, *, point: str, kind: str, **given: Any) -> Fault:
    nth = 1 if point in ("lost", "extended") else rng.choice((1, 1, 2, 3, 5))
    drawn = EVERY_KIND[kind].draw(rng, schedule.lease_ttl_s)
    return {"instance": instance, "point": point, "nth": nth, "kind": kind, **drawn, **given}


def _ambient_faults(rng: random.Random, schedule: Schedule, kinds: Sequence[FaultKind]) -> list[Fault]:
    """One after the other, so that each has its effect, and not much more than the run can bear."""
    faults: list[Fault] = []
    at_s, left = 1.0, list(kinds)
    rng.shuffle(left)
    while left:
        kind = left.pop()
        drawn = kind.draw(rng, schedule.lease_ttl_s)
        lasts_s = float(TAKES_S.get(kind.name) or drawn.get("lasts_s", QUICK_S))
        if at_s + lasts_s > schedule.duration_s - 1.0:
            break
        faults.append(
            {"at_s": round(at_s, 3), "kind": kind.name, "instance": rng.randint(1, schedule.instances), **drawn}
        )
        at_s += lasts_s + rng.uniform(0.8, 1.6)
        if not left:
            left = list(kinds)
            rng.shuffle(left)
    return faults
