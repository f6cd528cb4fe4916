"""Takes the pictures of the page for the README: `make screenshots`. A real service and load, on its own servers.

python -m tests.browser.screenshots [--seconds S] [--into FOLDER]
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Browser, Page, sync_playwright

from db.migrate import migrate
from service.embedded import EmbeddedServers, valkey_binary
from tests.browser import load
from tests.browser.conftest import ARGUMENTS, CHROMIUM, looking
from tests.contract.api import Api
from tests.contract.page import lease
from tests.contract.postgres_proxy import PostgresProxy
from tests.harness import ROOT, OwnRedis, service, token, wait_until

HOT = "report:daily/2026-11"
VIEWS = {
    "overview": "",
    "locks": "/locks",
    "lock": f"/locks/{quote(HOT, safe='')}",
    "heatmap": "/heatmap",
    "incidents": "/incidents",
}
WIDTH, HEIGHT = 1280, 860
TALL = {"overview": 1240}
PHONE = (375, 812)
ZOOMED = (640, 430)  # 1,280 pixels at 200 %
CROWDED, CROWD = "checkout:flash-sale", 1998
CROWD_WAITED_S = 8.0
TOLD_AFTER_S = 1.0  # instances tell of themselves once a second
SETTLE_MS = 2500
MOST_BYTES = 250_000


def main() -> None:
    """Serves, loads, lets a few things go wrong, and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100.0, help="how long the load lasts before")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images")
    wanted = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chargeonce-screenshots-")))
        redis, postgres = stack.enter_context(_servers(folder))
        running = stack.enter_context(
            service(folder, workers=3, instance_id="api", redis_url=redis.url, database_url=postgres.url)
        )
        loaded = stack.enter_context(ExitStack())
        loaded.enter_context(load.steady(running.url).running())
        print(f"load on {running.url} for {wanted.seconds:g} s", flush=True)
        time.sleep(wanted.seconds / 2)
        _let_things_go_wrong(Api(running.url))
        time.sleep(wanted.seconds / 2)
        playwright = stack.enter_context(sync_playwright())
        executable = shutil.which("chromium") or CHROMIUM
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        _take_all(browser, running.url, wanted.into)
        loaded.close()
        with load.queue(running.url, CROWDED, waiters=CROWD):
            _take_crowd(browser, Api(running.url), wanted.into)
        _take_outage(browser, running.url, "", redis.kill, wanted.into / "redis-away.png")
        redis.start()
        _take_outage(browser, running.url, "/charges", postgres.cut, wanted.into / "postgres-away.png")
        browser.close()


@contextmanager
def _servers(folder: Path) -> Iterator[tuple[OwnRedis, PostgresProxy]]:
    """A Valkey and a migrated Postgres that can be taken away."""
    with EmbeddedServers.start(folder / "servers") as embedded, ExitStack() as stack:
        assert embedded.addresses.database_url is not None
        migrate(embedded.addresses.database_url)
        postgres = PostgresProxy(embedded.addresses.database_url)
        stack.callback(postgres.close)
        redis = OwnRedis(valkey_binary(), folder)
        redis.start()
        stack.callback(redis.kill)
        yield redis, postgres


def _let_things_go_wrong(api: Api) -> None:
    """An operator ends a lease, a program forgets one that others wait for, a holder is killed."""
    stuck = lease(api, "payout:merchant-9")
    answer = api.post(
        "/v1/locks/payout%3Amerchant-9/force-release",
        user=load.OPERATOR_ID,
        scope="operator",
        send={"reason": "its job hangs since the deploy", "fencing_token": stuck["fencing_token"]},
    )
    assert answer.status == 200, answer
    lease(api, HOT, ttl_ms=1000, wait_ms=3000)
    time.sleep(5 * TOLD_AFTER_S)
    path = f"/v1/locks/{quote(HOT, safe='')}"
    for _ in range(100):
        held = api.get(path, user=load.OPERATOR_ID, scope="monitor")
        if held.status == 200 and held.json["holder"]:
            os.kill(held.json["holder"]["pid"], signal.SIGKILL)
            return
        time.sleep(0.02)
    raise RuntimeError("nobody held the lock that others wait for")


def _take_all(browser: Browser, url: str, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        for name, path in VIEWS.items():
            _take(browser, url, path, into / f"{name}-{scheme}.png", scheme, WIDTH, TALL.get(name, HEIGHT))
    _take(browser, url, "", into / "overview-phone.png", "light", *PHONE)
    _take(browser, url, "/locks", into / "locks-zoomed.png", "light", *ZOOMED)


def _take_crowd(browser: Browser, api: Api, into: Path) -> None:
    path = f"/v1/locks/{quote(CROWDED, safe='')}"

    def all_wait() -> bool:
        answer = api.get(path, user=load.OPERATOR_ID, scope="monitor")
        return answer.status == 200 and answer.json["waiters"] >= CROWD

    wait_until(all_wait, what="the crowd in line")
    time.sleep(CROWD_WAITED_S)
    _take(browser, api.url, "", into / "overview-crowd.png", "light", WIDTH, HEIGHT)


def _take_outage(browser: Browser, url: str, path: str, take: Callable[[], None], file: Path) -> None:
    with looking(browser, url, "operator") as looker:
        page = looker.open(path)
        page.wait_for_timeout(SETTLE_MS)
        take()
        page.wait_for_selector("#seen.old")
        page.wait_for_timeout(SETTLE_MS)
        _save(page, file)


def _take(browser: Browser, url: str, path: str, file: Path, scheme: str, width: int, height: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    context.add_cookies([{"name": "chargeonce_session", "value": token(7, "operator"), "url": f"{url}/dashboard"}])
    page = context.new_page()
    page.goto(f"{url}/dashboard{path}")
    page.wait_for_selector("#pause[data-state=live]")
    page.wait_for_timeout(SETTLE_MS)
    _save(page, file)
    context.close()


def _save(page: Page, file: Path) -> None:
    page.screenshot(path=file)
    size = file.stat().st_size
    assert size <= MOST_BYTES, f"{file} has {size} bytes"
    print(f"{file.name}: {size // 1000} kB", flush=True)


if __name__ == "__main__":
    main()
