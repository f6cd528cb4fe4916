"""What the page's timeline draws, small enough for any length of run: rows of bars, faults, lives, overlaps.

A bar is [after the previous bar's beginning, length, holder, fence above the row's least or -1, end, how many holds,
lane, lapses so long after its end, takeover]; all times in µs. Ordinary holds that follow one another closely are drawn
as one once there are too many of them; whatever overlapped, died, was lost or lapsed stays as it was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.holds import Hold
from tests.chaos.report.deaths import killed_holders
from tests.chaos.report.moments import origin_of
from tests.chaos.report.overlaps import Explained
from tests.chaos.report.scopes import instance_of

HOTTEST = 40
MOST_ROWS = 3_000
MOST_BARS = 60_000
MOST_FAULTS = 20_000
MOST_STALLS = 20_000
MOST_OVERLAPS = 5_000
ENDS = ("releasing", "died", "lost", "until", "exported", "open", "released")
MIXED = -1
WHOLE_ROW, UPPER, LOWER = 0, 1, 2

Numbers = list[int]


class Timeline:
    """Chooses the locks, thins them out, and gives the rest as plain JSON."""

    def __init__(self, evidence: Evidence, overlaps: Sequence[Explained]) -> None:
        self._evidence = evidence
        self._origin = origin_of(evidence)
        self._overlaps = overlaps
        self._overlapping = {id(hold) for each in overlaps for hold in (each.overlap.earlier, each.overlap.later)}
        self._lapses = {holder.key: holder.lapses for holder in killed_holders(evidence)}
        self._names = _choose(evidence.holds_by_name, {each.overlap.earlier.name for each in overlaps})
        self._gap_ns = self._gap_that_fits()
        self._takeovers = {
            (event["name"], event.get("fence")) for event in evidence.points["acquired"] if event.get("takeover")
        }
        self._commits = _commits(evidence)
        found = {str(hold.i) for name in self._names for hold in evidence.holds_by_name[name]}
        self._holders = sorted(found, key=lambda who: (not who.isdecimal(), int(who) if who.isdecimal() else 0, who))

    def as_json(self, errors: Sequence[tuple[int, str]]) -> dict[str, Any]:
        """`errors`: when (ns) and what, the first one first."""
        evidence = self._evidence
        kinds = sorted({fault.kind for fault in evidence.faults})
        return {
            "length": self._since(evidence.last_t),
            "lease": evidence.lease_ttl_ns // 1000,
            "holders": self._holders,
            "ends": ENDS,
            "kinds": kinds,
            "gap": self._gap_ns // 1000,
            "hottest": min(HOTTEST, len(self._names)),
            "of": len(evidence.holds_by_name),
            "rows": [self._row(name) for name in self._names],
            "overlaps": self._overlaps_as_json(),
            "faults": self._faults(kinds),
            "lives": self._lives(),
            "stalls": [
                [str(each["i"]), self._since(each["from"]), self._since(each["to"])]
                for each in evidence.by_kind["stall"][:MOST_STALLS]
            ],
            "errors": [[self._since(at), text] for at, text in errors],
            "healing": next((self._since(event["t"]) for event in evidence.by_kind["healing"]), None),
        }

    def _row(self, name: str) -> dict[str, Any]:
        holds = self._evidence.holds_by_name[name]
        least = min((hold.fence for hold in holds if hold.fence is not None), default=0)
        bars: list[Numbers] = []
        commits: list[Numbers] = []
        previous, lane, upper_ends = 0, WHOLE_ROW, 0
        for group in self._grouped(holds):
            first, last = group[0], group[-1]
            began, ended = self._since(first.began), self._since(last.ended)
            lane = WHOLE_ROW if id(first) not in self._overlapping else UPPER if upper_ends <= began else LOWER
            upper_ends = ended if lane == UPPER else upper_ends
            holder = self._holders.index(str(first.i)) if len({hold.i for hold in group}) == 1 else MIXED
            fence = -1 if last.fence is None else last.fence - least
            bars.append(
                [
                    *(began - previous, max(1, ended - began), holder, fence, ENDS.index(last.how), len(group), lane),
                    *(self._left(last), int((first.name, first.fence) in self._takeovers)),
                ]
            )
            made = [[self._since(at), fence] for hold in group for at in self._under(hold)]
            commits.extend(made if len(group) == 1 else made[-1:])
            previous = began
        return {"name": name, "holds": len(holds), "least": least, "bars": bars, "commits": commits}

    def _under(self, hold: Hold) -> Sequence[int]:
        """The commits made under a hold."""
        made = self._commits.get((str(hold.i), hold.life, hold.name), ())
        return made[bisect_right(made, hold.began) : bisect_right(made, hold.ended)]

    def _left(self, hold: Hold) -> int:
        """µs from the holder's death to its lease's end."""
        lapses = self._lapses.get((str(hold.i), hold.life, hold.name, hold.fence))
        return 0 if lapses is None else max(0, (lapses - hold.ended) // 1000)

    def _gap_that_fits(self) -> int:
        """Holds less than so many ns apart (0: none) are to be drawn as one, so that few enough bars are left."""
        holds = [self._evidence.holds_by_name[name] for name in self._names]
        gaps = sorted(
            max(0, after.began - before.ended)
            for same in holds
            for before, after in pairwise(same)
            if self._is_ordinary(before) and self._is_ordinary(after)
        )
        surplus = min(sum(map(len, holds)) - MOST_BARS, len(gaps))
        return gaps[surplus - 1] + 1 if surplus > 0 else 0

    def _grouped(self, holds: Sequence[Hold]) -> list[list[Hold]]:
        """Holds in groups that are drawn as one bar each."""
        groups = [[hold] for hold in holds[:1]]
        for before, after in pairwise(holds):
            is_near = after.began - before.ended < self._gap_ns
            if is_near and self._is_ordinary(before) and self._is_ordinary(after):
                groups[-1].append(after)
            else:
                groups.append([after])
        return groups

    def _is_ordinary(self, hold: Hold) -> bool:
        return hold.how == "releasing" and id(hold) not in self._overlapping

    def _overlaps_as_json(self) -> list[list[int | str]]:
        """[row, from, to, first holder, second holder, cause, whether it explains it]."""
        rows = {name: index for index, name in enumerate(self._names)}
        holder = {who: index for index, who in enumerate(self._holders)}
        found: list[list[int | str]] = []
        for each in self._overlaps[:MOST_OVERLAPS]:
            overlap = each.overlap
            if overlap.earlier.name in rows:
                began, ended = self._since(overlap.began), self._since(overlap.ended)
                two = holder[str(overlap.earlier.i)], holder[str(overlap.later.i)]
                found.append(
                    [rows[overlap.earlier.name], began, max(began + 1, ended), *two, each.cause, int(each.explained)]
                )
        return found

    def _faults(self, kinds: Sequence[str]) -> list[list[int | str]]:
        """[from, to, kind, id, instance or empty when it strikes everybody, point or empty]."""
        number = {kind: index for index, kind in enumerate(kinds)}
        return [
            [
                *(self._since(each.began), self._since(each.ended), number[each.kind]),
                *(str(each.id), instance_of(each), each.point or ""),
            ]
            for each in self._evidence.faults[:MOST_FAULTS]
        ]

    def _lives(self) -> list[list[int | str]]:
        """[instance, life, from, to, how it ended or empty]."""
        died = {(event["i"], event["life"]): event for event in self._evidence.by_kind["died"]}
        lives: list[list[int | str]] = []
        for event in self._evidence.by_kind["born"]:
            end = died.get((event["i"], event["life"]))
            until = self._evidence.last_t if end is None else end["t"]
            how = "" if end is None else str(end.get("how", "killed"))
            lives.append([str(event["i"]), event["life"], self._since(event["t"]), self._since(until), how])
        return lives

    def _since(self, at: int) -> int:
        return (at - self._origin) // 1000


def _choose(holds: Mapping[str, Sequence[Hold]], overlapped: set[str]) -> list[str]:
    """The hottest locks, then those with an overlap, then the others, while they are few enough."""
    by_heat = sorted(holds, key=lambda name: (-len(holds[name]), name))
    hottest, others = by_heat[:HOTTEST], by_heat[HOTTEST:]
    with_overlap = [name for name in others if name in overlapped]
    return [*hottest, *with_overlap, *(name for name in others if name not in overlapped)][:MOST_ROWS]


def _commits(evidence: Evidence) -> Mapping[tuple[str, int, str], list[int]]:
    """When (ns) who committed for which appointment's lock."""
    made: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for event in evidence.points["committed"]:
        for appointment in event.get("appointments") or ():
            made[str(event["i"]), event.get("life", 0), f"appointment:{appointment}"].append(event["t"])
    return made
