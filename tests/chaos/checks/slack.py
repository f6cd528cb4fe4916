"""How far what a history tells may be from what was: much on a real machine, nothing in a simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.chaos.checks.promises import MS, RUN_TURNS


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """What a checker has to allow for, by the run; times in ns.

    `is_exact`: the history has the true times, every standstill, and with each lease its end by its holder's clock.
    """

    is_exact: bool
    unseen_ns: int  # a standstill that is not recorded, and what a busy machine adds to it
    moment_ns: int  # between two standstills: what is read then was sent before them
    settled_ns: int  # whoever waits for less than that may still be on its way
    delay_ns: int  # the longest that a message is on its way while no fault holds it up
    turns: int  # of a run that the server knows by one token


# An event loop that stands still for less than 25 ms is not recorded as a stall.
NOISY = Slack(is_exact=False, unseen_ns=150 * MS, moment_ns=5 * MS, settled_ns=50 * MS, delay_ns=0, turns=1)
EXACT = Slack(is_exact=True, unseen_ns=0, moment_ns=0, settled_ns=0, delay_ns=MS, turns=RUN_TURNS)


def slack_of(run: Mapping[str, Any]) -> Slack:
    """By the event `run`: `exact`, and of an exact one `longest_delay_s` (one way, 1 ms where it is left out)."""
    if not run.get("exact"):
        return NOISY
    delay_s = run.get("longest_delay_s")
    if delay_s is None:
        return EXACT
    return replace(EXACT, delay_ns=round(delay_s * 1e9))
