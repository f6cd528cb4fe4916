"""A program that serves entries over HTTP: started on a port of its own, awaited, stopped, and the requests for it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import jwt

from .ground import Ground
from .rounds import CandidateFailed

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 30.0
STOPPED_WITHIN_S = 25.0
LOG_TAIL_BYTES = 800
TOKEN_TTL_S = 6 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A program that is ready. `pids` are the roots of its process trees; `tail_of_request` takes a user's id and the
    number of one of their access tokens, and gives the headers."""

    port: int
    pids: list[int]
    log: Path
    tail_of_request: Callable[[int, int], bytes]

    def entries(self, wanted: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """One request for each (appointment_id, user_id), with the user's access token."""
        tails: dict[int, bytes] = {}
        for appointment_id, user_id in wanted:
            tail = tails.get(user_id)
            if tail is None:
                tail = tails[user_id] = self.tail_of_request(user_id, 0)
            yield b"POST /v1/appointments/%d/entries HTTP/1.1\r\n%b" % (appointment_id, tail)

    def entry(self, appointment_id: int, user_id: int, *, token_number: int = 0) -> bytes:
        """One request, with one of the user's many access tokens."""
        return b"POST /v1/appointments/%d/entries HTTP/1.1\r\n%b" % (
            appointment_id,
            self.tail_of_request(user_id, token_number),
        )

    def worker_pids(self) -> list[int]:
        """The processes that the service's supervisor has for its workers; none where there is no /proc."""
        found = []
        for pid in self.pids:
            with suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                found += [int(each) for each in children if b"worker" in _words(each)]
        return found

    def log_tail(self) -> str:
        """How its log ends, to be put behind an error."""
        return _tail(self.log)


class Program:
    """`commands` are started side by side on one port."""

    def __init__(self, name: str, commands: list[list[str]]) -> None:
        self.name = name
        self._commands = commands
        self._jwt_secret = secrets.token_hex(32)
        self._agora_app_id = secrets.token_hex(16)
        self._agora_app_certificate = secrets.token_hex(16)
        self._tokens: dict[tuple[int, int], str] = {}

    def access_token(self, user_id: int, *, scope: str, number: int = 0) -> str:
        """One of the user's many, for every start of this program."""
        claims = {"sub": str(user_id), "exp": int(time.time()) + TOKEN_TTL_S, "scope": scope, "jti": str(number)}
        return jwt.encode(claims, self._jwt_secret, algorithm="HS256")

    @contextmanager
    def serving(self, ground: Ground, **settings: str) -> Iterator[Running]:
        """Ready on a free port; stopped with the block. Raises CandidateFailed."""
        port, log_path = _free_port(), ground.folder / f"{self.name}.log"
        environment = self._environment(ground, port) | settings
        with log_path.open("ab") as log, ExitStack() as stack:
            processes = [stack.enter_context(_child(command, environment, log)) for command in self._commands]
            _wait_until_ready(port, processes, log_path)
            yield Running(
                port=port,
                pids=[process.pid for process in processes],
                log=log_path,
                tail_of_request=lambda user_id, number: self._request_tail(user_id, number, port),
            )

    def _request_tail(self, user_id: int, number: int, port: int) -> bytes:
        if (user_id, number) not in self._tokens:
            self._tokens[user_id, number] = self.access_token(user_id, scope="", number=number)
        token = self._tokens[user_id, number]
        return f"Host: {HOST}:{port}\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n".encode()

    def _environment(self, ground: Ground, port: int) -> dict[str, str]:
        return ground.environment() | {
            "CHARGEONCE_PORT": str(port),
            "CHARGEONCE_JWT_SECRET": self._jwt_secret,
            "CHARGEONCE_AGORA_APP_ID": self._agora_app_id,
            "CHARGEONCE_AGORA_APP_CERTIFICATE": self._agora_app_certificate,
        }


def the_service(*, workers: int) -> Program:
    """What this repository is about, with its default settings and its default logging, into a file."""
    return Program("ours", [[sys.executable, "-m", "service", "serve", "--host", HOST, "--workers", str(workers)]])


def the_obvious(*, workers: int) -> Program:
    """See obvious.py."""
    return Program("obvious", [[sys.executable, "-m", "tests.bench.obvious"]] * workers)


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


def _words(pid: str) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def _tail(log: Path) -> str:
    text = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    return f"; its log ends: {text}" if text else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
