"""While Postgres is away: pages are shown, nothing is forced, and a sign-out that was not written says so."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from service.sessions import new_login_code
from tests.contract.api import Api
from tests.contract.conftest import World
from tests.contract.page import COOKIE, Page, cookie_of, lease
from tests.contract.postgres_proxy import PostgresProxy
from tests.contract.test_signing_out import OFTEN, by_code
from tests.harness import SECRET, token, wait_until


@pytest.fixture(scope="module")
def settings(proxy: PostgresProxy) -> dict[str, str]:
    return {"database_url": proxy.url}


@pytest.fixture
def api(world: World, proxy: PostgresProxy) -> Iterator[Api]:
    """Postgres is there at first, and at last."""
    yield world.api
    _back(world.api, proxy)


def test_the_page_is_shown_and_a_sign_out_that_is_not_written_says_so(api: Api, proxy: PostgresProxy) -> None:
    page, gone = Page(api, "operator"), Page(api, None)
    gone.token = token(19, "monitor")
    assert gone.post("/logout", {}).status == 303
    assert {gone.get("/locks").status for _ in range(OFTEN)} == {401}
    proxy.cut()

    assert page.get("/locks").status == 200
    assert {gone.get("/locks").status for _ in range(OFTEN)} == {401}, "what a worker has heard of it knows"
    answer = page.post("/logout", {})

    assert answer.status == 503
    assert b"You are not signed out everywhere" in answer.body
    assert cookie_of(answer)[COOKIE] == ""
    assert page.get("/locks").status == 200, "as it says"
    _back(api, proxy)
    assert page.post("/logout", {}).status == 303
    assert page.get("/locks").status == 401


def test_nothing_is_forced_and_no_code_is_used(api: Api, proxy: PostgresProxy) -> None:
    held = lease(api, "page:away")
    code = new_login_code(SECRET, now=time.time())
    proxy.cut()

    assert Page(api, "operator").force("page:away", held["fencing_token"], "while away").status == 503
    refused = Page(api, None).get(f"/login?code={code}")

    assert (refused.status, cookie_of(refused)) == (503, {})
    _back(api, proxy)
    assert api.get("/v1/locks/page%3Aaway", user=1, scope="monitor").json["fencing_token"] == held["fencing_token"]
    by_code(api, code)


def test_a_postgres_that_hangs_delays_a_page_for_a_moment_only(api: Api, proxy: PostgresProxy, world: World) -> None:
    page = Page(api, "monitor")
    assert page.get("/locks").status == 200
    proxy.silence()
    answers = [page.get("/locks") for _ in range(4)]
    assert {answer.status for answer in answers} == {200}
    assert max(answer.took_s for answer in answers) < 5.0
    wait_until(
        lambda: "cannot look whether sessions are signed out" in world.service.logged(), what="a line of the log"
    )


def _back(api: Api, proxy: PostgresProxy) -> None:
    proxy.come_back()
    wait_until(lambda: api.every_worker_says("database", "up"))
