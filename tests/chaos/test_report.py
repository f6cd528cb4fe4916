"""The report of a run says what its history holds, keeps what strangers wrote harmless, and opens without a word."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.chaos.checks import Example, Verdict, judge
from tests.chaos.checks.evidence import Event
from tests.chaos.checks.histories import HandWritten
from tests.chaos.faults import KINDS
from tests.chaos.points import TARGET_POINTS
from tests.chaos.report import timeline, write_report
from tests.chaos.report.kinds import ROOT_WORLDS
from tests.chaos.report.picture import ARGUMENTS, CHROMIUM, take_timeline
from tests.chaos.report.series import quantile
from tests.chaos.worlds import WORLDS

COMMAND = "python -m tests.chaos --seed 7 --duration-s 20"
MS = 1_000_000
LEASE_MS = 600
HOSTILE = "appointment:</script><script>document.title='taken'</script><!--"
HELD = Verdict("charged_at_most_once", True, 12, {"violations": 0}, [])


def test_says_that_the_properties_held_and_how_far_that_reaches(tmp_path: Path) -> None:
    page = _page(tmp_path, _killed_while_holding().events, [HELD])

    assert '<h1 id="verdict">Held</h1>' in page
    assert "3 operations" in page
    assert "Nothing broken" not in page  # of three operations nothing follows


def test_states_the_bound_where_there_was_enough(tmp_path: Path) -> None:
    history = HandWritten()
    for number in range(1, 301):
        history.enter(f"op-{number}", 5, number).already(f"op-{number}")

    page = _page(tmp_path, history.events, [HELD])

    assert "Nothing broken in 300 operations" in page
    assert "fewer than 1 % of operations break anything" in _words(page)


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
    assert re.search(r'id="first-error" href="#timeline" data-jump="0\.16"', page)
    assert "0.160 s: fences rise: fence 7 after fence 9" in page
    assert "1 of 2 properties did not hold: fences rise ." in _words(page)
    assert "Nothing broken in" not in page


@pytest.mark.parametrize("verdicts", [[], [HELD, Verdict("balances_conserved", None, 0, {}, [Example("no snapshot")])]])
def test_calls_unknown_what_nobody_could_judge(tmp_path: Path, verdicts: list[Verdict]) -> None:
    page = _page(tmp_path, _killed_while_holding().events, verdicts)

    assert '<h1 id="verdict">Unknown</h1>' in page


def test_counts_what_the_events_tell(tmp_path: Path) -> None:
    history = _killed_while_holding()
    settled = Verdict("unknown_is_settled", True, 1, {"unknowns": 1, "committed": 1}, [])

    page = _page(tmp_path, history.events, [HELD, settled])

    assert _tile(page, "Holders killed inside") == "1 of 1 kill; they held 1 lock"
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
    assert [each[1:3] for each in drawn["overlaps"]] == [[605_000, 620_000], [1_940_000, 1_950_000]]
    assert [each[5:] for each in drawn["overlaps"]] == [
        ["fault on the first holder: freeze", 1],
        ["nothing explains it", 0],
    ]
    assert _tile(page, "Overlapping holds") == "2 of 4 on 2 locks; 1 with no cause beside it"
    assert drawn["errors"][0][0] == 1_940_000


def test_commits_stand_under_their_hold_with_its_fence(tmp_path: Path) -> None:
    drawn = _drawn(_page(tmp_path, _killed_while_holding().events, [HELD]))

    assert [(row["name"], row["least"], row["commits"]) for row in drawn["rows"]] == [
        ("appointment:5", 1_764_000_000_000_001, [[630_000, 1]])
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
    assert "survived" not in words
    assert "skipped: it needs root" in words
    assert "handlers orders broken took s 2 252 0 3.4" in words


def test_the_smallest_value_that_a_share_does_not_exceed() -> None:
    assert [quantile([3.0, 1.0, 2.0, 4.0], share) for share in (0.25, 0.5, 0.51, 0.99)] == [1.0, 2.0, 3.0, 4.0]
    assert quantile([], 0.5) is None


def test_a_long_history_is_thinned_out_and_no_hold_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = synthetic(seed=3, duration_s=6, locks=20, holds_per_s=200)
    monkeypatch.setattr(timeline, "MOST_BARS", 1000)

    drawn = _drawn(_page(tmp_path, events, [HELD]))
    bars = [bar for row in drawn["rows"] for bar in row["bars"]]

    assert len(bars) <= 1000 < sum(row["holds"] for row in drawn["rows"])
    assert sum(bar[5] for bar in bars) == sum(row["holds"] for row in drawn["rows"])
    assert len(drawn["overlaps"]) > 0
    assert all(bar[5] == 1 for bar in bars if drawn["ends"][bar[4]] == "died" or bar[6])


def test_marks_every_world_that_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert {name for name, world in WORLDS.items() if "root" in (world.needs() or "")} == ROOT_WORLDS


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


def test_what_strangers_wrote_does_nothing(tmp_path: Path, browser: Browser) -> None:
    history = HandWritten().hold(1, HOSTILE, 10, from_ms=100, to_ms=300).hold(2, HOSTILE, 11, from_ms=200, to_ms=250)
    broken = Verdict("fences_rise", False, 1, {HOSTILE: 1}, [Example(HOSTILE, 200 * MS, (HOSTILE,))])
    path = tmp_path / "report.html"
    extras = {"mutants": [{"mutant": HOSTILE, "caught_by": HOSTILE, "found": 1, "tried": 1, "matrix": {HOSTILE: 1}}]}
    write_report(path, history.events, [broken], command=HOSTILE, **extras)

    with _opened(browser, path) as page:
        assert page.title() == "Broken: chargeonce under faults, seed –"
        assert page.locator("#replay code").first.inner_text() == HOSTILE
        assert page.evaluate("JSON.parse(document.getElementById('data').textContent).rows[0].name") == HOSTILE


def test_is_looked_at_with_keys_and_links(tmp_path: Path, browser: Browser) -> None:
    events = synthetic(seed=3, duration_s=9, locks=10, holds_per_s=100)
    broken = Verdict("fences_rise", False, 1, {}, [Example("the fence fell", 4000 * MS)])
    path = tmp_path / "report.html"
    write_report(path, events, [broken], command=COMMAND, **_extras())

    with _opened(browser, path) as page:
        readout = page.locator("#readout")
        assert readout.inner_text().endswith(" s. fences rise: the fence fell")
        page.locator("#bars").press("0")
        assert readout.inner_text().startswith("Showing 0.000 s to")
        page.locator("#bars").press("n")
        assert readout.inner_text().startswith("Overlap ")
        page.locator("#first-error").click()
        assert readout.inner_text().endswith(" s. fences rise: the fence fell")


def test_can_be_read_by_everybody(tmp_path: Path, browser: Browser) -> None:
    path = tmp_path / "report.html"
    write_report(path, _killed_while_holding().events, [HELD], command=COMMAND, **_extras())

    with _opened(browser, path) as page:
        light = Axe().run(page)
        page.emulate_media(color_scheme="dark")
        dark = Axe().run(page, options={"runOnly": ["color-contrast"]})

    assert light.violations_count == 0, light.generate_report()
    assert dark.violations_count == 0, dark.generate_report()


def test_takes_a_picture_of_the_timeline(tmp_path: Path, browser: Browser) -> None:
    path, picture = tmp_path / "report.html", tmp_path / "timeline.png"
    write_report(path, _killed_while_holding().events, [HELD], command=COMMAND)

    take_timeline(browser, path, picture, scheme="dark")

    assert picture.read_bytes().startswith(b"\x89PNG")


@contextmanager
def _opened(browser: Browser, path: Path, **options: Any) -> Iterator[Page]:
    """The report in a window of its own; the browser may not complain of anything, nor ask anybody for anything."""
    page = browser.new_page(viewport={"width": 1200, "height": 800}, **options)
    complaints: list[str] = []
    page.on("console", lambda line: complaints.append(line.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: complaints.extend([] if request.url.startswith(("file:", "data:")) else [request.url]),
    )
    page.goto(path.as_uri())
    page.wait_for_selector("#timeline[data-drawn]")
    yield page
    page.close()
    assert complaints == []


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
        born_ms = {i: self._lives(i) for i in (1, 2, 3)}
        events = [event for event in self._history.events if event["e"] != "run" or "seed" in event]
        for event in events:
            if event["e"] == "point":
                event["life"] = bisect_right(born_ms[event["i"]], event["t"] / MS)
        return events

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
        self._history.point(
            "committed", holder, at_ms=at_ms + took_ms * 0.9, appointments=[lock + 100], entries=1, charges=1
        )
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
        next_fence = fence + int((taken_ms - at_ms) * 1000)
        self._history.point("acquired", other, at_ms=taken_ms, name=name, fence=next_fence, queued=True, takeover=True)
        self._history.point("releasing", other, at_ms=taken_ms + 6, name=name, fence=next_fence)
        return taken_ms + 8

    def _freezes(self, name: str, holder: int, fence: int, at_ms: float) -> float:
        lasts_ms, other = self._rng.uniform(0.8, 1.6) * LEASE_MS, holder % 3 + 1
        self._fault("freeze", f"instance:{holder}", at_ms + 1, lasts_ms)
        self._history.hold(
            holder, name, fence, from_ms=at_ms, to_ms=at_ms + lasts_ms + 3, still_ours=lasts_ms < LEASE_MS
        )
        if lasts_ms > LEASE_MS:
            self._history.hold(
                other, name, fence + (LEASE_MS + 4) * 1000, from_ms=at_ms + LEASE_MS + 4, to_ms=at_ms + LEASE_MS + 12
            )
        return at_ms + lasts_ms + 20

    def _fault(self, kind: str, scope: str, at_ms: float, lasts_ms: float) -> None:
        self._fault_id += 1
        point = self._rng.choice(TARGET_POINTS) if scope.startswith("instance") else None
        self._history.fault(self._fault_id, kind, scope, from_ms=at_ms, to_ms=at_ms + lasts_ms, point=point)

    def _lives(self, i: int) -> list[float]:
        """When (ms) each life of the instance began."""
        born_ms = [0.0]
        for at_ms, _, held in sorted(death for death in self._deaths if death[1] == i):
            self._history.event("died", at_ms=at_ms, i=i, life=len(born_ms), pid=i, how="killed", held=held)
            born_ms.append(at_ms + 0.001)
        for life, at_ms in enumerate(born_ms, 1):
            self._history.event("born", at_ms=at_ms + 55, i=i, life=life, pid=i)
        return born_ms
