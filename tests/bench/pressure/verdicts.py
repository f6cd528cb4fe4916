"""From windows to verdicts: what a scene found, against what, and whether that is enough. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tests.bench.ground import Counted


@dataclass(frozen=True, slots=True)
class Lag:
    """How often the workers looked how late their event loops were, and how often that was more than 50 ms."""

    looks: int
    late: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one measured window of one contestant saw. Anything in `faults` makes it worthless."""

    contestant: str
    measured_s: float
    answered: int
    per_s: float
    latency_ms: dict[str, float] = field(default_factory=dict)
    cpu_us: dict[str, float] = field(default_factory=dict)
    lag: Lag | None = None
    notes: dict[str, float] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A figure, the one it is held against, and how their ratio should stand to the target.

    `value` is None when it could not be measured, `target` is None when it is only told.
    """

    what: str
    figure: float | None
    peer: float | None
    value: float | None
    target: float | None
    bound: Literal["at least", "at most"] = "at least"

    @property
    def passed(self) -> bool | None:
        """None when there is nothing to judge."""
        if self.value is None or self.target is None:
            return None
        return self.value >= self.target if self.bound == "at least" else self.value <= self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneResult:
    """All that a scene found. `not_measured` says why something is missing; that is no failure."""

    scene: str
    windows: list[Window]
    verdicts: list[Verdict]
    not_measured: str | None = None
    faults: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """No fault anywhere, and no target missed."""
        faultless = not self.faults and not any(each.faults for each in self.windows)
        return faultless and all(each.passed is not False for each in self.verdicts)

    def with_faults(self, faults: Sequence[str]) -> SceneResult:
        """The same, and these faults too."""
        return replace(self, faults=(*self.faults, *faults))

    def as_json(self) -> dict[str, Any]:
        """As it goes into bench-pressure.json."""
        verdicts = [asdict(each) | {"passed": each.passed} for each in self.verdicts]
        return asdict(self) | {"verdicts": verdicts, "passed": self.passed}


def median_per_s(windows: Sequence[Window], contestant: str) -> float | None:
    """Over the contestant's windows without a fault; None without any."""
    return _median([each.per_s for each in _sound(windows, contestant)])


def median_latency_ms(windows: Sequence[Window], contestant: str, percentile: str) -> float | None:
    """The same for one of its latencies."""
    return _median([each.latency_ms[percentile] for each in _sound(windows, contestant)])


def at_least(what: str, figure: float | None, peer: float | None, target: float | None) -> Verdict:
    """The figure should be so many times the peer's."""
    return Verdict(what=what, figure=figure, peer=peer, value=ratio(figure, peer), target=target)


def at_most(what: str, figure: float | None, peer: float | None, target: float | None) -> Verdict:
    """The figure should be no more than so many times the peer's."""
    value = ratio(figure, peer)
    return Verdict(what=what, figure=figure, peer=peer, value=value, target=target, bound="at most")


def lags_of(windows: Sequence[Window]) -> list[Lag | None]:
    """What each window saw of the event loops."""
    return [each.lag for each in windows]


def loop_was_free(lags: Sequence[Lag | None]) -> list[Verdict]:
    """No look at an event loop found it more than 50 ms late; nothing to judge where nobody looked."""
    known = [each for each in lags if each is not None]
    looks, late = sum(each.looks for each in known), sum(each.late for each in known)
    if not looks:
        return []
    what = "event loop over 50 ms late, of all looks"
    return [Verdict(what=what, figure=late, peer=looks, value=late, target=0, bound="at most")]


def faults_of(
    answers: Mapping[str, int], before: Counted | None, after: Counted | None, *, wanted: Collection[str]
) -> tuple[str, ...]:
    """Answers that nobody wanted, and rows that are more or fewer than the answers."""
    faults = [f"{count} answers were {what}" for what, count in sorted(answers.items()) if what not in wanted]
    charged, repeats = answers.get("201 charged", 0), answers.get("200 already_charged", 0)
    if before is not None and after is not None:
        promised = Counted(
            charges=before.charges + charged,
            entries=before.entries + charged + repeats,
            marked=before.marked + charged,
        )
        if after != promised:
            faults.append(f"the answers promise {promised}, Postgres holds {after}")
    return tuple(faults)


def ratio(figure: float | None, peer: float | None) -> float | None:
    """None where one of them is not known."""
    return figure / peer if figure is not None and peer else None


def _sound(windows: Sequence[Window], contestant: str) -> list[Window]:
    return [each for each in windows if each.contestant == contestant and not each.faults]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
