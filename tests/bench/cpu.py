"""Who used the CPU: seconds per group of processes, from /proc. Elsewhere than on Linux nothing is known or said."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """CPU seconds used so far. `machine_s` is everybody's together; `steal_s` is what the hypervisor took away."""

    groups_s: dict[str, float]
    machine_s: float
    steal_s: float


class Meter:
    """Reads the CPU seconds of named groups of process trees, each tree given by the pid at its root."""

    def __init__(self, roots: dict[str, list[int]]) -> None:
        self._roots = roots

    def read(self) -> Reading | None:
        """None where there is no /proc."""
        if not (PROC / "stat").exists():
            return None
        processes = _processes()
        machine_s, steal_s = _machine()
        return Reading(
            groups_s={name: sum(_tree_s(pid, processes) for pid in pids) for name, pids in self._roots.items()},
            machine_s=machine_s,
            steal_s=steal_s,
        )


def used_between(before: Reading, after: Reading, *, known_s: dict[str, float]) -> dict[str, float]:
    """Seconds per group; `elsewhere` is what nobody accounts for: the kernel's own threads, and other programs."""
    used = {name: after.groups_s[name] - before.groups_s[name] for name in after.groups_s} | known_s
    machine_s = after.machine_s - before.machine_s
    return used | {
        "elsewhere": max(0.0, machine_s - sum(used.values())),
        "steal": after.steal_s - before.steal_s,
    }


def parent_of(pid: int) -> int | None:
    """The parent's pid, or None where there is no /proc."""
    try:
        return int(_fields(PROC / str(pid) / "stat")[1])
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    cpu_s: float


def _processes() -> dict[int, _Process]:
    found = {}
    for entry in os.scandir(PROC):
        if not entry.name.isdigit():
            continue
        try:
            fields = _fields(PROC / entry.name / "stat")
        except OSError:  # it ended between the listing and the reading
            continue
        # utime, stime, and cutime, cstime: a child that was waited for counts on in its parent.
        found[int(entry.name)] = _Process(int(fields[1]), sum(map(int, fields[11:15])) / TICKS_PER_S)
    return found


def _fields(stat: Path) -> list[str]:
    # The name in brackets may hold anything, so count from behind it.
    return stat.read_text().rpartition(")")[2].split()


def _tree_s(root: int, processes: dict[int, _Process]) -> float:
    members, total = {root}, 0.0
    for pid in sorted(processes, key=lambda each: _depth(each, processes)):
        if pid in members or processes[pid].parent in members:
            members.add(pid)
            total += processes[pid].cpu_s
    return total


def _depth(pid: int, processes: dict[int, _Process]) -> int:
    depth = 0
    while pid in processes and depth < 100:
        pid, depth = processes[pid].parent, depth + 1
    return depth


def _machine() -> tuple[float, float]:
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq) / TICKS_PER_S, steal / TICKS_PER_S
