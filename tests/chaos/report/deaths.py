"""Holders that were killed while they held a lock, and what the store told of their leases right after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.checks.evidence import Event, Evidence

Key = tuple[str, object, str, int | None]  # instance, life, name, fence


@dataclass(frozen=True, slots=True)
class KilledHolder:
    """`died`: when (ns). `lapses`: when its lease runs out; None where the store did not tell."""

    key: Key
    died: int
    lapses: int | None


def is_kill(death: Event) -> bool:
    """Whether this life was killed; one that was drained had time to give back what it held."""
    return bool(death.get("how", "killed") == "killed")


def killed_holders(evidence: Evidence) -> Sequence[KilledHolder]:
    """One for each lock that a killed life held, in order of time."""
    return [
        KilledHolder(
            (str(event["i"]), event.get("life"), str(held["name"]), held.get("fence")),
            event["t"],
            None if held.get("left_ms") is None else event["t"] + int(held["left_ms"] * 1e6),
        )
        for event in evidence.by_kind["died"]
        if is_kill(event)
        for held in event.get("held") or ()
    ]
