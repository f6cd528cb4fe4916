"""The system's limit of open files: raised as far as it allows, and what does not fit it is lowered or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import StartService
from tests.contract.api import Api
from tests.harness import PATIENCE_S, ROOT, Service, Start


def limited(soft: int, hard: int) -> tuple[str, ...]:
    """`chargeonce serve` below these limits."""
    serve = (sys.executable, "-m", "service", "serve")
    return ("/bin/sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "limited", *serve)


def limits_of(pid: int) -> list[str]:
    """Soft and hard."""
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            return line.split()[3:5]
    raise AssertionError(pid)


def setting_of(pid: int, name: str) -> int:
    """What a worker was told."""
    for each in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if each.startswith(f"CHARGEONCE_{name}=".encode()):
            return int(each.partition(b"=")[2])
    raise AssertionError(name)


def warnings_of(service: Service) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in service.logged().splitlines()]
    return [line for line in lines if line["event"] == "limits lowered to the files that a process may have open"]


def test_the_soft_limit_is_raised_and_what_fits_is_left_alone(start_service: StartService) -> None:
    service = start_service(Start(command=limited(256, 8192)))

    for pid in (service.process.pid, *service.worker_pids()):
        assert limits_of(pid) == ["8192", "8192"]
    assert warnings_of(service) == []
    assert setting_of(service.worker_pids()[0], "MAX_REQUESTS_IN_FLIGHT") == 4000


def test_limits_that_do_not_fit_are_lowered_and_said_in_one_line(start_service: StartService) -> None:
    service = start_service(Start(command=limited(256, 512)), max_lease_waits="1000")

    (warning,) = warnings_of(service)
    for name in ("max_requests_in_flight", "max_lease_waits"):
        told = setting_of(service.worker_pids()[0], name.upper())
        assert 0 < told < 512
        assert warning[name] == told
    assert Api(service.url).get("/readyz").status == 200


def test_a_limit_too_small_for_any_request_is_refused_in_one_line(cli_environment: dict[str, str]) -> None:
    refused = subprocess.run(
        limited(64, 100),
        cwd=ROOT,
        env={**cli_environment, "CHARGEONCE_CHARGE_LANES": "40"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "CHARGEONCE_CHARGE_LANES" in line
    assert "100 files" in line
