"""The race as people read it: one table, one sentence a guard; and as programs read it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.dashboard.formatting import plural
from tests.chaos.race_ground import Charged
from tests.chaos.race_instances import INSTANCES, LEASE_TTL_S
from tests.chaos.race_rounds import LONGEST_PAUSE_LEASES, PAUSE_LEASES, Measured, Plan
from tests.chaos.race_verdicts import Verdict


def print_table(console: Console, plan: Plan, measured: Sequence[Measured], judged: Sequence[Verdict]) -> None:
    """Charges, p99 and connections of each guard, and whether it did what is said of it."""
    table = Table(
        title=f"{plural(plan.entrants, 'entrant')} race for each appointment, on {INSTANCES} instances",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("guard", no_wrap=True)
    for heading in (
        "again in\na crowd",
        "again after\na pause",
        "most\ncharges",
        "p99\nms",
        "peak\nconnections",
        "waiting\nfor a row",
    ):
        table.add_column(heading, justify="right")
    for each in measured:
        most = max(each.crowd.most_charges, each.paused.most_charges)
        table.add_row(
            each.guard,
            _share(each.crowd),
            _share(each.paused),
            Text(str(most), style="red" if most > 1 else "green"),
            f"{each.p99_ms:.0f}",
            str(each.most_sessions),
            str(each.most_waiting_for_a_row),
        )
    console.print(table)
    for each, verdict in zip(measured, judged, strict=True):
        _print_sentence(console, each, verdict)
    console.print(
        "again: appointments charged more than once, in a crowd and in one whose first holder is paused; a pause: the"
        f" first holder's process stands still between reading and writing for {PAUSE_LEASES:g} to"
        f" {LONGEST_PAUSE_LEASES:g} leases of {LEASE_TTL_S:g} s; p99 and connections: in the crowds,"
        f" {measured[0].entries} entries a guard",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def _print_sentence(console: Console, measured: Measured, verdict: Verdict) -> None:
    if verdict.as_expected:
        found, style = f"as expected: {sentence(measured)}", "green"
    else:
        found, style = f"NOT AS EXPECTED ({verdict.expected}): {verdict.why_not}", "red"
    console.print(f"{measured.guard} {found}", style=style, highlight=False, soft_wrap=True)


def sentence(measured: Measured) -> str:
    """What became of the customers."""
    crowd, paused = measured.crowd, measured.paused
    too_many = crowd.coupons_too_many + paused.coupons_too_many
    if crowd.overcharged:
        return (
            f"one appointment was charged {_times(max(crowd.most_charges, paused.most_charges))},"
            f" and {plural(too_many, 'coupon')} too many taken"
        )
    if paused.overcharged:
        return (
            f"charged once, until a holder was paused past its lease: then {_times(paused.most_charges)},"
            f" and {plural(too_many, 'coupon')} too many taken"
        )
    return "every appointment was charged once, a paused holder or not"


def as_json(plan: Plan, measured: Sequence[Measured], judged: Sequence[Verdict]) -> dict[str, Any]:
    """Everything that was measured, with what it was measured on."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "as_expected": all(verdict.as_expected for verdict in judged),
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "plan": {
            **asdict(plan),
            "instances": INSTANCES,
            "lease_ttl_s": LEASE_TTL_S,
            "pause_leases": [PAUSE_LEASES, LONGEST_PAUSE_LEASES],
        },
        "guards": [
            {
                **asdict(each),
                "expected": verdict.expected,
                "as_expected": verdict.as_expected,
                "why_not": verdict.why_not,
            }
            for each, verdict in zip(measured, judged, strict=True)
        ],
    }


def _share(charged: Charged) -> Text:
    style = "red" if charged.overcharged else "green"
    return Text(f"{charged.overcharged} of {charged.appointments}", style=style)


def _times(count: int) -> str:
    words = {1: "once", 2: "twice"}
    return words.get(count, f"{count} times")
