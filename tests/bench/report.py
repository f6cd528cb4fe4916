"""From rounds to a verdict: medians, ratios, the table, and bench.json with everything that a reader may doubt."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .rounds import Round

VERSIONS = ("aiohttp", "uvloop", "redis", "hiredis", "sqlalchemy", "psycopg2-binary", "pyjwt", "agoraiotools")
CPU_COLUMNS = ("workers", "postgres", "valkey", "client", "elsewhere", "steal")
FSYNC_PROBES = 100
PGBENCH = ("pgbench-simple", "pgbench-prepared")
DISTURBED_SHARE = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Ours over a peer's median, and what it should be at least; `value` is None when one of them was not measured."""

    name: str
    peer: str | None
    value: float | None
    target: float

    @property
    def passed(self) -> bool | None:
        """None when there is nothing to judge."""
        return None if self.value is None else self.value >= self.target


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    """Charges a second for each candidate, over its rounds without a fault."""
    rates: dict[str, list[float]] = {}
    for each in rounds:
        if not each.faults:
            rates.setdefault(each.candidate, []).append(each.charges_per_s)
    return {candidate: statistics.median(found) for candidate, found in rates.items()}


def ratios(rounds: Sequence[Round], *, targets: dict[str, float]) -> list[Ratio]:
    """Ours over each peer that has a target. Of pgbench's protocols, the faster one is the peer."""
    median = medians(rounds)
    found = []
    for name, target in targets.items():
        variants = [each for each in (PGBENCH if name == "pgbench" else (name,)) if each in median]
        peer = max(variants, key=lambda each: median[each], default=None)
        value = median["ours"] / median[peer] if peer and "ours" in median else None
        found.append(Ratio(name=name, peer=peer, value=value, target=target))
    return found


def print_tables(console: Console, rounds: Sequence[Round], judged: Sequence[Ratio]) -> None:
    """What a person reads: the rates, what bounds them, what went wrong, the verdict."""
    by_candidate = {
        candidate: [each for each in rounds if each.candidate == candidate and not each.faults]
        for candidate in dict.fromkeys(each.candidate for each in rounds)
    }
    rates = _table("charges a second", ("median", "lowest", "highest", "p50 ms", "p99 ms"))
    cpu = _table("CPU microseconds a charge (all cores)", CPU_COLUMNS)
    for candidate, sound in by_candidate.items():
        rates.add_row(candidate, *_rates(sound))
        cpu.add_row(candidate, *(_median([each.cpu_us_per_charge.get(name) for each in sound]) for name in CPU_COLUMNS))
    console.print(rates, cpu)
    for each in rounds:
        for fault in each.faults:
            console.print(f"fault in a round of {each.candidate}: {fault}", style="red", markup=False)
    disturbed = sum(_disturbed(each) for each in rounds)
    if disturbed:
        console.print(
            f"note: in {disturbed} of {len(rounds)} rounds, others used over {DISTURBED_SHARE:.0%} of the CPU:"
            " the ratios lean towards whoever has the most processes; repeat on a quiet machine",
            style="yellow",
        )
    for ratio in judged:
        console.print(_sentence(ratio), highlight=False)


def machine(folder: Path) -> dict[str, Any]:
    """The facts that make a figure comparable, or not."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "load_average_at_start": [round(each, 2) for each in os.getloadavg()],
        "filesystem": _filesystem(folder),
        "fdatasync_us_median": _fdatasync_us(folder),
        "versions": {name: version(name) for name in VERSIONS},
    }


def as_json(rounds: Sequence[Round], judged: Sequence[Ratio]) -> dict[str, Any]:
    """Rounds, medians and ratios, as they go into bench.json."""
    return {
        "rounds": [asdict(each) for each in rounds],
        "median_charges_per_s": {name: round(value, 1) for name, value in medians(rounds).items()},
        "ratios": [
            asdict(each) | {"value": each.value and round(each.value, 3), "passed": each.passed} for each in judged
        ],
    }


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table("candidate", title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _rates(sound: Sequence[Round]) -> list[str]:
    rates = [each.charges_per_s for each in sound]
    return [
        *(f"{pick(rates):,.0f}" if rates else "–" for pick in (statistics.median, min, max)),
        *(_median([each.latency_ms.get(name) for each in sound], digits=1) for name in ("p50", "p99")),
    ]


def _median(values: Sequence[float | None], *, digits: int = 0) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.{digits}f}" if known else "–"


def _disturbed(each: Round) -> bool:
    elsewhere_s = each.cpu_us_per_charge.get("elsewhere", 0.0) * each.charged / 1e6
    return elsewhere_s > DISTURBED_SHARE * each.measured_s * (os.cpu_count() or 1)


def _sentence(ratio: Ratio) -> str:
    if ratio.value is None:
        return f"ours / {ratio.name}: not measured (target {ratio.target:g})"
    verdict = "[green]reached[/green]" if ratio.passed else "[red]missed[/red]"
    return f"ours / {ratio.peer} = {ratio.value:.2f}, target {ratio.target:g}: {verdict}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _filesystem(folder: Path) -> str | None:
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    above = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(above, key=lambda each: len(each[0]))[1] if above else None


def _fdatasync_us(folder: Path) -> float:
    """What one durable 8 KiB write costs here: the floor under every commit."""
    sync = getattr(os, "fdatasync", os.fsync)
    took_us = []
    with (folder / "fsync-probe").open("wb", buffering=0) as file:
        for _ in range(FSYNC_PROBES):
            file.seek(0)
            file.write(bytes(8192))
            began = time.perf_counter()
            sync(file.fileno())
            took_us.append((time.perf_counter() - began) * 1e6)
    return round(statistics.median(took_us), 1)
