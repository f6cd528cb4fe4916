"""What a run tells a terminal: the verdicts, what shows them, and how to make it again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.dashboard.formatting import plural
from tests.chaos.checks import Verdict, in_words
from tests.chaos.history import Event
from tests.chaos.standing import Judged

MOST_EXAMPLES = 3
WORDS = {True: "[green]holds[/]", False: "[bold red]BROKEN[/]", None: "[yellow]unknown[/]"}
STYLES = {0: "bold green", 1: "bold red", 2: "bold yellow"}  # by exit code


def tell(console: Console, judged: Judged) -> None:
    """The table of properties, examples of what is broken or unknown, and the sum."""
    table = Table(show_edge=False, pad_edge=False)
    for column in ("property", "", "looked at", "counted"):
        table.add_column(column, justify="right" if column == "looked at" else "left")
    for verdict in judged.verdicts:
        table.add_row(verdict.property, WORDS[verdict.holds], f"{verdict.checked:,}", _counted(verdict))
    console.print(table)
    for verdict in judged.verdicts:
        if verdict.holds is not True:
            for example in verdict.examples[:MOST_EXAMPLES]:
                ops = f" ({', '.join(example.ops)})" if example.ops else ""
                console.print(f"  {verdict.property}: {example.text}{ops}", highlight=False, markup=False)
    console.print(f"{summary(judged.events)}", highlight=False)
    console.print(in_words(judged.verdicts), style=STYLES[judged.exit_code], highlight=False, soft_wrap=True)


def summary(events: Sequence[Event]) -> str:
    """Faults, operations and deaths in one line."""
    kinds = Counter(event["e"] for event in events)
    faults = [event for event in events if event["e"] == "fault"]
    targeted = sum(1 for event in faults if event.get("targeted"))
    missed = kinds["missed"]
    inside = sum(1 for event in events if event["e"] == "died" and event.get("held"))
    return (
        f"{plural(kinds['invoke'], 'operation')}, {plural(len(faults), 'fault')} of"
        f" {plural(len({fault['kind'] for fault in faults}), 'kind')} ({targeted:,} at points, {missed:,} missed),"
        f" {plural(inside, 'holder')} killed inside, {kinds['unknown']:,} unknown"
    )


def again(path: Path, words: Iterable[str] = ()) -> str:
    """The command that replays a schedule."""
    return shlex.join(["python", "-m", "tests.chaos", "--schedule", str(path), *words])


def _counted(verdict: Verdict) -> str:
    shown = {name: value for name, value in verdict.counts.items() if value and name != "violations"}
    return ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in list(shown.items())[:6])


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
