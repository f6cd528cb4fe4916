"""Tells of what searches find: the first findings as they come, a line from time to time, and the tally at the end."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable

from tests.sim.search.finding import Finding, Tally
from tests.sim.search.running import search
from tests.sim.trial import Trial

SHOWN = 10
EVERY_S = 10.0
ALL_IS_WELL = "nothing is broken"


class Report:
    """Some searches, one after another. `arguments`: processes, only. `seconds`: how long they may take together."""

    def __init__(self, arguments: argparse.Namespace, *, seconds: float | None = None) -> None:
        self._processes: int = arguments.processes
        self._only = set(arguments.only or ())
        self._began_s = self._told_s = time.monotonic()
        self._seconds = seconds
        self._tally = Tally()
        self._findings = 0
        self._properties = Counter[str]()

    def search(self, trials: Iterable[Trial], *, until: float = 1.0, of: str | None = None) -> None:
        """One search. `until`: a part of the time, and then it ends. `of`: has a tally of its own."""
        until_s = None if self._seconds is None else self._began_s + until * self._seconds
        before = self._tally.runs
        own = Tally()
        for more, found in search(trials, processes=self._processes, until_s=until_s):
            own += more
            self._tally += more
            for finding in found:
                self._tell(finding)
            self._tell_progress()
        if of is not None and self._tally.runs > before:
            print(f"{of}: {own}", flush=True)

    def end(self) -> int:
        """The exit status. Raises ValueError where the time was too short for a run."""
        if not self._tally.runs:
            raise ValueError(f"--seconds: no run began within {self._seconds:g} s")
        print(self._tally)
        if not self._findings:
            print(f"{ALL_IS_WELL} of {', '.join(sorted(self._only))}" if self._only else ALL_IS_WELL)
            return 0
        counts = ", ".join(f"{name} {count}" for name, count in self._properties.most_common())
        print(f"{self._findings} of them break something: {counts}")
        return 1

    def _tell(self, finding: Finding) -> None:
        broken = {name for name, _ in finding.violations}
        if self._only and not broken & self._only:
            return
        self._findings += 1
        self._properties.update(broken)
        if self._findings <= SHOWN:
            print(finding, flush=True)

    def _tell_progress(self) -> None:
        now_s = time.monotonic()
        if sys.stderr.isatty() and now_s - self._told_s >= EVERY_S:
            self._told_s = now_s
            since_s = now_s - self._began_s
            told = f"{since_s:,.0f} s: {self._tally.runs:,} runs, {self._findings:,} of them break something"
            print(told, file=sys.stderr, flush=True)
