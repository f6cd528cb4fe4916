"""SIGTERM and Ctrl-C: what is under way gets its answer, nothing new is begun, nothing is left behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.contract.api import (
    Answer,
    Api,
    assert_books_right,
    charge_rows,
    held_row,
    in_background,
    problem,
    waits_for_row,
)
from tests.harness import PATIENCE_S, Rows, Service, clean_environment, run_cli, service, wait_until

PATIENT = {"row_lock_timeout_s": "40", "statement_timeout_s": "40", "charge_timeout_s": "50", "drain_timeout_s": "60"}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_requests_under_way_are_finished_and_new_ones_refused(
    start_service: Callable[..., Service], rows: Rows, database_url: str, signal_number: signal.Signals
) -> None:
    for user_id in (11, 22):
        rows.grant(user_id, 5)
    if signal.getsignal(signal_number) is signal.SIG_IGN:
        pytest.skip("started by nohup, and so is what we start")
    id_, other = rows.appointment(11, 22), rows.appointment(11, 22)
    service = start_service(workers=1, **PATIENT)
    api = Api(service.url)
    [worker] = service.worker_pids()
    kept_alive = api.connection()
    assert api.get("/livez", on=kept_alive).status == 200

    with in_background() as start, held_row(database_url, id_) as release:
        entering = start(api.enter, id_, 11)
        wait_until(lambda: waits_for_row(rows))
        os.kill(service.process.pid, signal_number)
        wait_until(lambda: '"draining"' in service.logged())
        os.kill(service.process.pid, signal_number)  # once more, as `timeout` does
        refusal = first_refusal(api, kept_alive, other)
        problem(refusal, "draining")
        assert refusal.headers["connection"] == "close"
        problem(api.get("/readyz"), "draining")
        problem(api.enter(other, 22), "draining")
        assert charge_rows(rows, other) == 0
        assert not entering.done()
        assert service.process.poll() is None, "it waits for what is under way"
        release()
        answer = entering.result()
    kept_alive.close()

    assert (answer.status, charge_rows(rows, id_)) == (201, 1)
    assert service.process.wait(PATIENCE_S) == 0
    assert not alive(worker)
    assert "Traceback" not in service.logged()
    assert_books_right(database_url)


def signal_until_gone(pid: int, number: signal.Signals, is_gone: Callable[[], bool]) -> None:
    """One after the other, so that one of them meets every moment of its end."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_gone():
        assert time.monotonic() < deadline_s, "it does not end"
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_come_when_all_is_drained_do_not_change_how_it_ends(
    start_service: Callable[..., Service], number: signal.Signals
) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("started by nohup, and so is what we start")
    service = start_service()
    supervisor = service.process
    workers = pids_below(supervisor.pid)

    supervisor.send_signal(number)
    wait_until(lambda: not any(map(alive, workers)), what="the end of the workers")
    signal_until_gone(supervisor.pid, number, lambda: supervisor.poll() is not None)

    assert supervisor.returncode == 0, service.logged()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_drained_ends_in_order_whatever_else_it_is_sent(
    start_service: Callable[..., Service], number: signal.Signals
) -> None:
    service = start_service(workers=1)
    [worker] = service.worker_pids()

    os.kill(worker, number)
    wait_until(lambda: '"worker drained"' in service.logged())
    signal_until_gone(worker, number, lambda: '"worker died"' in service.logged())

    [death] = [line for line in service.logged().splitlines() if '"worker died"' in line]
    assert json.loads(death)["status"] == 0


def first_refusal(api: Api, kept_alive: http.client.HTTPConnection, appointment_id: int) -> Answer:
    """The first answer on this connection that is none of before the signal."""
    while True:
        answer = api.get(f"/v1/appointments/{appointment_id}", user=11, on=kept_alive)
        if answer.status != 200:
            return answer


def test_leases_are_given_back_and_redis_holds_no_key_without_an_end(
    start_service: Callable[..., Service], rows: Rows
) -> None:
    rows.grant(11, 50)
    service = start_service()
    api = Api(service.url)
    ids = [rows.appointment(11, 22) for _ in range(5)]
    assert [api.enter(id_, 11).status for id_ in ids] == [201] * 5
    assert service.stop() == 0

    with redis.Redis.from_url(service.environment["CHARGEONCE_REDIS_URL"], socket_timeout=5) as client:
        for id_ in ids:
            assert client.get(f"lock:{{appointment:{id_}}}") is None
            for key in client.scan_iter(match=f"*{{appointment:{id_}}}*"):
                assert client.pttl(key) > 0


def test_a_second_start_on_the_same_folder_finds_yesterdays_data(tmp_path: Path) -> None:
    environment = clean_environment(data_dir=str(tmp_path / "data"))
    nothing_set: dict[str, str] = {"jwt_secret": "", "agora_app_id": "", "agora_app_certificate": ""}

    with service(tmp_path, workers=1, **nothing_set) as today:
        api = Api(today.url)
        made = run_cli("seed", "--appointments", "3", "--users", "4", "--coupons", "9", environment=environment)
        assert made.returncode == 0, made.stderr
        children = pids_below(today.process.pid)
        assert len(children) >= 3, "a worker and two servers"
        made = run_cli("token", "--user", "1", "--scope", "service", environment=environment)
        assert made.returncode == 0, made.stderr
        authorization = {"Authorization": f"Bearer {made.stdout.strip()}"}
        created = api.post("/v1/appointments", send={"user_id": 1, "invitee_user_id": 2}, headers=authorization)
        assert created.status == 201, created.body
        path = f"/v1/appointments/{created.json['id']}"
        entered = api.post(f"{path}/entries", headers=authorization)
        assert entered.status == 201
        assert run_cli("audit", environment=environment).returncode == 0, "beside the running service"
        assert today.stop() == 0
        assert not any(alive(pid) for pid in children)
    assert run_cli("audit", environment=environment).returncode == 0, "with nothing running"
    assert oct((tmp_path / "data").stat().st_mode & 0o777) == "0o700"

    with service(tmp_path, workers=1, **nothing_set) as tomorrow:
        api = Api(tomorrow.url)
        found = api.get(path, headers=authorization)
        assert found.status == 200, "the token of yesterday is still good"
        assert found.json["charge"] == entered.json["charge"]
        repeated = api.post(f"{path}/entries", headers=authorization)
        assert repeated.json["outcome"] == "already_charged"
        assert tomorrow.stop() == 0
        secrets = json.loads((tmp_path / "data" / "secrets.json").read_text())
        for secret in secrets.values():
            assert secret not in today.logged() + tomorrow.logged()


def pids_below(pid: int) -> list[int]:
    """A process's children and theirs."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [grandchild for child in children for grandchild in pids_below(child)]
