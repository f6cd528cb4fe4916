"""What a person reads: a table for each shape, what waiting and memory cost, what went wrong, the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .rounds import SHAPES, Round, Shape
from .turns import TurnStatistics
from .verdicts import Figure, Verdict, cycles_per_s, median_of, of_turns, passed_on_per_s

DISTURBED_SHARE = 0.05
PLAIN: dict[str, Any] = {
    "title_justify": "left",
    "box": SIMPLE_HEAD,
    "show_edge": False,
    "collapse_padding": True,
}
TITLES = {
    "distinct": "{}: CPU microseconds a cycle",
    "hot": "{}: longest wait in seconds, and in rounds",
}

_Column = tuple[str, Figure, int]


def print_rounds(console: Console, rounds: Sequence[Round]) -> None:
    """Medians over the rounds without a fault."""
    for shape in SHAPES:
        names = list(dict.fromkeys(each.candidate for each in rounds if each.shape == shape.name))
        if names:
            console.print(_table(rounds, shape, names))
    for each in rounds:
        for fault in each.faults:
            console.print(
                f"fault in {each.shape} of {each.candidate}: {fault}", style="red", markup=False, soft_wrap=True
            )
    disturbed = sum(each.disturbed_share > DISTURBED_SHARE for each in rounds)
    if disturbed:
        console.print(
            f"note: in {disturbed} of {len(rounds)} rounds, others used over {DISTURBED_SHARE:.0%} of the CPU;"
            " repeat on a quiet machine",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def print_waiting(console: Console, found: dict[str, Any]) -> None:
    """What the waiters cost."""
    table = Table("waiting", "", title="waiters of ours that wait", **PLAIN)
    table.columns[1].justify = "right"
    for name, value in found.items():
        if name not in ("faults", "some_keys_left"):
            table.add_row(name.replace("_", " "), _number(value, 3))
    console.print(table)
    console.print(
        f"python-redis-lock would need {found['waiters']:,} connections and threads: one for each waiter's BLPOP"
        " (from its source, not measured)",
        highlight=False,
        soft_wrap=True,
    )
    _print_faults(console, "waiting", found)


def print_memory(console: Console, found: dict[str, Any]) -> None:
    """What locks weigh on the server."""
    table = Table("memory", "", title="weight on the server", **PLAIN)
    table.columns[1].justify = "right"
    for part, figures in found.items():
        for name, value in figures.items():
            if name != "faults":
                table.add_row(f"{part}: {name.replace('_', ' ')}", _number(value, 3))
    console.print(table)
    _print_faults(console, "memory", found["standing"])


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """One line for each target."""
    for each in verdicts:
        console.print(_sentence(each), highlight=False, soft_wrap=True)


def _table(rounds: Sequence[Round], shape: Shape, names: Sequence[str]) -> Table:
    table = Table("candidate", title=TITLES[shape.scene].format(shape.name), **PLAIN)
    table.columns[0].no_wrap = True
    columns = DISTINCT_COLUMNS if shape.scene == "distinct" else HOT_COLUMNS
    for title, _figure, _digits in columns:
        table.add_column(title, justify="right")
    for name in names:
        table.add_row(
            name, *(_number(median_of(rounds, shape.name, name, figure), digits) for _, figure, digits in columns)
        )
    return table


def _turns_column(title: str, figure: Callable[[TurnStatistics], float], digits: int) -> _Column:
    return (title, of_turns(figure), digits)


DISTINCT_COLUMNS: tuple[_Column, ...] = (
    ("cycles/s", cycles_per_s, 0),
    ("client µs", lambda each: each.cpu_us_per_cycle.get("client"), 1),
    ("server µs", lambda each: each.cpu_us_per_cycle.get("server"), 1),
)
HOT_COLUMNS: tuple[_Column, ...] = (
    ("handoffs/s", cycles_per_s, 0),
    ("to another", passed_on_per_s, 0),
    _turns_column("fewest", lambda turns: turns.fewest_turns, 0),
    _turns_column("most", lambda turns: turns.most_turns, 0),
    _turns_column("longest s", lambda turns: turns.longest_wait_s, 3),
    _turns_column("rounds", lambda turns: turns.longest_wait_rounds, 1),
)


def _print_faults(console: Console, scene: str, found: dict[str, Any]) -> None:
    for fault in found["faults"]:
        console.print(f"fault in {scene}: {fault}", style="red", markup=False, soft_wrap=True)


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _sentence(verdict: Verdict) -> str:
    targets = [
        f"{word} {limit:g}"
        for word, limit in (("at least", verdict.least), ("at most", verdict.most))
        if limit is not None
    ]
    target = f"target {targets[0]}" if targets else "no target"
    if verdict.value is None or verdict.passed is None:
        found = "not measured" if verdict.value is None else _number(verdict.value, 2)
        return f"{verdict.what}: {found} ({target})"
    word = "[green]reached[/green]" if verdict.passed else "[red]missed[/red]"
    return f"{verdict.what} = {_number(verdict.value, 2)}, {target}: {word}"
