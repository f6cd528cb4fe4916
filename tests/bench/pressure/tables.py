"""What a person reads: the windows' medians, what they cost, and one table with every verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from .verdicts import SceneResult, Verdict, Window

CPU_COLUMNS = ("workers", "postgres", "valkey", "client", "elsewhere", "steal")


def print_windows(console: Console, results: Sequence[SceneResult]) -> None:
    """Medians over each contestant's windows, and the faults one by one."""
    rates = _table("contestant", "medians", ("answers/s", "p50 ms", "p99 ms"))
    cpu = _table("contestant", "CPU microseconds an answer (all cores)", CPU_COLUMNS)
    for result in results:
        for contestant in dict.fromkeys(each.contestant for each in result.windows):
            sound = [each for each in result.windows if each.contestant == contestant and not each.faults]
            rates.add_row(result.scene, contestant, *_rates(sound))
            if any(each.cpu_us for each in sound):
                cpu.add_row(result.scene, contestant, *_costs(sound))
    console.print(rates, cpu)
    for result in results:
        for fault in [*result.faults, *(fault for each in result.windows for fault in each.faults)]:
            console.print(f"fault in {result.scene}: {fault}", style="red", markup=False)


def print_verdicts(console: Console, results: Sequence[SceneResult], failed: Mapping[str, str]) -> None:
    """Every figure beside its target."""
    table = _table("what", "the charge under pressure", ("figure", "against", "ratio", "target", "verdict"))
    for result in results:
        for verdict in result.verdicts:
            table.add_row(result.scene, verdict.what, *_cells(verdict))
        if result.not_measured:
            table.add_row(result.scene, result.not_measured, "–", "–", "–", "–", "[yellow]not measured[/yellow]")
    for scene, why in failed.items():
        table.add_row(scene, why.splitlines()[0][:80], "–", "–", "–", "–", "[red]could not look[/red]")
    console.print(table)


def _table(second: str, title: str, columns: Sequence[str]) -> Table:
    table = Table("scene", second, title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _cells(verdict: Verdict) -> list[str]:
    sign = "≥" if verdict.bound == "at least" else "≤"
    target = "–" if verdict.target is None else f"{sign} {verdict.target:g}"
    words = {None: "–", True: "[green]reached[/green]", False: "[red]missed[/red]"}
    ratio = "–" if verdict.value is None else f"{verdict.value:.2f}"
    return [_number(verdict.figure), _number(verdict.peer), ratio, target, words[verdict.passed]]


def _rates(sound: Sequence[Window]) -> list[str]:
    return [
        _median([each.per_s for each in sound]),
        *(_median([each.latency_ms.get(name) for each in sound]) for name in ("p50", "p99")),
    ]


def _costs(sound: Sequence[Window]) -> list[str]:
    return [_median([each.cpu_us.get(name) for each in sound]) for name in CPU_COLUMNS]


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _number(statistics.median(known) if known else None)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"
