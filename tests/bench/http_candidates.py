"""The candidates that answer HTTP: the service, and the obvious implementation, under the same load."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import jwt
import uvloop

from .cpu import Meter, Reading
from .ground import Appointments, Ground
from .load import LoadError, LoadResult, drive
from .rounds import CandidateFailed, Plan, Round, cpu_us_per_charge, percentiles_ms

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 30.0
STOPPED_WITHIN_S = 25.0
LOG_TAIL_BYTES = 800


class HttpCandidate:
    """A program that serves POST /v1/appointments/{id}/entries; `commands` are started side by side on one port."""

    def __init__(self, name: str, commands: list[list[str]]) -> None:
        self.name = name
        self._commands = commands
        self._jwt_secret = secrets.token_hex(32)
        self._agora_app_id = secrets.token_hex(16)
        self._agora_app_certificate = secrets.token_hex(16)
        self._tokens: dict[int, str] = {}

    def measure(self, ground: Ground, plan: Plan, appointments: Appointments) -> Round:
        """Starts the program, drives it, stops it, and holds its answers against the database."""
        port = _free_port()
        requests = self._requests(appointments, port)
        readings: list[Reading | None] = []
        with self._serving(ground, port) as pids:
            meter = Meter(ground.process_roots() | {"workers": pids})
            try:
                result = _driven(plan, port, requests, lambda: readings.append(meter.read()))
            except (LoadError, OSError) as error:
                raise CandidateFailed(f"{self.name}: {error}{_tail(self._log(ground))}") from error
        before, after = readings
        return Round(
            candidate=self.name,
            charged=result.charged,
            measured_s=result.measured_s,
            charges_per_s=result.charged / result.measured_s,
            latency_ms=percentiles_ms(result.latencies_s),
            cpu_us_per_charge=cpu_us_per_charge(
                before, after, charged=result.charged, known_s={"client": result.process_cpu_s}
            ),
            faults=_faults(ground, appointments, result),
        )

    def _requests(self, appointments: Appointments, port: int) -> list[bytes]:
        tails = {payer_id: self._tail_of_request(payer_id, port) for payer_id in set(appointments.payer_ids)}
        return [
            b"POST /v1/appointments/%d/entries HTTP/1.1\r\n%b" % (appointment_id, tails[payer_id])
            for appointment_id, payer_id in enumerate(appointments.payer_ids, appointments.first_id)
        ]

    def _tail_of_request(self, user_id: int, port: int) -> bytes:
        if user_id not in self._tokens:
            claims = {"sub": str(user_id), "exp": int(time.time()) + 6 * 3600, "scope": ""}
            self._tokens[user_id] = jwt.encode(claims, self._jwt_secret, algorithm="HS256")
        return (
            f"Host: {HOST}:{port}\r\nAuthorization: Bearer {self._tokens[user_id]}\r\nContent-Length: 0\r\n\r\n"
        ).encode()

    @contextmanager
    def _serving(self, ground: Ground, port: int) -> Iterator[list[int]]:
        with self._log(ground).open("ab") as log, ExitStack() as stack:
            processes = [
                stack.enter_context(_child(command, self._environment(ground, port), log)) for command in self._commands
            ]
            _wait_until_ready(port, processes, self._log(ground))
            yield [process.pid for process in processes]

    def _log(self, ground: Ground) -> Path:
        return ground.folder / f"{self.name}.log"

    def _environment(self, ground: Ground, port: int) -> dict[str, str]:
        return ground.environment() | {
            "CHARGEONCE_PORT": str(port),
            "CHARGEONCE_JWT_SECRET": self._jwt_secret,
            "CHARGEONCE_AGORA_APP_ID": self._agora_app_id,
            "CHARGEONCE_AGORA_APP_CERTIFICATE": self._agora_app_certificate,
        }


def the_service(plan: Plan) -> HttpCandidate:
    """What this repository is about, with its default settings and its default logging, into a file."""
    return HttpCandidate(
        "ours", [[sys.executable, "-m", "service", "serve", "--host", HOST, "--workers", str(plan.workers)]]
    )


def the_obvious(plan: Plan) -> HttpCandidate:
    """See obvious.py."""
    return HttpCandidate("obvious", [[sys.executable, "-m", "tests.bench.obvious"]] * plan.workers)


def _driven(plan: Plan, port: int, requests: list[bytes], at_boundary: Callable[[], None]) -> LoadResult:
    return uvloop.run(
        drive(
            host=HOST,
            port=port,
            requests=requests,
            connections=plan.connections,
            warm_up_s=plan.warm_up_s,
            measured_s=plan.measured_s,
            at_boundary=at_boundary,
        )
    )


def _faults(ground: Ground, appointments: Appointments, result: LoadResult) -> tuple[str, ...]:
    faults = [f"{count} answers were {what}" for what, count in sorted(result.failures.items())]
    counted = ground.count(appointments)
    answered = result.charged_in_all
    if (counted.charges, counted.entries, counted.marked) != (answered, answered, answered):
        faults.append(f"{answered} answers said charged, Postgres holds {counted}")
    return tuple(faults)


@contextmanager
def _child(command: list[str], environment: dict[str, str], log: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a session of its own: a Ctrl-C reaches it through us alone; it and its children end with the block."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
        process.terminate()
        process.wait(STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        raise CandidateFailed(f"{command[-1]} did not stop within {STOPPED_WITHIN_S:g} s of SIGTERM") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(port: int, processes: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            raise CandidateFailed(f"it ended before it was ready{_tail(log)}")
        if all(_is_ready(port) for _ in range(2 * len(processes))):
            return
        time.sleep(0.1)
    raise CandidateFailed(f"it was not ready within {READY_WITHIN_S:g} s{_tail(log)}")


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _tail(log: Path) -> str:
    text = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    return f"; its log ends: {text}" if text else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
