"""Logging in to the page: by an access token, by an address that works once; the cookie; forms of other sites."""

from __future__ import annotations

import time

import pytest

from service.sessions import LOGIN_CODE_TTL_S, new_login_code
from tests.contract.api import in_background
from tests.contract.conftest import World
from tests.contract.page import COOKIE, FROM_OUR_PAGE, Page, cookie_of
from tests.harness import SECRET, token


def test_an_access_token_becomes_a_cookie_that_scripts_and_other_sites_cannot_use(world: World) -> None:
    page = Page(world.api, None)
    pasted = token(7, "monitor", ttl_s=300)

    answer = page.post("/login", {"token": f" Bearer {pasted}\n", "next": "/dashboard/locks?sort=name"})

    assert (answer.status, answer.headers["location"]) == (303, "/dashboard/locks?sort=name")
    cookie = cookie_of(answer)
    assert cookie[COOKIE] == pasted
    assert cookie["path"] == "/dashboard"
    assert cookie["samesite"] == "Strict"
    assert "httponly" in cookie
    assert "secure" not in cookie
    assert 290 <= int(cookie["max-age"]) <= 301


def test_the_cookie_is_for_https_alone_where_the_browser_speaks_https(world: World) -> None:
    headers = {**FROM_OUR_PAGE, "X-Forwarded-Proto": "https"}

    answer = Page(world.api, None).post("/login", {"token": token(7, "monitor")}, headers)

    assert "secure" in cookie_of(answer)


@pytest.mark.parametrize("pasted", ["", "nonsense", "a.b.c", "x" * 5000, "expired"])
def test_what_is_no_access_token_logs_nobody_in(world: World, pasted: str) -> None:
    if pasted == "expired":
        pasted = token(7, "monitor", ttl_s=-10)

    answer = Page(world.api, None).post("/login", {"token": pasted})

    assert answer.status == 401
    assert cookie_of(answer) == {}
    assert b'<form method="post" action="/dashboard/login">' in answer.body
    assert not pasted or pasted.encode() not in answer.body


@pytest.mark.parametrize(
    "back", ["https://elsewhere.example/", "//elsewhere.example", "/dashboardx", "/v1/locks", "/dashboard/\r\nX: y"]
)
def test_logging_in_leads_to_no_page_but_ours(world: World, back: str) -> None:
    answer = Page(world.api, None).post("/login", {"token": token(7, "monitor"), "next": back})

    assert (answer.status, answer.headers["location"]) == (303, "/dashboard")


def test_an_address_logs_in_whoever_comes_first_and_nobody_else(world: World) -> None:
    code = new_login_code(SECRET, now=time.time())
    page = Page(world.api, None)

    with in_background() as start:
        answers = [each.result() for each in [start(page.get, f"/login?code={code}") for _ in range(8)]]

    assert {answer.status for answer in answers} == {303}
    assert all(answer.headers["referrer-policy"] == "no-referrer" for answer in answers)
    assert all(code not in answer.headers["location"] for answer in answers)
    logged_in = [answer for answer in answers if cookie_of(answer)]
    assert len(logged_in) == 1
    assert logged_in[0].headers["location"] == "/dashboard"
    looker = Page(world.api, None)
    looker.token = cookie_of(logged_in[0])[COOKIE]
    assert b"monitor, by address" in looker.get("").body
    assert code not in world.service.logged()


def test_codes_that_are_over_or_forged_log_nobody_in(world: World) -> None:
    good = new_login_code(SECRET, now=time.time())
    over = new_login_code(SECRET, now=time.time() - LOGIN_CODE_TTL_S - 1)
    later = f"{int(good.partition('.')[0]) + 3600}.{good.partition('.')[2]}"
    foreign = new_login_code("another secret, longer than 32 bytes", now=time.time())

    for code in (over, later, foreign, good[:-1], "", token(7, "operator")):
        answer = Page(world.api, None).get(f"/login?code={code}")
        assert (answer.status, answer.headers["location"]) == (303, "/dashboard/login?because=code"), code
        assert cookie_of(answer) == {}
    assert Page(world.api, None).post("/login", {"token": good}).status == 401


def test_signing_out_makes_the_browser_forget(world: World) -> None:
    answer = Page(world.api, "monitor").post("/logout", {})

    assert answer.status == 303
    assert cookie_of(answer)[COOKIE] == ""
    assert cookie_of(answer)["max-age"] == "0"


def test_forms_of_other_sites_and_of_nobody_are_refused(world: World) -> None:
    here = world.api.url.removeprefix("http://")
    operator = Page(world.api, "operator")
    foreign: list[dict[str, str]] = [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": world.api.url},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "null"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": f"http://{here}.elsewhere.example"},
    ]

    forms: dict[str, dict[str, object]] = {
        "/login": {"token": token(7, "monitor")},
        "/logout": {},
        "/theme": {"theme": "dark"},
        "/locks/page%3Aforeign/force-release": {"fencing_token": 1, "reason": "x"},
    }
    for headers in foreign:
        for path, fields in forms.items():
            answer = operator.post(path, fields, headers)
            assert answer.status == 403, (path, headers)
            assert "set-cookie" not in answer.headers
    assert operator.post("/theme", {"theme": "dark"}, {"Origin": world.api.url}).status == 303


def test_a_token_without_the_scope_is_told_which_one_is_missing(world: World) -> None:
    answer = Page(world.api, "service locks").get("")

    assert answer.status == 403
    assert b"<code>monitor</code>" in answer.body


def test_neither_tokens_nor_codes_are_logged(world: World) -> None:
    page = Page(world.api, "operator")
    page.get("")
    page.get("/login?code=nonsense-code")
    page.post("/login", {"token": page.token or ""})

    logged = world.service.logged()

    assert page.token is not None
    assert page.token not in logged
    assert page.token.rpartition(".")[2] not in logged
    assert "nonsense-code" not in logged
