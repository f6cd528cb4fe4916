"""A page, open or loaded anew, while Redis, Postgres or the service itself is away, and when they are back."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from service.dashboard.views.table import VIEWS
from service.embedded import valkey_binary
from tests.browser.conftest import Looker, faults_of, looking, paths_of_views
from tests.contract.api import Api
from tests.contract.conftest import migrated_database
from tests.contract.page import lease
from tests.contract.postgres_proxy import PostgresProxy
from tests.harness import OwnRedis, Rows, Service, Start, service, wait_until
from tests.servers.processes import unused_port

LOCK = "outage:seen"
# What each view cannot do without.
NEEDS = {
    "overview": {"Redis"},
    "locks": {"Redis"},
    "lock": {"Redis"},
    "hot": {"Redis"},
    "heatmap": {"Redis"},
    "incidents": {"Redis"},
    "instances": {"Redis"},
    "charges": {"Postgres"},
    "appointment": {"Redis", "Postgres"},
    "audit_log": {"Postgres"},
}

SAID_OF_NOW = ("#story > p", "#tile-health .value")


@dataclass(frozen=True, slots=True)
class Outages:
    """A service of one worker, with servers that can be taken away from it."""

    service: Service
    api: Api
    redis: OwnRedis
    postgres: PostgresProxy
    paths: dict[str, str]

    def take(self, server: str) -> None:
        """The server is away, and the service knows."""
        self.redis.kill() if server == "Redis" else self.postgres.cut()
        wait_until(lambda: self._says("down", server), what=f"{server} known to be away")

    def give_back(self, server: str) -> None:
        """The server is there again, and the service knows."""
        if server == "Postgres":
            self.postgres.come_back()
        elif self.redis.process is None:
            self.redis.start()
        wait_until(lambda: self._says("up", server), what=f"{server} known to be back")

    def _says(self, state: str, server: str) -> bool:
        dependency = {"Redis": "lock_store", "Postgres": "database"}[server]
        return bool(self.api.get("/readyz").json["dependencies"][dependency] == state)


@pytest.fixture(scope="module")
def outages(cluster_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outages]:
    folder = tmp_path_factory.mktemp("outages")
    with ExitStack() as stack:
        database_url = stack.enter_context(migrated_database(cluster_url))
        redis, postgres = OwnRedis(valkey_binary(), folder), PostgresProxy(database_url)
        stack.callback(postgres.close)
        redis.start()
        stack.callback(redis.kill)
        running = stack.enter_context(
            service(folder, workers=1, redis_url=redis.url, database_url=postgres.url, instance_id="here")
        )
        rows = Rows(database_url)
        appointment_id = rows.appointment(1, 2)
        rows.close()
        paths = paths_of_views(lock=LOCK, appointment_id=appointment_id)
        yield Outages(running, Api(running.url), redis, postgres, paths)


@pytest.fixture(autouse=True)
def _at_first_all_is_well(outages: Outages) -> None:
    outages.give_back("Redis")
    outages.give_back("Postgres")


@pytest.fixture
def looker(browser: Browser, outages: Outages) -> Iterator[Looker]:
    with looking(browser, outages.api.url, "operator", bypass_csp=True) as looker:
        yield looker


def test_every_view_says_what_it_needs() -> None:
    assert NEEDS.keys() == VIEWS.keys()


@pytest.mark.parametrize("server", ["Redis", "Postgres"])
def test_an_open_page_keeps_its_data_greyed_with_their_time_and_recovers(
    outages: Outages, looker: Looker, server: str
) -> None:
    lease(outages.api, LOCK, ttl_ms=600_000)
    wait_until(lambda: LOCK in outages.api.get("/v1/locks", user=1, scope="monitor").body.decode(), what="the lock")
    # A browser keeps six connections to one host, and each page has a stream.
    for keys in (list(VIEWS)[:4], list(VIEWS)[4:8], list(VIEWS)[8:]):
        pages = {key: looker.open_beside(outages.paths[key]) for key in keys}
        before = {key: _words(page) for key, page in pages.items()}

        outages.take(server)

        for key, page in pages.items():
            says = "#story" if key == "overview" and server not in NEEDS[key] else "#away"
            expect(page.locator(says), key).to_contain_text(f"{server} does not answer")
            expect(page.locator(".menu a"), key).to_have_count(8)
            if server not in NEEDS[key]:
                expect(page.locator("#seen.old"), key).to_have_count(0)
                expect(page.locator("#pause"), key).to_have_attribute("data-state", "live")
                continue
            expect(page.locator("#seen.old"), key).to_have_count(1)
            expect(page.locator("#away"), key).to_contain_text(re.compile(r"as of \d\d:\d\d:\d\d"))
            expect(page.locator("#live-word"), key).to_have_text("not current")
            assert _words(page) == before[key], key

        outages.give_back(server)

        for key, page in pages.items():
            expect(page.locator("#away"), key).to_have_count(0)
            expect(page.locator("#seen.old"), key).to_have_count(0)
            expect(page.locator("#pause"), key).to_have_attribute("data-state", "live")
            page.close()


@pytest.mark.parametrize("server", ["Redis", "Postgres"])
def test_a_page_loaded_meanwhile_has_its_menu_and_what_was_last_seen_and_recovers(
    outages: Outages, looker: Looker, server: str
) -> None:
    seen = {key: path for key, path in outages.paths.items() if server in NEEDS[key]}
    unseen = "/locks?search=never" if server == "Redis" else "/charges?before=7"
    for path in seen.values():
        looker.open(path)
    outages.take(server)

    for key, path in seen.items():
        answer = looker.page.goto(f"{looker.url}/dashboard{path}")
        assert answer is not None
        assert answer.status == 503
        expect(looker.page.locator("#away"), key).to_contain_text(f"{server} does not answer")
        expect(looker.page.locator("#away"), key).to_contain_text("as of")
        expect(looker.page.locator(".menu a[aria-current]"), key).to_have_count(1)
        expect(looker.page.locator("#seen > *").first, key).to_be_visible()
        assert faults_of(looker.page) == [], key
    looker.page.goto(f"{looker.url}/dashboard{unseen}")
    expect(looker.page.locator("#away")).to_contain_text("has not seen this view before")
    expect(looker.page.locator(".menu a")).to_have_count(8)

    outages.give_back(server)

    expect(looker.page.locator("#away")).to_have_count(0)
    expect(looker.page.locator(".exports")).to_be_visible()  # what stands around the data has come too


def test_with_both_away_both_are_named(outages: Outages, looker: Looker) -> None:
    page = looker.open(outages.paths["appointment"])
    outages.take("Redis")
    outages.take("Postgres")
    expect(page.locator("#away")).to_contain_text("Redis and Postgres do not answer")
    outages.give_back("Postgres")
    expect(page.locator("#away")).to_contain_text("Redis does not answer")
    outages.give_back("Redis")
    expect(page.locator("#away")).to_have_count(0)


def test_a_sentence_and_a_health_that_are_not_of_now_say_so(outages: Outages, looker: Looker) -> None:
    page = looker.open()
    assert [_said_before(page, each) for each in SAID_OF_NOW] == ["none", "none"]
    outages.take("Redis")
    expect(page.locator("#seen.old")).to_have_count(1)
    assert [_said_before(page, each) for each in SAID_OF_NOW] == ['"Then: "', '"was "']
    outages.give_back("Redis")


def test_the_first_seconds_have_axes_with_times(looker: Looker, outages: Outages) -> None:
    outages.take("Redis")
    outages.give_back("Redis")  # empty, as it is at a first start
    page = looker.open()
    expect(page.locator(".chart canvas")).to_have_count(4)
    series = page.evaluate("fetch('/dashboard/series?range=15m').then((each) => each.json())")
    assert len(series["at"]) >= 2


def test_charts_keep_their_lines_while_redis_is_away(outages: Outages, looker: Looker) -> None:
    page = looker.open()
    expect(page.locator(".chart canvas")).to_have_count(4)
    outages.take("Redis")
    looker.page.reload()
    expect(page.locator(".chart canvas")).to_have_count(4)
    outages.give_back("Redis")


def test_a_page_outlives_a_restart_of_the_service(
    browser: Browser, redis_url: str, cluster_url: str, tmp_path: Path
) -> None:
    command = f'exec "$0" -m service serve --port {unused_port()}'
    start = Start(command=("sh", "-c", command, sys.executable))
    with ExitStack() as stack:
        database_url = stack.enter_context(migrated_database(cluster_url))
        first = stack.enter_context(service(tmp_path, start, redis_url=redis_url, database_url=database_url))
        looker = stack.enter_context(looking(browser, first.url, "monitor"))
        page = looker.open("/instances")
        before = _words(page)

        first.stop()

        expect(page.locator("#cut-off")).to_contain_text(re.compile(r"as of \d\d:\d\d:\d\d"))
        expect(page.locator("#live-word")).to_have_text("reconnecting")
        expect(page.locator(".menu a")).to_have_count(8)
        assert _words(page) == before
        assert page.locator("#seen").evaluate("each => getComputedStyle(each).filter") == "grayscale(1)"

        second = stack.enter_context(service(tmp_path, start, redis_url=redis_url, database_url=database_url))

        assert second.url == first.url
        expect(page.locator("#pause")).to_have_attribute("data-state", "live")
        expect(page.locator("#cut-off")).to_be_hidden()
        assert page.locator("#seen").evaluate("each => getComputedStyle(each).filter") == "none"


def _said_before(page: Page, selector: str) -> str:
    text: str = page.locator(selector).evaluate("each => getComputedStyle(each, '::before').content")
    return text


def _words(page: Page) -> str:
    """What the view says, but for its numbers and how long ago that was."""
    text: str = page.locator("#seen").inner_text()
    return re.sub(r"just now|[0-9][0-9.,:]*|\b(µs|ms|s|min|h|ago)\b|\s+", "", text)
