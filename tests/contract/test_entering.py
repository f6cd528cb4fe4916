"""POST /v1/appointments/{id}/entries and POST /agoraToken over real sockets: who is let in, and what it costs."""

from __future__ import annotations

import base64
import hmac
import struct
import warnings
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.contract.api import Answer, Api, assert_books_right, charge_rows, entry_rows, everything, price, problem
from tests.contract.conftest import World
from tests.harness import APP_CERTIFICATE, APP_ID, service

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its __init__ imports modules that it calls deprecated
    from agoraiotools.AccessToken2 import AccessToken, ServiceRtc


@pytest.fixture(scope="module", autouse=True)
def _books_are_right_at_the_end(world: World) -> Iterator[None]:
    yield
    assert_books_right(world.database_url)


@pytest.fixture(scope="module")
def where_the_inviter_pays(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A second service beside the module's, on the same tables, with the other rule and another default price."""
    addresses = {"database_url": world.database_url, "redis_url": world.redis_url}
    folder = tmp_path_factory.mktemp("inviter")
    with service(folder, workers=1, payer="inviter", default_coupon_count="2", **addresses) as running:
        yield Api(running.url)


def utc(text: str) -> datetime:
    """An RFC 3339 time in UTC."""
    assert "T" in text
    assert text.endswith(("Z", "+00:00"))
    return datetime.fromisoformat(text)


def outcome(answer: Answer) -> tuple[int, str, int | None]:
    """Status, outcome, and what was or had been charged."""
    members = answer.json
    return answer.status, members["outcome"], members["charge"] and members["charge"]["count"]


def test_the_first_entry_is_charged_and_later_ones_are_told_of_that_charge(world: World) -> None:
    id_, inviter, invitee = world.meeting()
    began_at = datetime.now(UTC) - timedelta(seconds=5)

    first, second, third = (world.api.enter(id_, person) for person in (inviter, inviter, invitee))

    assert first.headers["content-type"] == "application/json"
    members = first.json
    assert members.keys() == {"appointment_id", "user_id", "outcome", "charge", "entered_at", "room"}
    assert (members["appointment_id"], members["user_id"]) == (id_, inviter)
    assert [outcome(each) for each in (first, second, third)] == [
        (201, "charged", 1),
        (200, "already_charged", 1),
        (200, "already_charged", 1),
    ]
    [row] = world.rows.run(
        "SELECT id, user_id, other_user_id, coupon_id, prop_id, count, created_at, lock_fence"
        " FROM user_consume WHERE appointment_id = %s",
        id_,
    )
    charge = members["charge"]
    assert charge.keys() == {"id", "payer_id", "coupon_id", "prop_id", "count", "charged_at"}
    assert (charge["id"], charge["payer_id"], invitee, charge["coupon_id"], charge["prop_id"], charge["count"]) == row[
        :6
    ]
    assert (charge["coupon_id"], charge["prop_id"]) == (1, 1)
    assert utc(charge["charged_at"]) == row[6]
    assert began_at < utc(members["entered_at"]) < datetime.now(UTC) + timedelta(seconds=5)
    assert second.json["charge"] == third.json["charge"] == charge
    assert row[7] is not None, "the charge bears its fencing token"
    assert (world.rows.balance(inviter), world.rows.balance(invitee)) == (4, 5)
    assert world.rows.one("SELECT is_consume FROM appointment_info WHERE id = %s", id_) is True
    entered = world.rows.run("SELECT user_id, type FROM appointment_action WHERE appointment_id = %s ORDER BY id", id_)
    assert entered == [(inviter, 1), (inviter, 1), (invitee, 1)], "one ENTER row each"


@pytest.mark.parametrize("body", [b"", b"{}", b"not even JSON", b"\xff" * 1000])
def test_an_entry_needs_no_body_and_minds_none(world: World, body: bytes) -> None:
    id_, inviter, _ = world.meeting()
    assert world.api.enter(id_, inviter, body=body).status == 201


@pytest.mark.parametrize(
    ("first", "price_of_inviter", "price_of_invitee", "expected"),
    [
        ("inviter", None, None, (201, "charged", 1)),
        ("invitee", None, None, (201, "charged", 1)),
        ("inviter", 2, 3, (201, "charged", 3)),
        ("invitee", 2, 3, (201, "charged", 2)),
        ("inviter", 2, None, (201, "charged", 1)),
        ("inviter", 2, 0, (200, "free", None)),
        ("invitee", 0, 3, (200, "free", None)),
        ("inviter", 0, 5, (201, "charged", 5)),
    ],
)
def test_whoever_enters_first_pays_the_price_of_meeting_the_other(
    world: World,
    first: str,
    price_of_inviter: int | None,
    price_of_invitee: int | None,
    expected: tuple[int, str, int | None],
) -> None:
    id_, inviter, invitee = world.meeting(coupons=5)
    for person, cost in ((inviter, price_of_inviter), (invitee, price_of_invitee)):
        if cost is not None:
            price(world.rows, person, cost)
    entrant, other = (inviter, invitee) if first == "inviter" else (invitee, inviter)

    answer = world.api.enter(id_, entrant)

    assert outcome(answer) == expected
    paid = expected[2] or 0
    assert (world.rows.balance(entrant), world.rows.balance(other)) == (5 - paid, 5)
    assert (charge_rows(world.rows, id_), entry_rows(world.rows, id_)) == (int(paid > 0), 1)
    consumed = world.rows.one("SELECT is_consume FROM appointment_info WHERE id = %s", id_)
    assert consumed is (paid > 0), "a free entry leaves the charge to come"


def test_after_a_free_entry_the_other_one_still_pays(world: World) -> None:
    id_, inviter, invitee = world.meeting()
    price(world.rows, invitee, 0)
    entrants = (inviter, inviter, invitee, inviter)
    assert [outcome(world.api.enter(id_, person)) for person in entrants] == [
        (200, "free", None),
        (200, "free", None),
        (201, "charged", 1),
        (200, "already_charged", 1),
    ]
    assert entry_rows(world.rows, id_) == 4


def test_where_the_inviter_pays_the_invitee_enters_free(world: World, where_the_inviter_pays: Api) -> None:
    id_, inviter, _ = world.meeting(coupons=5)
    invitee = world.person(coupons=5)
    world.rows.run("UPDATE appointment_info SET invitee_user_id = %s WHERE id = %s", invitee, id_)
    price(world.rows, inviter, 4)
    entrants = (invitee, invitee, inviter, inviter, invitee)
    assert [outcome(where_the_inviter_pays.enter(id_, person)) for person in entrants] == [
        (200, "free", None),
        (200, "free", None),
        (201, "charged", 2),
        (200, "already_charged", 2),
        (200, "already_charged", 2),
    ]
    assert (world.rows.balance(inviter), world.rows.balance(invitee)) == (3, 5)
    assert entry_rows(world.rows, id_) == 5


def test_where_the_inviter_pays_an_inviter_without_coupons_keeps_no_invitee_out(
    world: World, where_the_inviter_pays: Api
) -> None:
    inviter, invitee = world.person(coupons=1), world.person()
    id_ = world.rows.appointment(inviter, invitee)
    members = problem(where_the_inviter_pays.enter(id_, inviter), "insufficient-coupons")
    assert (members["required"], members["available"]) == (2, 1)
    assert outcome(where_the_inviter_pays.enter(id_, invitee)) == (200, "free", None)


def test_too_few_coupons_are_refused_with_what_is_missing_and_nothing_is_written(world: World) -> None:
    poor, partner = world.person(coupons=2), world.person()
    price(world.rows, partner, 3)
    id_ = world.rows.appointment(poor, partner)
    before = everything(world.rows)
    members = problem(world.api.enter(id_, poor), "insufficient-coupons")
    assert (members["required"], members["available"], members["coupon_id"]) == (3, 2, 1)
    assert everything(world.rows) == before
    none_at_all = problem(world.api.enter(id_, partner), "insufficient-coupons")
    assert (none_at_all["required"], none_at_all["available"]) == (1, 0)
    assert everything(world.rows) == before
    world.rows.grant(poor, 1)
    assert outcome(world.api.enter(id_, poor)) == (201, "charged", 3)
    assert outcome(world.api.enter(id_, partner)) == (200, "already_charged", 3)


@pytest.mark.parametrize(("status", "word"), [(2, "ended"), (3, "cancelled")])
@pytest.mark.parametrize("charged", [False, True])
def test_nobody_enters_what_has_ended_or_was_cancelled(world: World, status: int, word: str, charged: bool) -> None:
    id_, inviter, invitee = world.meeting()
    if charged:
        assert world.api.enter(id_, inviter).status == 201
    world.rows.run("UPDATE appointment_info SET status = %s WHERE id = %s", status, id_)
    before = everything(world.rows)
    for person in (inviter, invitee):
        assert word in problem(world.api.enter(id_, person), "appointment-not-open")["detail"]
    assert everything(world.rows) == before


def test_a_stranger_learns_nothing_not_even_whether_the_appointment_exists(world: World) -> None:
    id_, _, invitee = world.meeting()
    ended, ended_inviter, _ = world.meeting()
    world.rows.run("UPDATE appointment_info SET status = 2 WHERE id = %s", ended)
    stranger = world.person(coupons=9)
    missing = id_ + 10**9
    before = everything(world.rows)
    named = {"headers": {"X-Request-Id": "always-the-same"}}
    refusals = [world.api.enter(each, stranger, **named) for each in (id_, ended, missing, 2**63 - 1)]
    scoped = {"scope": "service locks monitor operator", **named}
    refusals += [world.api.enter(each, stranger, **scoped) for each in (id_, missing)]
    form = {"appointmentId": id_, "otherUserid": invitee}
    refusals.append(world.api.post("/agoraToken", user=stranger, form=form, **named))
    refusals += [world.api.get(f"/v1/appointments/{each}", user=stranger, **named) for each in (id_, ended, missing)]
    for refusal in refusals:
        problem(refusal, "illegal-request")
    assert {refusal.body for refusal in refusals} == {refusals[0].body}, "byte for byte"
    shown = [{name: value for name, value in each.headers.items() if name != "date"} for each in refusals]
    assert all(headers == shown[0] for headers in shown)
    assert everything(world.rows) == before
    assert problem(world.api.enter(ended, ended_inviter), "appointment-not-open")


def as_json(api: Api, user: int, fields: dict[str, object]) -> Answer:
    return api.post("/agoraToken", user=user, send=fields)


def as_urlencoded(api: Api, user: int, fields: dict[str, object]) -> Answer:
    return api.post("/agoraToken", user=user, form=fields)


def as_multipart(api: Api, user: int, fields: dict[str, object]) -> Answer:
    parts = [f'--xyz\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields]
    headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
    return api.post("/agoraToken", user=user, body="".join(parts) + "--xyz--\r\n", headers=headers)


@pytest.mark.parametrize("sent", [as_json, as_urlencoded, as_multipart])
def test_the_origins_route_gives_the_same_answer(world: World, sent: Any) -> None:
    id_, inviter, invitee = world.meeting()
    first = sent(world.api, inviter, {"appointmentId": id_, "otherUserid": invitee})
    assert outcome(first) == (201, "charged", 1)
    assert first.json["room"]["channel"] == f"appointment-{id_}"
    second = sent(world.api, invitee, {"appointmentId": str(id_), "otherUserid": inviter, "unknown": "ignored"})
    assert outcome(second) == (200, "already_charged", 1)
    assert second.json.keys() == first.json.keys()
    assert outcome(world.api.enter(id_, inviter)) == (200, "already_charged", 1)
    assert entry_rows(world.rows, id_) == 3


@pytest.mark.parametrize("sent", [as_json, as_urlencoded, as_multipart])
def test_the_origins_route_refuses_another_partner_than_the_one_named(world: World, sent: Any) -> None:
    id_, inviter, invitee = world.meeting()
    stranger = world.person()
    before = everything(world.rows)
    for caller, other in ((inviter, stranger), (inviter, inviter), (stranger, inviter), (stranger, invitee)):
        problem(sent(world.api, caller, {"appointmentId": id_, "otherUserid": other}), "illegal-request")
    assert everything(world.rows) == before


@pytest.mark.parametrize("sent", [as_json, as_urlencoded, as_multipart])
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"otherUserid": 5}, "appointmentId"),
        ({"appointmentId": 5}, "otherUserid"),
        ({"appointmentId": "abc", "otherUserid": 5}, "appointmentId"),
        ({"appointmentId": "1.0", "otherUserid": 5}, "appointmentId"),
        ({"appointmentId": 5, "otherUserid": 0}, "otherUserid"),
        ({"appointmentId": 5, "otherUserid": -1}, "otherUserid"),
        ({"appointmentId": 2**63, "otherUserid": 5}, "appointmentId"),
        ({"appointmentId": "٤٢", "otherUserid": 5}, "appointmentId"),
    ],
)
def test_the_origins_route_names_the_field_that_it_cannot_read(
    world: World, sent: Any, fields: dict[str, object], field: str
) -> None:
    fields = {
        name: value.encode().decode("latin-1") if isinstance(value, str) else value for name, value in fields.items()
    }
    assert problem(sent(world.api, 7, fields), "invalid-request")["field"] == field


MULTIPART = b'--xyz\r\nContent-Disposition: form-data; name="appointmentId"\r\n%s\r\n\r\nx\r\n--xyz--\r\n'


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"--xyz\r\nnonsense", "multipart/form-data; boundary=xyz"),
        (b"--xyz\r\n", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=xyz"),
        (MULTIPART % b"Content-Transfer-Encoding: klingon", "multipart/form-data; boundary=xyz"),
        (MULTIPART % b"Content-Type: text/plain; charset=klingon", "multipart/form-data; boundary=xyz"),
        (MULTIPART % b"Content-Type: multipart/mixed; boundary=q", "multipart/form-data; boundary=xyz"),
        (MULTIPART % b"Content-Encoding: gzip", "multipart/form-data; boundary=xyz"),
        (MULTIPART % b"no header", "multipart/form-data; boundary=xyz"),
        (b"\xff=\xff&appointmentId=\xfe", "application/x-www-form-urlencoded"),
        (b"appointmentId=1&otherUserid=2", "application/x-www-form-urlencoded; charset=klingon"),
        (b"", "application/x-www-form-urlencoded"),
        (b"", "application/json"),
        (b"[1, 2]", "application/json"),
        (b"42", "application/json"),
        (b"{", "application/json"),
        (b'{"appointmentId": 1, "otherUserid": true}', "application/json"),
        (b'{"appointmentId": 1, "otherUserid": 2.5}', "application/json"),
        (b'{"appointmentId": 1, "otherUserid": NaN}', "application/json"),
        (b"[" * 20_000, "application/json"),
        (b'{"appointmentId": ' + b"9" * 10_000 + b"}", "application/json"),
        (b"\xff\xfe", "application/json; charset=utf-16"),
        (b'{"appointmentId": 1, "otherUserid": 2}', "text/plain"),
    ],
)
def test_the_origins_route_refuses_a_body_that_it_cannot_read(world: World, body: bytes, content_type: str) -> None:
    answer = world.api.post("/agoraToken", user=7, body=body, headers={"Content-Type": content_type})
    assert problem(answer, "invalid-request")["field"]


def test_the_room_token_opens_this_room_for_this_caller_and_nothing_else(world: World) -> None:
    id_, inviter, invitee = world.meeting()
    for person in (inviter, invitee):
        room = world.api.enter(id_, person).json["room"]
        assert room.keys() == {"app_id", "channel", "uid", "token", "expires_at"}
        assert (room["app_id"], room["channel"], room["uid"]) == (APP_ID, f"appointment-{id_}", str(person))
        token = AccessToken()
        assert room["token"].startswith("007")
        assert token.from_string(room["token"])
        assert (token._AccessToken__app_id, token._AccessToken__expire) == (APP_ID.encode(), 3600)
        [rtc] = token._AccessToken__service.values()
        assert isinstance(rtc, ServiceRtc)
        assert (rtc._ServiceRtc__channel_name, rtc._ServiceRtc__uid) == (
            room["channel"].encode(),
            str(person).encode(),
        )
        assert rtc._Service__privileges == dict.fromkeys((1, 2, 3, 4), 3600), "join, and publish sound, picture, data"
        issued_at = datetime.fromtimestamp(token._AccessToken__issue_ts, UTC)
        assert utc(room["expires_at"]) == issued_at + timedelta(seconds=3600)
        assert abs(issued_at - datetime.now(UTC)) < timedelta(seconds=60)
        assert is_signed(room["token"], token._AccessToken__issue_ts, token._AccessToken__salt)


def is_signed(token: str, issue_ts: int, salt: int) -> bool:
    """Whether the certificate's owner has signed it, computed from the format's description."""
    payload = zlib.decompress(base64.b64decode(token.removeprefix("007")))
    (length,) = struct.unpack_from("<H", payload)
    signature, body = payload[2 : 2 + length], payload[2 + length :]
    key = hmac.digest(struct.pack("<I", issue_ts), APP_CERTIFICATE.encode(), "sha256")
    return hmac.digest(hmac.digest(struct.pack("<I", salt), key, "sha256"), body, "sha256") == signature


def test_the_room_tokens_life_is_a_setting(world: World, tmp_path: Path) -> None:
    id_, inviter, _ = world.meeting()
    addresses = {"database_url": world.database_url, "redis_url": world.redis_url}
    with service(tmp_path, workers=1, room_token_ttl_s="77", **addresses) as running:
        members = Api(running.url).enter(id_, inviter).json
    token = AccessToken()
    assert token.from_string(members["room"]["token"])
    assert token._AccessToken__expire == 77
    assert utc(members["room"]["expires_at"]) - utc(members["entered_at"]) < timedelta(seconds=78)
