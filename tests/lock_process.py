"""A holder or waiter in a process of its own, to be killed and frozen; tells what happens, and exactly when.

The process is tests/lock_child.py. Times are CLOCK_MONOTONIC, time.monotonic(), which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from tests.harness import PATIENCE_S, ROOT, wait_until
from tests.servers.processes import tied

Event = dict[str, Any]


class LockProcess:
    """A child with one Locker. Every attempt has a handle, a number; an attempt's events are those with its id.

    Events: acquired (fencing_token), lost (reason), released (still_ours), refused (error, message), cancelled.
    Each has at_s, and asked_at_s, when the process began the attempt.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        self._handles = itertools.count(1)
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.events: list[Event] = []
        self._reader.start()

    @classmethod
    def start(
        cls, url: str, folder: Path, *, instance_id: str = "lock-process", environment: Mapping[str, str] | None = None
    ) -> Self:
        """Returns once its locker is connected; its log is in the folder. Fails the test when it cannot connect.

        environment: beside this process' own.
        """
        log = folder / f"lock-process-{time.monotonic_ns()}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                tied([sys.executable, "-m", "tests.lock_child", url, instance_id]),
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
            )
        started = cls(process, log)
        try:
            started._wait("up", lambda event: event["event"] == "up", patience_s=PATIENCE_S)
        except BaseException:
            started.kill()
            raise
        return started

    @property
    def pid(self) -> int:
        """The process that holds and waits."""
        return self._process.pid

    def acquire(
        self, name: str, *, lease_ttl_s: float = 10.0, wait_s: float | None = None, keep_extended: bool = False
    ) -> int:
        """Begins Locker.acquire; the lease is held until release(handle). Returns at once."""
        return self._begin("acquire", name=name, lease_ttl_s=lease_ttl_s, wait_s=wait_s, keep_extended=keep_extended)

    def hold(self, name: str, *, lease_ttl_s: float = 10.0, wait_s: float | None = None) -> int:
        """Begins `async with Locker.hold`; the body lasts until release(handle) or its loss. Returns at once."""
        return self._begin("hold", name=name, lease_ttl_s=lease_ttl_s, wait_s=wait_s)

    def release(self, handle: int) -> None:
        """Lets go of what this attempt has acquired. Returns at once; wait for 'released'."""
        self._tell("release", handle)

    def cancel(self, handle: int) -> None:
        """Cancels the attempt's task, which waits, or holds by hold(). Returns at once; wait for 'cancelled'."""
        self._tell("cancel", handle)

    def wait_for(self, handle: int, kind: str, *, patience_s: float = PATIENCE_S) -> Event:
        """The attempt's first event of this kind; fails the test when the process ends or the time runs out before."""
        return self._wait(
            f"{kind} of {handle}",
            lambda event: event["event"] == kind and event.get("id") == handle,
            patience_s=patience_s,
        )

    def wait_for_emitted(self, kind: str, *, patience_s: float = PATIENCE_S, **facts: object) -> Event:
        """The first event of this class with these fields that the process's locker has emitted: "Waiting", name=…."""

        def wanted(event: Event) -> bool:
            is_one = event["event"] == "emitted" and event["kind"] == kind
            return is_one and all(event["facts"].get(field) == value for field, value in facts.items())

        return self._wait(f"{kind} {facts}", wanted, patience_s=patience_s)

    async def wait_for_async(self, handle: int, kind: str, *, patience_s: float = PATIENCE_S) -> Event:
        """The same on an event loop."""
        return await asyncio.to_thread(self.wait_for, handle, kind, patience_s=patience_s)

    def events_of(self, handle: int) -> list[Event]:
        """What has been heard of this attempt until now."""
        with self._changed:
            return [event for event in self.events if event.get("id") == handle]

    def leave(self) -> None:
        """Ends it in order, as its input's end makes it: it closes its connections and releases nothing."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)

    def kill(self) -> None:
        """Gone at once, also when frozen, releasing nothing; harmless twice."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def freeze(self) -> None:
        """Stands still when this returns, its connections open."""
        self._process.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{self.pid}/stat")
        wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", what="a frozen process")

    def thaw(self) -> None:
        """Goes on."""
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _begin(self, command: str, **arguments: object) -> int:
        handle = next(self._handles)
        self._tell(command, handle, **arguments)
        return handle

    def _tell(self, command: str, handle: int, **arguments: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, "id": handle, **arguments}) + "\n")

    def _wait(self, what: str, wanted: Callable[[Event], bool], *, patience_s: float) -> Event:
        give_up_at = time.monotonic() + patience_s
        with self._changed:
            while (found := next(filter(wanted, self.events), None)) is None:
                assert not self._ended, f"ended before {what}: {self.events} {self._log.read_text()[-2000:]}"
                left_s = give_up_at - time.monotonic()
                assert left_s > 0, f"waited {patience_s} s in vain for {what}: {self.events}"
                self._changed.wait(left_s)
            return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
