"""Appointments: made by services, seen by whoever takes part, opened and closed by services."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.contract.api import assert_books_right, everything, problem
from tests.contract.conftest import World

MEMBERS = {"id", "user_id", "invitee_user_id", "prepare_id", "status", "is_consume", "charge", "entries"}
SERVICE: dict[str, Any] = {"user": 1, "scope": "service"}


@pytest.fixture(scope="module", autouse=True)
def _books_are_right_at_the_end(world: World) -> Iterator[None]:
    yield
    assert_books_right(world.database_url)


@pytest.mark.parametrize("prepare_id", [None, 1, 2**63 - 1])
def test_a_new_appointment_is_open_and_nobody_has_entered(world: World, prepare_id: int | None) -> None:
    inviter, invitee = world.person(), world.person()
    body: dict[str, object] = {"user_id": inviter, "invitee_user_id": invitee}
    if prepare_id is not None:
        body["prepare_id"] = prepare_id
    answer = world.api.post("/v1/appointments", send=body, **SERVICE)
    assert (answer.status, answer.headers["content-type"]) == (201, "application/json")
    made = answer.json
    assert made.keys() == MEMBERS
    assert made == {
        "id": made["id"],
        "user_id": inviter,
        "invitee_user_id": invitee,
        "prepare_id": prepare_id,
        "status": "open",
        "is_consume": False,
        "charge": None,
        "entries": [],
    }
    row = world.rows.run(
        "SELECT user_id, invitee_user_id, prepare_id, status, is_consume FROM appointment_info WHERE id = %s",
        made["id"],
    )
    assert row == [(inviter, invitee, prepare_id, 1, False)]
    assert world.api.get(f"/v1/appointments/{made['id']}", **SERVICE).json == made


def test_prepare_id_may_be_null(world: World) -> None:
    body = {"user_id": world.person(), "invitee_user_id": world.person(), "prepare_id": None}
    assert world.api.post("/v1/appointments", send=body, **SERVICE).status == 201


def test_the_same_two_may_have_many_appointments(world: World) -> None:
    body = {"user_id": world.person(), "invitee_user_id": world.person()}
    ids = [world.api.post("/v1/appointments", send=body, **SERVICE).json["id"] for _ in range(2)]
    assert ids[0] != ids[1]


def test_it_shows_its_charge_and_its_entries_oldest_first(world: World) -> None:
    id_, inviter, invitee = world.meeting()
    answers = [world.api.enter(id_, person).json for person in (invitee, inviter, invitee)]
    shown = world.api.get(f"/v1/appointments/{id_}", user=inviter).json
    assert shown["is_consume"] is True
    assert shown["charge"] == answers[0]["charge"]
    assert shown["entries"] == [{"user_id": each["user_id"], "entered_at": each["entered_at"]} for each in answers]
    times = [datetime.fromisoformat(entry["entered_at"]) for entry in shown["entries"]]
    assert times == sorted(times)
    assert all(time.utcoffset() == timedelta(0) for time in times)


@pytest.mark.parametrize(
    ("who", "scope", "code"),
    [
        ("inviter", "", None),
        ("invitee", "", None),
        ("inviter", "locks monitor operator", None),
        ("stranger", "service", None),
        ("stranger", "locks service", None),
        ("stranger", "", "illegal-request"),
        ("stranger", "locks", "illegal-request"),
        ("stranger", "monitor", "illegal-request"),
        ("stranger", "operator", "illegal-request"),
        ("nobody", "", "unauthenticated"),
    ],
)
def test_who_may_see_an_appointment(world: World, who: str, scope: str, code: str | None) -> None:
    id_, inviter, invitee = world.meeting()
    user = {"inviter": inviter, "invitee": invitee, "stranger": world.person(), "nobody": None}[who]
    answer = world.api.get(f"/v1/appointments/{id_}", user=user, scope=scope)
    if code is None:
        assert (answer.status, answer.json["id"]) == (200, id_)
    else:
        problem(answer, code)


@pytest.mark.parametrize(
    ("who", "scope", "code"),
    [
        ("stranger", "service", None),
        ("inviter", "service", None),
        ("inviter", "", "forbidden"),
        ("invitee", "operator monitor locks", "forbidden"),
        ("stranger", "", "forbidden"),
        ("nobody", "", "unauthenticated"),
    ],
)
def test_who_may_change_an_appointment(world: World, who: str, scope: str, code: str | None) -> None:
    id_, inviter, invitee = world.meeting()
    user = {"inviter": inviter, "invitee": invitee, "stranger": world.person(), "nobody": None}[who]
    before = everything(world.rows)
    answer = world.api.call("PATCH", f"/v1/appointments/{id_}", user=user, scope=scope, send={"status": "ended"})
    if code is None:
        assert (answer.status, answer.json["status"]) == (200, "ended")
    else:
        problem(answer, code)
        assert everything(world.rows) == before


def test_a_missing_appointment_is_not_found_by_services_only(world: World) -> None:
    missing = world.rows.number("SELECT max(id) FROM appointment_info") + 10**6
    problem(world.api.get(f"/v1/appointments/{missing}", **SERVICE), "not-found")
    problem(world.api.call("PATCH", f"/v1/appointments/{missing}", send={"status": "open"}, **SERVICE), "not-found")
    problem(world.api.get(f"/v1/appointments/{missing}", user=7), "illegal-request")


def test_it_is_ended_cancelled_and_opened_again_and_nothing_else_changes(world: World) -> None:
    id_, inviter, invitee = world.meeting()
    charged = world.api.enter(id_, inviter).json
    path = f"/v1/appointments/{id_}"
    before = world.api.get(path, **SERVICE).json
    for word, number in (("ended", 2), ("cancelled", 3), ("cancelled", 3), ("open", 1)):
        changed = world.api.call("PATCH", path, send={"status": word}, **SERVICE)
        assert changed.status == 200
        assert changed.json == {**before, "status": word} == world.api.get(path, user=invitee).json
        assert world.rows.number("SELECT status::int FROM appointment_info WHERE id = %s", id_) == number
        if word != "open":
            problem(world.api.enter(id_, invitee), "appointment-not-open")
    again = world.api.enter(id_, invitee)
    assert (again.status, again.json["charge"]) == (200, charged["charge"])
