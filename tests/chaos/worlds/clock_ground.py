"""A ground whose Valkey, Postgres, and any one instance have clocks of their own, which move while they run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.ground import ValkeyServer
from tests.chaos.worlds.native import FOLDER, Numbers, build, open_folder
from tests.chaos.worlds.special_ground import SpecialGround
from tests.harness import wait_until
from tests.servers.clock import SOURCE, TICK_S
from tests.servers.kinds import server_binary

NS_PER_S = 1_000_000_000
PID, AHEAD_NS = range(2)  # as native/process_clock.c has them


class ClockGround(SpecialGround):
    """shift_redis, shift_postgres, shift_instance: a clock is so many seconds ahead from now on, behind if below 0."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        self._of_postgres: dict[str, str] = {}  # filled once the library is built
        self._redis: Numbers
        self._postgres: Numbers
        self._instance: Numbers
        super().__init__(folder, postgres_settings=postgres_settings, postgres_environment=self._of_postgres)

    def prepare(self, stack: ExitStack) -> None:
        """The libraries, and the numbers that they obey."""
        native = stack.enter_context(open_folder())
        self._library = build(SOURCE, native)
        of_one_process = build(FOLDER / "process_clock.c", native)
        self._redis = stack.enter_context(Numbers(native / "redis", count=1))
        self._postgres = stack.enter_context(Numbers(native / "postgres", count=1))
        self._instance = stack.enter_context(Numbers(native / "instance", count=2))
        self._of_postgres |= self._shifted(self._postgres)
        self.instance_environment = {
            "LD_PRELOAD": str(of_one_process),
            "PROCESS_CLOCK_FILE": str(self._instance.path),
        }

    def complete(self, stack: ExitStack) -> None:
        """A Valkey with a clock of its own takes the other one's place."""
        self.valkey.close()
        self.valkey = _ShiftedValkey(self.folder, self._shifted(self._redis))
        stack.callback(self.valkey.close)
        self.valkey.start()

    def shift_redis(self, ahead_s: float) -> None:
        """Returns once Valkey's TIME shows it: that looks at the clock only now and then."""
        self._redis[0] = round(ahead_s * NS_PER_S)
        wait_until(lambda: self._redis_is(ahead_s), what="a TIME that follows the clock")

    def shift_postgres(self, ahead_s: float) -> None:
        """Of all its processes."""
        self._postgres[0] = round(ahead_s * NS_PER_S)

    def shift_instance(self, pid: int, ahead_s: float) -> None:
        """Of this process alone; whose clock was another one before has the true one again."""
        self._instance[PID] = 0
        self._instance[AHEAD_NS] = round(ahead_s * NS_PER_S)
        self._instance[PID] = pid

    def _redis_is(self, ahead_s: float) -> bool:
        before_s = time.time()
        seconds, microseconds = self.valkey.ask("TIME")
        shown_s = int(seconds) + int(microseconds) / 1e6
        return before_s - TICK_S <= shown_s - ahead_s <= time.time() + TICK_S

    def _shifted(self, ahead_ns: Numbers) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "SHIFTED_CLOCK_FILE": str(ahead_ns.path)}


class _ShiftedValkey(ValkeyServer):
    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__(server_binary("valkey"), folder)
        self._environment = environment
