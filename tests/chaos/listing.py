"""`python -m tests.chaos kinds`: every kind of fault, where it can be had, and what it needs."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from tests.chaos.every_kind import PLAIN
from tests.chaos.faults import KINDS, FaultKind


def main(words: list[str]) -> int:
    """Always 0."""
    argparse.ArgumentParser(prog="python -m tests.chaos kinds", description=__doc__).parse_args(words)
    table = Table(show_edge=False, pad_edge=False)
    for column in ("world", "kind", "fired", "does", "cannot run here"):
        table.add_column(column)
    for world, kinds, why in available():
        for kind in kinds:
            fired = "at points" if kind.targeted else "by time"
            table.add_row(world, kind.name, fired, kind.does, kind.needs or why or "")
    Console().print(table)
    return 0


def available() -> list[tuple[str, list[FaultKind], str | None]]:
    """Each world with its own kinds, and why it cannot be had here."""
    from tests.chaos.worlds import WORLDS

    plain = (PLAIN, list(KINDS.values()), None)
    return [plain, *[(name, list(world.kinds), world.needs()) for name, world in WORLDS.items()]]
