"""Names of 200 characters, narrow windows, zoom, the keyboard, and the axes of the charts."""

from __future__ import annotations

import itertools
import re
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenWindow, Stage, paths_of_views
from tests.contract.page import lease
from tests.harness import wait_until

# 1,280 pixels at 200 % are as wide as 640.
WIDTHS = (375, 640, 1280)
LONG = "layout:" + "x" * 150 + "/" + "-".join(["2026"] * 8) + "END"
IN_SIGHT = 1  # pixels that rounding may cost


@pytest.fixture(scope="module")
def held(stage: Stage) -> str:
    """A lock with the longest name, held for as long as the module, and known to all."""
    assert len(LONG) == 200
    lease(stage.api, LONG, ttl_ms=600_000, headers={"X-Request-Id": "r" * 64})
    answers = (stage.api.get("/v1/locks", user=1, scope="monitor").body.decode() for _ in itertools.count())
    wait_until(lambda: LONG in next(answers), what="the lock in the list")
    return LONG


@pytest.fixture(scope="module")
def views(stage: Stage, held: str) -> dict[str, str]:
    wait_until(lambda: stage.load.appointments, what="an appointment of the load")
    return paths_of_views(lock=held, appointment_id=stage.load.appointments[0])


@pytest.mark.parametrize("width", WIDTHS)
def test_no_view_is_wider_than_its_window_and_the_menu_is_whole(
    window: OpenWindow, views: dict[str, str], width: int
) -> None:
    looker = window("operator")
    looker.page.set_viewport_size({"width": width, "height": 800})
    for key, path in views.items():
        page = looker.open(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, key
        for entry in page.locator(".menu a, .tools button:visible").all():
            box = entry.bounding_box()
            assert box is not None
            assert box["x"] >= 0, (key, entry.inner_text())
            assert box["x"] + box["width"] <= width, (key, entry.inner_text())


@pytest.mark.parametrize(("width", "seen"), [(375, ["Lock", "Waiters", "Holder"]), (640, ["Lock", "Held for"])])
def test_a_name_of_200_characters_leaves_the_columns_that_matter_in_sight(
    window: OpenWindow, held: str, width: int, seen: list[str]
) -> None:
    looker = window("monitor")
    looker.page.set_viewport_size({"width": width, "height": 800})
    page = looker.open(f"/locks?search={quote(LONG)}")
    assert [name for name in _columns_in_sight(page) if name in seen] == seen


def test_at_1280_pixels_every_column_of_every_view_is_in_sight(window: OpenWindow, views: dict[str, str]) -> None:
    looker = window("monitor")
    for key, path in {**views, "locks": f"/locks?search={quote(LONG)}"}.items():
        page = looker.open(path)
        page.keyboard.press("p")
        for region in page.locator("#seen .scroll:visible:not(.heat)").all():
            hidden = region.evaluate("each => each.scrollWidth - each.clientWidth")
            assert hidden <= IN_SIGHT, (key, region.get_attribute("aria-label"))


def test_at_375_pixels_no_number_of_the_overview_is_cut(window: OpenWindow, held: str) -> None:
    looker = window("monitor")
    looker.page.set_viewport_size({"width": 375, "height": 800})
    page = looker.open()
    expect(page.locator(".quiet td .lock").first).to_be_visible()
    page.keyboard.press("p")
    for region in page.locator("#seen .quiet-box").all():
        cut = region.evaluate("each => each.scrollWidth - each.clientWidth")
        assert cut <= IN_SIGHT, region.get_attribute("aria-label")
    details = page.locator("#seen td.details").first.bounding_box()
    assert details is not None
    assert details["width"] >= 256


def test_a_page_that_is_not_live_does_not_say_that_it_connects(window: OpenWindow, held: str) -> None:
    looker = window("operator")
    looker.page.goto(f"{looker.url}/dashboard/locks/{quote(held, safe='')}/force-release")
    expect(looker.page.locator("#reason")).to_be_visible()
    expect(looker.page.locator("#pause")).to_be_hidden()


def test_a_long_name_can_be_read_whole_and_copied(window: OpenWindow, held: str) -> None:
    page = window("monitor").open(f"/locks?search={quote(LONG)}")
    link = page.locator("#live td a.lock")
    expect(link).to_have_attribute("title", LONG)
    page.keyboard.press("p")
    selected = link.evaluate("each => { getSelection().selectAllChildren(each); return getSelection().toString(); }")
    assert selected == LONG
    cut = link.evaluate("each => each.scrollWidth - each.clientWidth")
    assert cut <= IN_SIGHT


def test_axes_have_round_numbers_and_legends_the_last_value(window: OpenWindow) -> None:
    page = window("monitor").open()
    expect(page.locator(".chart canvas")).to_have_count(4)

    def ticks(call: str) -> Any:
        return page.evaluate(f"axes.{call}")

    assert ticks("linear(0)") == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks("linear(37.3)") == [0, 10, 20, 30, 40]
    assert ticks("linear(1998)") == [0, 500, 1000, 1500, 2000]
    assert ticks("logarithmic(0.31, 4800)") == [0.1, 1, 10, 100, 1000, 10000]
    assert ticks("logarithmic(2, 70)") == [1, 2, 5, 10, 20, 50, 100]
    assert ticks("times(1790000003, 1790000900, 6)") == [1790000100 + 300 * step for step in range(3)]
    for high in (0.3, 1, 7, 99, 101, 12_345):
        found = ticks(f"linear({high})")
        assert found[-1] >= high
        assert len(found) <= 7
    values = page.locator(".chart[data-chart=charges] .u-legend .u-series:not(:first-child) .u-value")
    expect(values.first).to_have_text(_A_NUMBER)
    page.keyboard.press("p")  # nothing is drawn anew meanwhile
    page.locator(".chart[data-chart=charges] .u-over").hover(position={"x": 20, "y": 20})
    page.mouse.move(0, 0)
    expect(values.first).to_have_text(_A_NUMBER)


def test_two_hundred_that_say_the_same_are_one_row_that_unfolds(window: OpenWindow, stage: Stage) -> None:
    lease(stage.api, "layout:crowded")
    path = "/v1/locks/layout%3Acrowded/leases"
    for _ in range(5):
        stage.api.post(path, user=5, scope="locks", send={"ttl_ms": 1000, "wait_ms": 1})
    page = window("monitor").open("/incidents?kind=gave-up")
    row = page.locator("#live tr", has_text="layout:crowded")
    expect(row).to_have_count(1)
    expect(row.locator("td.number")).to_have_text("5")
    row.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(row.locator("li")).to_have_count(5)
    page.wait_for_timeout(1500)  # a message or two later it is still unfolded
    expect(row.locator("li").first).to_be_visible()
    exported = stage.api.get("/dashboard/exports/incidents.json?kind=gave-up", headers={"Cookie": _cookie(page)}).json
    assert len([each for each in exported if each["name"] == "layout:crowded"]) == 5


def test_with_the_keyboard_alone_every_control_is_reached_and_seen(window: OpenWindow, held: str) -> None:
    looker = window("operator", reduced_motion="reduce", bypass_csp=True)  # wait_for_function is evaluated
    looker.page.set_viewport_size({"width": 640, "height": 430})
    page = looker.open(f"/locks?search={quote(LONG)}")
    assert page.locator("#pause .dot").evaluate("each => getComputedStyle(each).animationName") == "none"
    wanted = page.locator("a:visible, button:visible, input:visible, [tabindex='0']:visible").count()
    reached = []
    for _ in range(wanted):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(_FOCUSED))
    assert [each for each in reached if not each["seen"]] == []
    assert {"Skip to content", "Audit log", "CSV", LONG} <= {each["text"] for each in reached}

    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    region = page.locator("#live .scroll")
    region.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#live .scroll').scrollLeft > 0")


def test_what_has_the_focus_keeps_it_when_the_view_is_brought_anew(window: OpenWindow, held: str) -> None:
    page = window("operator").open(f"/locks?search={quote(LONG)}")
    link = page.locator("#live td a.lock")
    link.focus()
    page.wait_for_timeout(2500)  # two messages
    expect(link).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/dashboard/locks/layout*")
    page.locator("#force-button").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#force [name=reason]")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#force-button")).to_be_focused()


_FOCUSED = """(() => {
  const each = document.activeElement, box = each.getBoundingClientRect(), style = getComputedStyle(each);
  const inSight = box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight;
  return { text: each.textContent.trim(), seen: inSight && style.outlineStyle !== "none" };
})()"""
_A_NUMBER = re.compile(r"^\d")


def _columns_in_sight(page: Page) -> list[str]:
    """The headers that stand within their scroll region, as it is before anybody scrolls."""
    found: list[str] = page.evaluate(
        """[...document.querySelectorAll("#live th[scope=col]")].filter((each) => {
             const box = each.getBoundingClientRect(), region = each.closest(".scroll").getBoundingClientRect();
             return box.left >= region.left - 1 && box.right <= region.right + 1 && box.right <= innerWidth;
           }).map((each) => each.textContent)"""
    )
    return found


def _cookie(page: Page) -> str:
    return "; ".join(f"{each['name']}={each['value']}" for each in page.context.cookies() if "name" in each)
