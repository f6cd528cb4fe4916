"""A broken variant of the product: what is wrong with it, which property must say so, and where it shows best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.chaos.mutants.edits import Edit

Cell = tuple[str, str]  # a point, and the kind of fault that is fired there


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One defect, as small as a plausible slip, which is really there in the running service.

    `caught_by`: each of these properties may name it, one at least must. `points`: the cells that show it best;
    `ambient`: kinds of faults by time that do. `targets`: the instances that are aimed at, where the others are to stay
    undisturbed; none: all. `hints`: of what the workload needs much: hot (few appointments, both participants), wide
    (many appointments), payers (few, of many appointments), coupons (that run out), retries (the same request again
    after a time-out), leases (over HTTP).
    `world`: which ground it takes. `schema`: SQL for the migrated database, without what would hide the defect.
    `run_s`: a run that short mostly shows it. `clients`: fewer, where a busy machine's standstills would excuse what it
    does. `register_unfenced`: the program that holds a lease writes past the fence; the product is whole.
    """

    name: str
    does: str
    caught_by: tuple[str, ...]
    points: tuple[Cell, ...] = ()
    ambient: tuple[str, ...] = ()
    targets: tuple[int, ...] = ()
    hints: tuple[str, ...] = ()
    world: str = "plain"
    edits: tuple[Edit, ...] = ()
    schema: tuple[str, ...] = ()
    postgres_settings: Mapping[str, str] = field(default_factory=dict)
    register_unfenced: bool = False
    run_s: float = 2.0
    clients: int = 24

    def patch(self) -> None:
        """Breaks this process' product, before an instance is made. Raises StaleEdit, with nothing broken."""
        for edit in self.edits:
            edit.check()
        for edit in self.edits:
            edit.apply()
