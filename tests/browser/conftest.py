"""One browser and one service of three workers under a light load, for all that people do with the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from service.dashboard.views.table import VIEWS
from tests.browser import load
from tests.contract.api import Api
from tests.contract.conftest import migrated_database
from tests.harness import Rows, Service, service, token

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)


@dataclass(frozen=True, slots=True)
class Stage:
    """The service that is looked at, and the load on it."""

    service: Service
    api: Api
    rows: Rows
    database_url: str
    load: load.Load


@dataclass(slots=True)
class Looker:
    """Somebody with a browser window, and all that the browser has complained of."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str = "") -> Page:
        """A page below /dashboard, live."""
        return self._open(self.page, path)

    def open_beside(self, path: str) -> Page:
        """The same in a tab of its own."""
        return self._open(self.page.context.new_page(), path)

    def _open(self, page: Page, path: str) -> Page:
        page.goto(f"{self.url}/dashboard{path}")
        page.wait_for_selector("#pause[data-state=live]", timeout=PATIENCE_MS)
        return page


OpenWindow = Callable[..., Looker]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    executable = shutil.which("chromium") or CHROMIUM
    if not Path(executable).exists() and "CI" not in os.environ:
        pytest.skip("the browser tests need Chromium (Debian: chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def stage(cluster_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Three workers under load."""
    folder = tmp_path_factory.mktemp("browser")
    with ExitStack() as stack:
        database_url = stack.enter_context(migrated_database(cluster_url))
        addresses = {"database_url": database_url, "redis_url": redis_url, "instance_id": "stage"}
        running = stack.enter_context(service(folder, workers=3, **addresses))
        rows = Rows(database_url)
        stack.callback(rows.close)
        callers = load.light(running.url)
        stack.enter_context(callers.running())
        yield Stage(running, Api(running.url), rows, database_url, callers)


@pytest.fixture
def window(browser: Browser, stage: Stage) -> Iterator[OpenWindow]:
    """Opens windows of people with a session: window("monitor", color_scheme="dark"); none may have complained."""
    with ExitStack() as stack:
        lookers = []

        def open_window(scope: str, **options: object) -> Looker:
            lookers.append(stack.enter_context(looking(browser, stage.api.url, scope, **options)))
            return lookers[-1]

        yield open_window
        complaints = [line for looker in lookers for line in looker.complaints]
    assert complaints == []


@contextmanager
def looking(browser: Browser, url: str, scope: str, **options: object) -> Iterator[Looker]:
    """A window of somebody with a session at this service."""
    context: BrowserContext = browser.new_context(viewport={"width": 1280, "height": 800}, **options)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    context.add_cookies([{"name": "chargeonce_session", "value": token(17, scope), "url": f"{url}/dashboard"}])
    looker = Looker(context.new_page(), url)
    context.on("console", lambda line: _note(looker, line.type, line.text))
    context.on("weberror", lambda error: looker.complaints.append(str(error.error)))
    yield looker
    context.close()


def paths_of_views(*, lock: str, appointment_id: int) -> dict[str, str]:
    """Every view's address below /dashboard, by its key."""
    return {
        view.key: view.path.format(name=quote(lock, safe=""), appointment_id=appointment_id) for view in VIEWS.values()
    }


def faults_of(page: Page) -> list[str]:
    """What axe-core finds wrong with the page, however slight."""
    return [
        f"{found['impact']} {found['id']}: {[node['html'] for node in found['nodes']][:3]}"
        for found in Axe().run(page).response["violations"]
    ]


def _note(looker: Looker, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        looker.complaints.append(f"{kind}: {text}")
