"""What people do with the page, in a browser, while three workers are under load."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from service.sessions import new_login_code
from tests.browser.conftest import OpenWindow, Stage, faults_of, paths_of_views
from tests.conftest import ReportFigures
from tests.contract.api import held_row
from tests.contract.page import lease
from tests.harness import SECRET, bearer, wait_until

HOT = "report:daily/2026-11"
SOON_S = 10.0  # within 2 s where a core is free for it, which a noisy machine with a browser on it has not always


@pytest.fixture(scope="module")
def views(stage: Stage) -> dict[str, str]:
    """Every view's address, each with something to show."""
    wait_until(lambda: stage.load.appointments, what="an appointment of the load")
    appointment_id = stage.load.appointments[0]
    of_appointment = {"lock of an appointment": f"/locks/appointment%3A{appointment_id}"}
    return paths_of_views(lock=HOT, appointment_id=appointment_id) | of_appointment


def test_every_view_is_live_and_bears_the_strict_policy(window: OpenWindow, views: dict[str, str]) -> None:
    looker = window("monitor")
    paths = list(views.values())
    for group in (paths[:4], paths[4:8], paths[8:]):  # a browser keeps few connections to one host
        pages = [looker.open_beside(path) for path in group]
        for page in pages:
            page.evaluate("document.querySelector('#live').firstElementChild.setAttribute('data-old', '')")
        for page, path in zip(pages, group, strict=True):
            # What a message has swapped in is without the mark.
            expect(page.locator("#live > [data-old]"), path).to_have_count(0)
            page.close()


def test_a_page_whose_scripts_come_slowly_is_live_all_the_same(window: OpenWindow) -> None:
    looker = window("monitor")

    def slowly(route: Route) -> None:
        time.sleep(0.3)
        route.continue_()

    looker.page.route("**/hx-sse.min.js", slowly)
    looker.open("/locks")


def test_the_overview_shows_the_load_in_numbers_and_charts(window: OpenWindow, stage: Stage) -> None:
    page = window("monitor").open()

    expect(page.locator("#tile-charges .value")).not_to_have_text("0")
    expect(page.locator("#tile-health .note")).to_contain_text("3 instances")
    expect(page.locator(".chart canvas")).to_have_count(4)
    expect(page.locator('.chart[data-chart="charges"]')).to_have_attribute(
        "aria-label", re.compile("entries [0-9.]+, charges [0-9.]+")
    )
    page.locator("summary", has_text="The same as a table").click()
    expect(page.locator("#series-table tbody tr").first).to_be_visible()
    page.wait_for_timeout(1500)  # a message or two later
    assert page.locator("details.as-table").evaluate("each => each.open")


def test_the_list_of_locks_follows_who_holds_what(window: OpenWindow, stage: Stage) -> None:
    page = window("monitor").open("/locks?search=browser%3A")
    expect(page.locator("#live")).to_contain_text("No lock with")

    held = lease(stage.api, "browser:followed")
    row = page.locator("#live tr", has_text="browser:followed")
    expect(row).to_contain_text(str(held["fencing_token"]))
    counting = row.locator("[data-left]")
    before = counting.inner_text()
    expect(counting).not_to_have_text(before)

    stage.api.call("DELETE", f"/v1/locks/browser%3Afollowed/leases/{held['lease_id']}", user=5, scope="locks")
    expect(row).to_have_count(0)


def test_pause_holds_the_picture_and_says_so(window: OpenWindow, stage: Stage) -> None:
    page = window("monitor").open("/instances")
    page.keyboard.press("p")
    expect(page.locator("#live-word")).to_have_text("paused")
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
    before = page.locator("#live").inner_text()
    page.wait_for_timeout(2500)  # two messages that are not shown
    assert page.locator("#live").inner_text() == before

    page.locator("#pause").click()
    expect(page.locator("#live-word")).to_have_text("live")
    expect(page.locator("#live")).not_to_have_text(before)


def test_the_keyboard_finds_search_help_and_views(window: OpenWindow) -> None:
    page = window("monitor").open("/hot")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("/")
    page.wait_for_url("**/dashboard/locks*")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("payout:")
    page.keyboard.press("Enter")
    page.wait_for_url("**search=payout*")
    expect(page.locator("#search")).to_have_value("payout:")
    page.locator("h1").click()
    page.keyboard.press("g")
    page.keyboard.press("i")
    page.wait_for_url("**/dashboard/incidents")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()


def test_light_and_dark_are_chosen_kept_and_follow_the_system(window: OpenWindow) -> None:
    page = window("monitor", color_scheme="dark").open("/hot")
    dark = _ground(page)
    page.locator("#themes button", has_text="light").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    light = _ground(page)
    assert light != dark
    page.reload()
    assert _ground(page) == light
    page.locator("#themes button", has_text="auto").click()
    assert _ground(page) == dark


def test_a_phone_scrolls_tables_in_their_boxes_and_never_the_page(window: OpenWindow, views: dict[str, str]) -> None:
    looker = window("monitor")
    looker.page.set_viewport_size({"width": 360, "height": 740})
    for path in views.values():
        page = looker.open(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path


def test_an_operator_releases_by_force_in_a_dialog_that_names_the_holder(window: OpenWindow, stage: Stage) -> None:
    held = lease(stage.api, "browser:stuck")
    page = window("operator").open("/locks/browser%3Astuck")

    page.locator("#force-button").click()
    dialog = page.locator("#force")
    expect(dialog).to_contain_text("is held by a client over HTTP, kept by stage-")
    expect(dialog).to_contain_text("The client is not told: it works on")
    expect(dialog).to_contain_text(str(held["fencing_token"]))
    page.wait_for_timeout(1500)  # a message of the stream leaves the dialog alone
    expect(dialog.locator("[name=reason]")).to_be_focused()
    dialog.locator("[name=reason]").fill("the job hangs")
    dialog.locator("button", has_text="Release by force").click()

    expect(page.locator(".notice.good")).to_contain_text("ended by force")
    expect(page.locator("#live")).to_contain_text("This lock is free")
    page.goto(f"{stage.api.url}/dashboard/audit-log")
    expect(page.locator("#live tr", has_text="browser:stuck")).to_contain_text("the job hangs")
    put = f"/v1/locks/browser%3Astuck/leases/{held['lease_id']}"
    assert stage.api.call("PUT", put, user=5, scope="locks", send={"ttl_ms": 1000}).status == 410


def test_a_monitor_sees_no_button_and_the_server_refuses(window: OpenWindow, stage: Stage) -> None:
    held = lease(stage.api, "browser:kept")
    looker = window("monitor")
    page = looker.open("/locks/browser%3Akept")

    expect(page.locator("#live")).to_contain_text(str(held["fencing_token"]))
    assert page.locator("text=Release by force").count() == 0
    refused = page.evaluate(
        """async (token) => (await fetch("/dashboard/locks/browser%3Akept/force-release", {method: "POST",
             body: new URLSearchParams({fencing_token: token, reason: "because"})}).catch(() => null))?.status ?? 0""",
        held["fencing_token"],
    )

    assert refused == 403
    assert len(looker.complaints) == 1  # the browser's, of this very refusal
    looker.complaints.clear()
    assert stage.api.get("/v1/locks/browser%3Akept", user=1, scope="monitor").status == 200


def test_an_address_from_the_terminal_logs_in_once(window: OpenWindow, stage: Stage) -> None:
    looker = window("service")
    looker.page.context.clear_cookies()
    address = f"{stage.api.url}/dashboard/login?code={new_login_code(SECRET, now=time.time())}"

    looker.page.goto(address)
    expect(looker.page.locator(".who")).to_contain_text("monitor")
    assert looker.page.url == f"{stage.api.url}/dashboard"
    looker.page.locator("text=Sign out").click()
    expect(looker.page.locator("#token")).to_be_visible()
    looker.page.goto(address)
    expect(looker.page.locator(".notice")).to_contain_text("works once")


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_view(window: OpenWindow, views: dict[str, str], scheme: str, width: int) -> None:
    looker = window("operator", color_scheme=scheme, bypass_csp=True)  # axe is injected by the test
    looker.page.set_viewport_size({"width": width, "height": 800})
    for name, path in views.items():
        page = looker.open(path)
        page.keyboard.press("p")
        assert faults_of(page) == [], name
    looker.page.keyboard.press("?")
    assert faults_of(looker.page) == [], "help"
    for path in ("/locks/browser%3Afree/force-release", "/login"):
        looker.page.goto(f"{looker.url}/dashboard{path}")
        assert faults_of(looker.page) == [], path


def test_a_killed_holder_shows_as_takeover_soon_after_its_leases_end(
    window: OpenWindow, stage: Stage, report_figures: ReportFigures
) -> None:
    appointment_id = stage.rows.appointment(1001, 1002)
    name = f"appointment:{appointment_id}"
    looker = window("monitor")
    page = looker.open("/incidents?kind=takeover")

    with _stuck_row(stage, appointment_id) as (holder, lease_s):
        os.kill(holder["pid"], signal.SIGKILL)
        killed_at_s = time.monotonic()
        row = page.locator("#live tr", has_text=name)
        expect(row).to_be_visible()
        seen_at_s = time.monotonic()

    shown_after_s = seen_at_s - killed_at_s
    report_figures(
        "takeover on the page, after its holder's death with 2 s of lease at the most", [1000 * shown_after_s]
    )
    assert shown_after_s <= lease_s + SOON_S
    looker.complaints.clear()  # where it was the dead worker that kept this page up to date


@contextlib.contextmanager
def _stuck_row(stage: Stage, appointment_id: int) -> Iterator[tuple[dict[str, Any], float]]:
    """Entries at several workers, one of which holds the lock and waits for a row that a stranger has: the holder, and
    how much of its lease there may be left when it dies."""
    people = (1001, 1002) * 4
    callers = [threading.Thread(target=_enter, args=(stage, appointment_id, each), daemon=True) for each in people]
    path = f"/v1/locks/appointment%3A{appointment_id}"

    def held_and_waited_for_elsewhere() -> dict[str, Any] | None:
        answer = stage.api.get(path, headers=bearer(1, "monitor"))
        if answer.status != 200:
            return None
        seen: dict[str, Any] = answer.json
        others = {waiter["pid"] for waiter in seen["waiting"]} - {seen["holder"]["pid"]}
        return seen if others else None

    with held_row(stage.database_url, appointment_id):
        for caller in callers:
            caller.start()
        wait_until(held_and_waited_for_elsewhere, what="a holder, and a waiter at another worker")
        seen = held_and_waited_for_elsewhere()
        assert seen is not None
        yield seen["holder"], 2.0  # LEASE_TTL_S, which may just have been extended
    for caller in callers:
        caller.join(30)


def _enter(stage: Stage, appointment_id: int, person: int) -> None:
    with contextlib.suppress(OSError):
        stage.api.enter(appointment_id, person)


def _ground(page: Page) -> str:
    colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return colour
