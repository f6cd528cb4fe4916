"""chargeonce locks: the same as the HTTP API, for a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from db.database import Database
from locks import Locker
from service.locks_command import _release
from tests.contract.conftest import World
from tests.contract.lease_client import LeaseClient, fresh_name
from tests.harness import PATIENCE_S, ROOT, clean_environment, run_cli, wait_until


@pytest.fixture
def held(leases: LeaseClient) -> Iterator[tuple[str, dict[str, object]]]:
    """A held lock of a resource of its own, and its lease."""
    name = fresh_name()
    lease = leases.lease(name, headers={"X-Request-Id": "r-1"})
    yield name, lease
    leases.release(name, str(lease["lease_id"]))


def on_a_terminal(*words: str, environment: Mapping[str, str]) -> str:
    """What a person sees."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "service", *words],
        env={**environment, "COLUMNS": "200", "TERM": "xterm"},
        cwd=ROOT,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:
        pass  # Linux says so that the other end is closed
    assert process.wait(PATIENCE_S) == 0, shown
    os.close(master)
    return shown.decode()


def test_list_shows_what_the_http_api_lists(
    world: World, environment: Mapping[str, str], held: tuple[str, dict[str, object]]
) -> None:
    name, lease = held
    resource = name.partition(":")[0]
    path = f"/v1/locks?search={resource}"
    wait_until(lambda: world.api.get(path, user=1, scope="monitor").json["locks"], what="the list to know of it")

    plain = run_cli("locks", "list", "--search", resource, "--sort", "held", environment=environment)
    assert plain.returncode == 0, plain.stderr
    titles, row = [line.split("\t") for line in plain.stdout.splitlines()]
    assert titles == ["name", "holder", "held", "expires in", "waiters", "fencing token"]
    assert (row[0], row[4], row[5]) == (name, "0", str(lease["fencing_token"]))
    assert "request r-1" in row[1]

    as_json = run_cli("locks", "list", "--search", resource, "--json", environment=environment)
    [listed] = json.loads(as_json.stdout)["locks"]
    [over_http] = world.api.get(path, user=1, scope="monitor").json["locks"]
    assert listed.keys() == over_http.keys()
    assert (listed["name"], listed["holder"]) == (name, over_http["holder"])

    shown = on_a_terminal("locks", "list", "--search", resource, environment=environment)
    assert name in shown
    assert "┃" in shown
    for output in (plain.stdout, as_json.stdout, shown):
        assert str(lease["lease_id"]) not in output


def test_show_names_the_holder_and_a_free_lock_has_a_status_of_its_own(
    environment: Mapping[str, str], leases: LeaseClient, held: tuple[str, dict[str, object]]
) -> None:
    name, lease = held
    shown = run_cli("locks", "show", name, environment=environment)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"{name} is held by ")
    assert "request r-1" in shown.stdout
    assert str(lease["fencing_token"]) in shown.stdout
    assert str(lease["lease_id"]) not in shown.stdout
    as_json = json.loads(run_cli("locks", "show", name, "--json", environment=environment).stdout)
    assert as_json["holder"] == leases.show(name).json["holder"]

    free = run_cli("locks", "show", f"{name}/free", environment=environment)
    assert (free.returncode, free.stdout) == (3, "")
    assert free.stderr.splitlines() == [f"chargeonce: nobody holds the lock '{name}/free'"]


def test_release_names_the_holder_ends_the_lease_and_is_written_down(
    world: World, environment: Mapping[str, str], leases: LeaseClient, held: tuple[str, dict[str, object]]
) -> None:
    name, lease = held
    wrong = ("locks", "release", name, "--reason", "a try", "--fencing-token", "1")
    refused = run_cli(*wrong, environment=environment)
    assert refused.returncode == 1
    assert "nothing was released" in refused.stderr
    assert leases.extend(name, str(lease["lease_id"])).status == 200

    released = run_cli("locks", "release", name, "--reason", "it hangs", environment=environment)
    assert released.returncode == 0, released.stderr
    assert "request r-1" in released.stdout
    assert str(lease["fencing_token"]) in released.stdout
    assert leases.extend(name, str(lease["lease_id"])).json["reason"] == "forced"

    again = run_cli("locks", "release", name, "--reason", "it hangs", environment=environment)
    assert again.returncode == 3
    written = world.rows.run(
        "SELECT action, reason, actor, fencing_token FROM lock_audit WHERE lock_name = %s ORDER BY id", name
    )
    [(_, _, actor, _), _] = written
    assert isinstance(actor, str)
    assert actor.startswith("cli:")
    assert written == [
        ("force-release-refused", "a try", actor, 1),
        ("force-release", "it hangs", actor, lease["fencing_token"]),
    ]


@pytest.mark.parametrize("token", [(), ("--fencing-token", "7"), ("--fencing-token", "0")], ids=["", "7", "0"])
def test_the_release_of_a_free_lock_has_a_status_of_its_own_whatever_token_is_named(
    environment: Mapping[str, str], token: tuple[str, ...]
) -> None:
    name = fresh_name()

    free = run_cli("locks", "release", name, "--reason", "it hangs", *token, environment=environment)

    assert (free.returncode, free.stdout) == (3, "")
    assert free.stderr.splitlines() == [f"chargeonce: nobody holds the lock '{name}'"]


def test_a_lock_that_is_given_back_while_its_release_is_written_down_counts_as_free(
    world: World, leases: LeaseClient, held: tuple[str, dict[str, object]]
) -> None:
    name, lease = held

    class GivesItBack(Database):
        def settled_transaction(self, *words: Any, **more: Any) -> Any:
            leases.release(name, str(lease["lease_id"]))
            return super().settled_transaction(*words, **more)

    async def release() -> int | None:
        async with Locker.connect(world.redis_url, instance_id="cli-test") as locker:
            return await _release(locker, database, name, "it hangs", None)

    with closing(GivesItBack(world.database_url)) as database:
        assert asyncio.run(release()) is None
    assert world.rows.one("SELECT action FROM lock_audit WHERE lock_name = %s", name) == "force-release-refused"


@pytest.mark.parametrize(
    "words",
    [("list",), ("show", "x:1"), ("release", "x:1", "--reason", "why"), ("show", "no name"), ("list", "--limit", "0")],
    ids=" ".join,
)
def test_what_cannot_be_looked_at_says_why_in_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    ended = run_cli("locks", *words, environment=clean_environment(data_dir=str(tmp_path / "nobody")))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    if words[0] != "list" or len(words) == 1:
        assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "nobody").exists()


def test_without_the_database_nothing_is_released(
    world: World, leases: LeaseClient, held: tuple[str, dict[str, object]]
) -> None:
    name, lease = held
    away = clean_environment(database_url="postgresql://nobody@127.0.0.1:1/none", redis_url=world.redis_url)
    ended = run_cli("locks", "release", name, "--reason", "it hangs", environment=away)
    assert ended.returncode == 2
    assert "nothing was released" in ended.stderr
    assert leases.extend(name, str(lease["lease_id"])).status == 200
