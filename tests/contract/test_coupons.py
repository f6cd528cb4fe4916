"""Coupons: granted once a reference, counted, and every movement shown, newest first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.api import Answer, assert_books_right, everything, fresh_reference, problem
from tests.contract.conftest import World

SERVICE: dict[str, Any] = {"user": 1, "scope": "service"}


@pytest.fixture(scope="module", autouse=True)
def _books_are_right_at_the_end(world: World) -> Iterator[None]:
    yield
    assert_books_right(world.database_url)


def grant(world: World, user: int, count: int, reference: str | None = None) -> Answer:
    body = {"coupon_id": 1, "count": count, "reference": reference or fresh_reference()}
    return world.api.post(f"/v1/users/{user}/coupons", send=body, **SERVICE)


def test_a_grant_is_there_at_once(world: World) -> None:
    user = world.person()
    reference = fresh_reference()
    answer = grant(world, user, 3, reference)
    assert (answer.status, answer.headers["content-type"]) == (201, "application/json")
    made = answer.json
    assert (made["user_id"], made["coupon_id"], made["count"], made["reference"]) == (user, 1, 3, reference)
    shown = world.api.get(f"/v1/users/{user}/coupons", user=user)
    assert shown.status == 200
    assert (shown.json["user_id"], shown.json["coupons"]) == (user, [{"coupon_id": 1, "count": 3}])
    [movement] = shown.json["movements"]
    assert (movement["count"], movement["reference"], movement["at"]) == (3, reference, made["granted_at"])
    assert world.rows.balance(user) == 3


def test_the_same_reference_again_grants_nothing_more(world: World) -> None:
    user, reference = world.person(), fresh_reference()
    first = grant(world, user, 3, reference)
    before = everything(world.rows)
    again = grant(world, user, 3, reference)
    assert (first.status, again.status) == (201, 200)
    assert again.json == first.json
    assert everything(world.rows) == before


def test_the_same_reference_with_another_content_is_refused(world: World) -> None:
    user, other, reference = world.person(), world.person(), fresh_reference()
    world.rows.run("INSERT INTO coupon_info (id, name) VALUES (2, 'roses') ON CONFLICT DO NOTHING")
    assert grant(world, user, 3, reference).status == 201
    before = everything(world.rows)
    problem(grant(world, user, 4, reference), "reference-reused")
    problem(grant(world, other, 3, reference), "reference-reused")
    body = {"coupon_id": 2, "count": 3, "reference": reference}
    problem(world.api.post(f"/v1/users/{user}/coupons", send=body, **SERVICE), "reference-reused")
    assert everything(world.rows) == before


@pytest.mark.parametrize("reference", ["r", "x" * 200, "Ærø, 100 % 'quoted' \"twice\" \\ ; --", "🍾" * 200])
def test_a_reference_is_any_text(world: World, reference: str) -> None:
    user = world.person()
    assert grant(world, user, 1, reference).json["reference"] == reference
    assert grant(world, user, 1, reference).status == 200
    assert world.rows.balance(user) == 1


def test_a_user_of_whom_nothing_is_known_has_nothing(world: World) -> None:
    user = world.person()
    shown = world.api.get(f"/v1/users/{user}/coupons", user=user)
    assert shown.status == 200
    assert (shown.json["user_id"], shown.json["coupons"], shown.json["movements"]) == (user, [], [])


def test_a_charge_is_a_movement_below_zero_with_its_appointment(world: World) -> None:
    user, partner = world.person(), world.person()
    grant(world, user, 5)
    id_ = world.rows.appointment(user, partner)
    charge = world.api.enter(id_, user).json["charge"]
    world.api.enter(id_, user)
    shown = world.api.get(f"/v1/users/{user}/coupons", user=user).json
    assert shown["coupons"] == [{"coupon_id": 1, "count": 4}]
    newest, oldest = shown["movements"]
    assert newest == {
        "kind": "charge",
        "id": charge["id"],
        "coupon_id": 1,
        "count": -1,
        "at": charge["charged_at"],
        "reference": None,
        "appointment_id": id_,
    }
    assert (oldest["kind"], oldest["count"], oldest["appointment_id"]) == ("grant", 5, None)
    assert world.api.get(f"/v1/users/{partner}/coupons", user=partner).json["movements"] == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 200])
def test_movements_are_paged_newest_first_and_none_is_lost_or_shown_twice(world: World, limit: int) -> None:
    user = world.person()
    granted = [grant(world, user, number + 1).json["reference"] for number in range(7)]
    path = f"/v1/users/{user}/coupons?limit={limit}"
    page = world.api.get(path, user=user).json
    seen, pages = page["movements"], 1
    assert len(seen) == min(limit, 7)
    grant(world, user, 100)  # what comes in between two pages moves nothing
    while page["next_cursor"] is not None:
        page = world.api.get(f"{path}&cursor={page['next_cursor']}", user=user).json
        assert 1 <= len(page["movements"]) <= limit
        seen += page["movements"]
        pages += 1
    assert [movement["reference"] for movement in seen] == granted[::-1]
    assert pages == -(-7 // limit)


def test_a_page_holds_fifty_when_nobody_says_otherwise(world: World) -> None:
    user = world.person()
    for _ in range(51):
        world.rows.grant(user, 1)
    page = world.api.get(f"/v1/users/{user}/coupons", user=user).json
    assert len(page["movements"]) == 50
    assert page["next_cursor"]
    assert page["coupons"] == [{"coupon_id": 1, "count": 51}]


@pytest.mark.parametrize(
    ("who", "scope", "code"),
    [
        ("owner", "", None),
        ("owner", "monitor", None),
        ("other", "service", None),
        ("other", "", "forbidden"),
        ("other", "locks monitor operator", "forbidden"),
        ("nobody", "", "unauthenticated"),
    ],
)
def test_who_may_see_coupons(world: World, who: str, scope: str, code: str | None) -> None:
    owner, other = world.person(coupons=1), world.person()
    user = {"owner": owner, "other": other, "nobody": None}[who]
    answer = world.api.get(f"/v1/users/{owner}/coupons", user=user, scope=scope)
    if code is None:
        assert (answer.status, answer.json["coupons"]) == (200, [{"coupon_id": 1, "count": 1}])
    else:
        problem(answer, code)


def test_nobody_grants_coupons_to_themselves(world: World) -> None:
    user = world.person()
    body = {"coupon_id": 1, "count": 1, "reference": fresh_reference()}
    problem(world.api.post(f"/v1/users/{user}/coupons", user=user, send=body), "forbidden")
    assert world.rows.balance(user) == 0
