"""`python -m tests.chaos.race_instance`: the instances of one guard, each a process that can stop itself in a charge.

They read CHARGEONCE_ variables, say `ready` on standard output, and serve until standard input ends. They are forked,
so that everything is imported only once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import uvloop

from db.events import ChargeEvent, Decided
from service.listeners import Listeners
from service.observe import set_up_logs
from service.settings import load_settings
from tests.chaos.guards import GUARDS, serve_guard


class StopsItself:
    """Stops its process (SIGSTOP) where it has decided, but written nothing: once for each of the appointments.

    Only one of the instances does: whichever is there first. `claims` is the folder where they find out.
    """

    def __init__(self, appointment_ids: Collection[int], claims: Path) -> None:
        self._appointment_ids = set(appointment_ids)
        self._claims = claims

    def __call__(self, event: ChargeEvent) -> None:
        if not isinstance(event, Decided):
            return
        for appointment_id in self._appointment_ids.intersection(event.appointment_ids):
            self._appointment_ids.discard(appointment_id)
            if self._is_first(appointment_id):
                _tell(f"stopping {appointment_id}")
                os.kill(os.getpid(), signal.SIGSTOP)

    def _is_first(self, appointment_id: int) -> bool:
        try:
            (self._claims / str(appointment_id)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.race_instance")
    parser.add_argument("guard", choices=GUARDS)
    parser.add_argument("--listening-fds", type=int, nargs="+", required=True, help="one for each instance")
    parser.add_argument("--claims", type=Path, required=True)
    parser.add_argument("--stop-at", type=int, nargs="*", default=[], help="appointments")
    chosen = parser.parse_args()
    pids: list[int] = []
    for number, listening_fd in enumerate(chosen.listening_fds, 1):
        pid = os.fork()
        if pid == 0:
            _live(chosen, number, listening_fd)
        pids.append(pid)
    sys.exit(_look_after(pids))


def _live(chosen: argparse.Namespace, number: int, listening_fd: int) -> NoReturn:
    status = 1
    try:
        uvloop.run(_serve(chosen, number, listening_fd))
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


async def _serve(chosen: argparse.Namespace, number: int, listening_fd: int) -> None:
    settings = load_settings()
    set_up_logs(settings.log_level, settings.log_format)
    over = asyncio.Event()
    # Nobody writes to it, so what can be read is its end.
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), over.set)
    await serve_guard(
        chosen.guard,
        settings,
        instance_id=f"{chosen.guard}-{number}",
        listening=socket.socket(fileno=listening_fd),
        until=over.wait,
        on_ready=lambda: _tell("ready"),
        listeners=Listeners(on_charge_event=StopsItself(chosen.stop_at, chosen.claims)),
    )


def _look_after(pids: Sequence[int]) -> int:
    """Returns once all have ended: 0 where they did so in order. One that dies takes the others along."""
    ended: dict[int, int] = {}
    while len(ended) < len(pids):
        pid, status = os.wait()
        ended[pid] = os.waitstatus_to_exitcode(status)
        # One has ended in order: so is the race over, and one that has stopped itself is to hear of it.
        number = signal.SIGCONT if ended[pid] == 0 else signal.SIGKILL
        for each in pids:
            if each not in ended:
                with suppress(ProcessLookupError):
                    os.kill(each, number)
    return int(any(ended.values()))


def _tell(line: str) -> None:
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    main()
