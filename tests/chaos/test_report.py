"""The report of a run says what its history holds, keeps what strangers wrote harmless, and opens without a word."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.chaos.checks import Example, Verdict, judge
from tests.chaos.checks.evidence import Event
from tests.chaos.checks.histories import HandWritten
from tests.chaos.faults import KINDS
from tests.chaos.points import TARGET_POINTS
from tests.chaos.report import png_of_timeline, write_report
from tests.chaos.report.picture import ARGUMENTS, CHROMIUM
from tests.chaos.report.series import quantile

COMMAND = "python -m tests.chaos --seed 7 --duration-s 20"
MS = 1_000_000
LEASE_MS = 600
HOSTILE = "appointment:</script><script>document.title='taken'</script><!--"
MOST_BYTES = 10_000_000
HELD = Verdict("charged_at_most_once", True, 12, {"violations": 0}, [])


def test_says_that_the_properties_held_and_how_far_that_reaches(tmp_path: Path) -> None:
    page = _page(tmp_path, _killed_while_holding().events, [HELD])

    assert '<h1 id="verdict">Held</h1>' in page
    assert "3 operations" in page
    assert "Nothing broken in 1 holders killed inside and 3 operations" in page
    assert "fewer than 3e+02 % of holders killed inside and 1e+02 % of operations" in page


def test_names_what_is_broken_and_links_to_the_first_error(tmp_path: Path) -> None:
    broken = Verdict(
        "fences_rise",
        False,
        4,
        {"violations": 2},
        [Example("later", 400 * MS), Example("fence 7 after fence 9", 250 * MS, ("op-3",))],
    )

    page = _page(tmp_path, _killed_while_holding().events, [HELD, broken])

    assert '<h1 id="verdict">Broken</h1>' in page
    assert re.search(r'id="first-error" href="#timeline" data-jump="0\.249"', page)
    assert "0.249 s: fences rise: fence 7 after fence 9" in page
    assert "Nothing broken in" not in page


@pytest.mark.parametrize("verdicts", [[], [HELD, Verdict("balances_conserved", None, 0, {}, [Example("no snapshot")])]])
def test_calls_unknown_what_nobody_could_judge(tmp_path: Path, verdicts: list[Verdict]) -> None:
    page = _page(tmp_path, _killed_while_holding().events, verdicts)

    assert '<h1 id="verdict">Unknown</h1>' in page


def test_counts_what_the_events_tell(tmp_path: Path) -> None:
    history = _killed_while_holding()
    settled = Verdict("unknown_is_settled", True, 1, {"unknowns": 1, "committed": 1}, [])

    page = _page(tmp_path, history.events, [HELD, settled])

    assert _tile(page, "Holders killed inside") == "1 of 1 kill; 1 with a waiter"
    assert _tile(page, "Unknown outcomes") == "1 1 of them had committed"
    assert _tile(page, "Charges committed") == "1 in 1 transaction"
    assert "The waiter had the lock at most <strong>12.0 ms</strong>" in page


def test_marks_overlaps_with_their_cause(tmp_path: Path) -> None:
    frozen = HandWritten().fault(1, "freeze", "instance:1", from_ms=110, to_ms=900, point="acquired")
    frozen.hold(1, "appointment:5", 10, from_ms=100, to_ms=910).hold(2, "appointment:5", 11, from_ms=705, to_ms=720)
    frozen.hold(1, "appointment:6", 20, from_ms=2000, to_ms=2050).hold(2, "appointment:6", 21, from_ms=2040, to_ms=2060)

    judged = [each for each in judge(frozen.events) if each.property == "holders_do_not_overlap"]

    page = _page(tmp_path, frozen.events, judged)
    drawn = _drawn(page)

    assert [drawn["rows"][each[0]]["name"] for each in drawn["overlaps"]] == ["appointment:5", "appointment:6"]
    assert [each[1:3] for each in drawn["overlaps"]] == [[704_000, 719_000], [2_039_000, 2_049_000]]
    assert [each[5:] for each in drawn["overlaps"]] == [["fault on the first holder: freeze", 1], ["nothing explains it", 0]]
    assert _tile(page, "Overlapping holds") == "2 of 4 on 2 locks; 1 with no cause beside it"
    assert drawn["errors"][0][0] == 2_039_000


def test_commits_stand_under_their_hold_with_its_fence(tmp_path: Path) -> None:
    drawn = _drawn(_page(tmp_path, _killed_while_holding().events, [HELD]))

    assert [(row["name"], row["least"], row["commits"]) for row in drawn["rows"]] == [
        ("appointment:5", 1_764_000_000_000_001, [[719_000, 1]])
    ]
    bars = drawn["rows"][0]["bars"]
    assert [drawn["ends"][bar[4]] for bar in bars] == ["died", "releasing"]
    assert bars[0][7] == 450_000  # of its lease were left when it died


def test_marks_the_cells_that_were_not_hit(tmp_path: Path) -> None:
    history = HandWritten().fault(1, "die", "instance:1", from_ms=10, to_ms=20, point="decided")
    cells = len(TARGET_POINTS) * sum(kind.targeted for kind in KINDS.values())

    page = _page(tmp_path, history.events, [HELD])

    assert f"{cells - 1} of {cells} cells were not hit" in page
    assert page.count('title="not hit"') == cells - 1


def test_the_schedule_can_be_saved(tmp_path: Path) -> None:
    fault = {"id": 1, "instance": 2, "point": "decided", "nth": 3, "kind": "die"}
    history = HandWritten().event("schedule", faults=[fault])

    uri = re.search(r'href="data:application/json;base64,([^"]+)"', _page(tmp_path, history.events, [HELD]))

    assert uri is not None
    schedule = json.loads(base64.b64decode(uri[1]))
    assert (schedule["version"], schedule["instances"], schedule["faults"]) == (1, 3, [fault])


def test_shows_mutants_worlds_and_whatever_rows_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, _killed_while_holding().events, [HELD], command=COMMAND, **_extras())
    words = _words(path.read_text())

    assert "no guard" in words
    assert "caught charged at most once 30 / 30 1.20 s" in words
    assert "? survived" not in words
    assert "skipped: it needs root" in words
    assert "orders 252" in " ".join(words.split()) or "252" in words


def test_the_smallest_value_that_a_share_does_not_exceed() -> None:
    assert [quantile([3.0, 1.0, 2.0, 4.0], share) for share in (0.25, 0.5, 0.51, 0.99)] == [1.0, 2.0, 3.0, 4.0]
    assert quantile([], 0.5) is None


def test_a_long_history_stays_small(tmp_path: Path) -> None:
    events = synthetic(seed=3, duration_s=30, locks=60, holds_per_s=220)

    page = _page(tmp_path, events, [HELD])
    drawn = _drawn(page)

    assert len(page) < MOST_BYTES
    assert sum(bar[5] for row in drawn["rows"] for bar in row["bars"]) == sum(row["holds"] for row in drawn["rows"])
    assert len(drawn["overlaps"]) > 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    executable = shutil.which("chromium") or CHROMIUM
    if not Path(executable).exists() and "CI" not in os.environ:
        pytest.skip("this needs Chromium (Debian: chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield browser
        browser.close()


def _page(folder: Path, events: Sequence[Event], verdicts: Sequence[Verdict]) -> str:
    path = folder / "report.html"
    write_report(path, events, verdicts, command=COMMAND)
    return path.read_text()


def _drawn(page: str) -> dict[str, Any]:
    """What the timeline is drawn from."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    drawn: dict[str, Any] = json.loads(found[1])
    return drawn


def _words(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def _tile(page: str, title: str) -> str:
    found = re.search(rf"<dt>{title}</dt>(.*?)</div>", page, re.DOTALL)
    assert found is not None
    return _words(found[1])


def _killed_while_holding() -> HandWritten:
    """Instance 1 is killed holding the lock that instance 2 waits for, and takes over 12 ms after its lease."""
    first, second = 1_764_000_000_000_001, 1_764_000_000_000_002
    history = HandWritten().enter("op-1", 5, 71, at_ms=90).enter("op-2", 5, 72, at_ms=95).enter("op-3", 5, 73, at_ms=96)
    history.point("acquired", 1, at_ms=100, name="appointment:5", fence=first)
    history.point("waiting", 2, at_ms=110, name="appointment:5")
    held = [{"name": "appointment:5", "fence": first, "left_ms": 450.0, "waiters": 1}]
    history.event("died", at_ms=250, i=1, life=1, pid=1, held=held).unknown("op-1", at_ms=251)
    history.point("acquired", 2, at_ms=712, name="appointment:5", fence=second, queued=True, takeover=True)
    history.point("committed", 2, at_ms=720, appointments=[5], entries=2, charges=1)
    history.point("releasing", 2, at_ms=725, name="appointment:5", fence=second)
    history.charged("op-2", charge_id=1, payer=72, at_ms=726).already("op-3", at_ms=727)
    return history


def _extras() -> dict[str, Any]:
    mutants = [
        {"mutant": "no_guard", "does": "Charges without any lock.", "caught_by": ["charged_at_most_once"]}
        | {"found_in_s": 1.2, "tried": 30, "found": 30, "matrix": {"freeze": 12, "die": 3}},
        {"mutant": "plain_counter", "caught_by": "fences_rise", "found_in_s": 4.5, "tried": 30, "found": 29}
        | {"matrix": {"flush": 20, "redis_restart": 9}},
    ]
    worlds = [
        {"world": "sentinel", "faults": 12, "operations": 4210, "verdict": True},
        {"world": "power_loss", "faults": None, "operations": None, "verdict": None, "skipped": "it needs root"},
    ]
    interleavings = [{"handlers": 2, "orders": 252, "broken": 0, "took_s": 3.4}]
    return {"mutants": mutants, "worlds": worlds, "interleavings": interleavings}


def synthetic(*, seed: int, duration_s: float, locks: int, holds_per_s: float) -> list[Event]:
    """A history as a run leaves it: crowds on a few locks, holders killed and frozen, Redis wiped now and then."""
    return _Synthetic(seed, duration_s).events(locks, holds_per_s)


class _Synthetic:
    """Writes one lock's story after the other; the instances' own stories follow from the deaths."""

    def __init__(self, seed: int, duration_s: float) -> None:
        self._rng = random.Random(seed)
        self._duration_ms = duration_s * 1000
        self._history = HandWritten()
        self._deaths: list[tuple[float, int, list[dict[str, Any]]]] = []
        self._fault_id = 0

    def events(self, locks: int, holds_per_s: float) -> list[Event]:
        machine = {"cpu": "2 cores of a synthetic machine", "memory_gb": 8, "python": "3.12"}
        facts = {"seed": 7, "world": "plain", "guard": "lock-and-row", "clients": 32, "machine": machine}
        self._history.event("run", at_ms=0, lease_ttl_s=0.6, instances=3, **facts)
        for lock in range(locks):
            self._lock(lock, holds_per_s / (1 + lock / 4) / 4)
        for at_ms in range(3000, int(self._duration_ms), 7000):
            self._fault(self._rng.choice(("flush", "redis_restart")), "redis", at_ms, self._rng.uniform(1, 150))
        for i in (1, 2, 3):
            self._lives(i)
        return [event for event in self._history.events if event["e"] != "run" or "seed" in event]

    def _lock(self, lock: int, per_s: float) -> None:
        rng, at_ms, number, holder = self._rng, self._rng.uniform(0, 400), 0, 1
        while at_ms < self._duration_ms - 3 * LEASE_MS:
            number, holder = number + 1, rng.choice((1, 2, 3))
            fence = 1_764_000_000_000_000 + int(at_ms * 1000)
            fate = rng.random()
            name = f"appointment:{lock + 100}"
            if fate < 0.004:
                self._history.point("acquired", holder, at_ms=at_ms, name=name, fence=fence, queued=True)
                at_ms = self._dies(name, holder, fence, at_ms)
            elif fate < 0.007:
                at_ms = self._freezes(name, holder, fence, at_ms)
            else:
                at_ms = self._ordinary(lock, number, holder, fence, at_ms)
            at_ms += 0.5 if rng.random() < 0.7 else rng.expovariate(per_s) * 1000

    def _ordinary(self, lock: int, number: int, holder: int, fence: int, at_ms: float) -> float:
        took_ms = self._rng.lognormvariate(1.6, 0.5)
        op, name = f"{lock}-{number}", f"appointment:{lock + 100}"
        self._history.enter(op, lock + 100, 1, at_ms=max(0.0, at_ms - self._rng.lognormvariate(2.5, 0.8)))
        self._history.hold(holder, name, fence, from_ms=at_ms, to_ms=at_ms + took_ms)
        self._history.point("committed", holder, at_ms=at_ms + took_ms * 0.9, appointments=[lock + 100], entries=1, charges=1)
        if self._rng.random() < 0.02:
            self._history.unknown(op, at_ms=at_ms + took_ms + 30)
        elif self._rng.random() < 0.06:
            self._history.refused(op, "coupons-missing", at_ms=at_ms + took_ms + 1)
        else:
            self._history.charged(op, charge_id=lock * 100_000 + number, payer=1, at_ms=at_ms + took_ms + 1)
        return at_ms + took_ms

    def _dies(self, name: str, holder: int, fence: int, at_ms: float) -> float:
        died_ms, left_ms = at_ms + 4, LEASE_MS - 4
        other = holder % 3 + 1
        self._history.point("waiting", other, at_ms=at_ms + 1, name=name)
        self._deaths.append((died_ms, holder, [{"name": name, "fence": fence, "left_ms": left_ms, "waiters": 1}]))
        self._fault("die", f"instance:{holder}", died_ms, 60)
        taken_ms = died_ms + left_ms + self._rng.lognormvariate(1.8, 0.6)
        self._history.point("acquired", other, at_ms=taken_ms, name=name, fence=fence + 700_000, queued=True, takeover=True)
        self._history.point("releasing", other, at_ms=taken_ms + 6, name=name, fence=fence + 700_000)
        return taken_ms + 8

    def _freezes(self, name: str, holder: int, fence: int, at_ms: float) -> float:
        lasts_ms, other = self._rng.uniform(0.8, 1.6) * LEASE_MS, holder % 3 + 1
        self._fault("freeze", f"instance:{holder}", at_ms + 1, lasts_ms)
        self._history.hold(holder, name, fence, from_ms=at_ms, to_ms=at_ms + lasts_ms + 3, still_ours=lasts_ms < LEASE_MS)
        if lasts_ms > LEASE_MS:
            self._history.hold(other, name, fence + 650_000, from_ms=at_ms + LEASE_MS + 4, to_ms=at_ms + LEASE_MS + 12)
        return at_ms + lasts_ms + 20

    def _fault(self, kind: str, scope: str, at_ms: float, lasts_ms: float) -> None:
        self._fault_id += 1
        point = self._rng.choice(TARGET_POINTS) if scope.startswith("instance") else None
        self._history.fault(self._fault_id, kind, scope, from_ms=at_ms, to_ms=at_ms + lasts_ms, point=point)

    def _lives(self, i: int) -> None:
        """The points of all lives say life 1; that is enough to look at."""
        self._history.event("born", at_ms=1, i=i, life=1, pid=i)
        for life, (at_ms, _, held) in enumerate(sorted(death for death in self._deaths if death[1] == i), 1):
            self._history.event("died", at_ms=at_ms, i=i, life=life, pid=i, how="killed", held=held)
            self._history.event("born", at_ms=at_ms + 55, i=i, life=life + 1, pid=i)
