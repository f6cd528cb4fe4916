"""Counts in two directions: where which fault was fired, and which kind of fault showed which mutant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.checks.evidence import Evidence
from tests.chaos.faults import KINDS
from tests.chaos.points import TARGET_POINTS

SHADES = 5


@dataclass(frozen=True, slots=True)
class Cell:
    """A count as text, and its shade: 0 for none, up to SHADES for the most."""

    text: str
    shade: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of cells under headings."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    missing: int
    cells: int


def point_matrix(evidence: Evidence) -> Matrix:
    """How often each targeted kind was fired at each point; a kind or point beyond the known ones comes last."""
    fired = Counter((fault.point, fault.kind) for fault in evidence.faults if fault.is_targeted and fault.point)
    points = _with_others(TARGET_POINTS, (point for point, _ in fired))
    kinds = _with_others([kind.name for kind in KINDS.values() if kind.targeted], (kind for _, kind in fired))
    most = max(fired.values(), default=0)
    rows = [(point, [_cell(fired[point, kind], most) for kind in kinds]) for point in points]
    missing = sum(cell.shade == 0 for _, cells in rows for cell in cells)
    return Matrix(kinds, rows, missing, len(points) * len(kinds))


def mutant_matrix(mutants: Sequence[Mapping[str, Any]]) -> Matrix | None:
    """How often each kind of fault showed each mutant (`matrix`: kind -> count); None where nobody counted."""
    counts = {str(each["mutant"]): dict(each.get("matrix") or {}) for each in mutants}
    kinds = list(dict.fromkeys(str(kind) for by_kind in counts.values() for kind in by_kind))
    if not kinds:
        return None
    rows = []
    for mutant, by_kind in counts.items():
        most = max(by_kind.values(), default=0)
        rows.append((mutant, [_cell(int(by_kind.get(kind, 0)), most) for kind in kinds]))
    return Matrix(kinds, rows, 0, len(rows) * len(kinds))


def _with_others(expected: Sequence[str], seen: Iterable[str]) -> list[str]:
    return [*expected, *sorted(set(seen) - set(expected))]


def _cell(count: int, most: int) -> Cell:
    return Cell(f"{count:,}" if count else "–", -(-SHADES * count // most) if count else 0)
