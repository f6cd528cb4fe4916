"""What a search has found, told so that it can be found again."""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.trial import Trial


@dataclass(frozen=True, slots=True)
class Finding:
    """A trial that breaks properties: each with an example."""

    trial: Trial
    violations: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        told = [f"  {name}: {text}" for name, text in self.violations]
        return "\n".join([self.trial.command, *told])


@dataclass(frozen=True, slots=True)
class Tally:
    """What some runs were: how many, their simulated seconds, events and commands, and the CPU seconds they took."""

    runs: int = 0
    simulated_s: float = 0.0
    events: int = 0
    commands: int = 0
    cpu_s: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.runs + other.runs,
            self.simulated_s + other.simulated_s,
            self.events + other.events,
            self.commands + other.commands,
            self.cpu_s + other.cpu_s,
        )

    def __str__(self) -> str:
        cpu_s = max(self.cpu_s, 1e-9)
        return (
            f"{self.runs:,} runs, {self.simulated_s:,.0f} simulated s, {self.events:,} events,"
            f" {self.commands:,} commands in {self.cpu_s:,.1f} s of CPU:"
            f" {self.simulated_s / cpu_s:,.0f} simulated s/s, {self.events / cpu_s:,.0f}"
            f" events/s, {1000 * cpu_s / max(1, self.runs):.1f} ms a run"
        )
