"""Reads and writes beside charges: callers take turns, and who never reached Postgres is not told that it is down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.conftest import StartService
from tests.contract.api import Api, in_background, problem, waits_for_row
from tests.contract.test_overload import LONG_WAITS
from tests.contract.under_way import Call, under_way
from tests.harness import Rows, wait_until

HOSTILE, OTHER = 6666, 7
MANY = 200
# A statement may hold the only thread for longer than others wait for it.
SHORT_WAITS = {"charge_timeout_s": "6", "statement_timeout_s": "5.9", "row_lock_timeout_s": "5.8"}


@contextmanager
def held_appointments(database_url: str) -> Iterator[Callable[[], object]]:
    """Nobody reads an appointment until the function is called, or to the block's end."""
    stranger = Rows(database_url)
    try:
        stranger.run("BEGIN")
        stranger.run("LOCK TABLE appointment_info IN ACCESS EXCLUSIVE MODE")
        yield lambda: stranger.run("ROLLBACK")
    finally:
        stranger.close()


def waiting_reads(api: Api) -> float:
    return api.metrics()["chargeonce_queue_depth", (("queue", "read"),)]


def test_one_callers_reads_are_no_line_for_another_to_stand_in(
    start_service: StartService, rows: Rows, database_url: str
) -> None:
    """A slow statement has the only thread, hundreds of reads of one caller wait for it, and then comes another's."""
    api = Api(start_service(workers=1, read_threads="1", **LONG_WAITS).url)
    path = f"/v1/appointments/{rows.appointment(HOSTILE, OTHER)}"
    with (
        held_appointments(database_url) as release,
        under_way(api.url, [Call("GET", path, HOSTILE)] * MANY) as flood,
    ):
        wait_until(lambda: waiting_reads(api) == MANY - 1, what="the flood to wait")
        with under_way(api.url, [Call("GET", path, OTHER)]) as other:
            wait_until(lambda: waiting_reads(api) == MANY, what="the other to wait")
            release()
            [answer] = other.wait_for_all()
            before = len(flood.answered)
        flooded = flood.wait_for_all()

    assert answer.status == 200
    assert before < MANY * 3 / 4, "most of the flood comes after it"
    assert {each.status for each in flooded} == {200}


def test_what_reached_no_thread_is_overload_and_is_not_written_later(
    start_service: StartService, rows: Rows, database_url: str
) -> None:
    api = Api(start_service(workers=1, read_threads="1", **SHORT_WAITS).url)
    coupons = f"/v1/users/{OTHER}/coupons"
    wanted = {"coupon_id": 1, "count": 1, "reference": "never"}
    with held_appointments(database_url) as release, in_background() as begin:
        begin(api.get, f"/v1/appointments/{10**15}", user=HOSTILE)
        wait_until(lambda: waits_for_row(rows), what="the thread to be taken")
        answers = [
            begin(api.get, coupons, user=OTHER),
            begin(api.call, "POST", coupons, user=OTHER, scope="service", send=wanted),
        ]
        for answer in answers:
            told = problem(answer.result(), "overloaded")
            assert answer.result().headers["retry-after"] == "1"
            assert (told["retryable"], told["charged"]) == (True, False)
        release()

    wait_until(lambda: api.get(coupons, user=OTHER).status == 200, what="the thread to be free")
    assert rows.number("SELECT count(*) FROM coupon_grant") == 0
    assert api.call("POST", coupons, user=OTHER, scope="service", send=wanted).status == 201
