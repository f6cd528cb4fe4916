"""A ground whose Postgres syncs its files slowly, or is told that a sync has failed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.worlds.native import FOLDER, Numbers, build, open_folder
from tests.chaos.worlds.special_ground import SpecialGround

NS_PER_S = 1_000_000_000
DELAY_NS, FAILURES_LEFT = range(2)  # as native/iofault.c has them


class SlowDiskGround(SpecialGround):
    """Its Postgres alone has this disk."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        self._of_postgres: dict[str, str] = {}  # filled once the library is built
        self._control: Numbers
        super().__init__(folder, postgres_settings=postgres_settings, postgres_environment=self._of_postgres)

    def prepare(self, stack: ExitStack) -> None:
        """The library, and the numbers that it obeys."""
        native = stack.enter_context(open_folder())
        self._control = stack.enter_context(Numbers(native / "control", count=2))
        self._of_postgres["LD_PRELOAD"] = str(build(FOLDER / "iofault.c", native))
        self._of_postgres["IO_FAULT_FILE"] = str(self._control.path)

    def slow_down(self, delay_s: float) -> None:
        """From now on each sync takes so much longer; 0 ends that."""
        self._control[DELAY_NS] = round(delay_s * NS_PER_S)

    def fail_next(self, count: int) -> None:
        """The next so many syncs fail, whatever they are of; 0 ends that."""
        self._control[FAILURES_LEFT] = count

    @property
    def failures_left(self) -> int:
        """How many are still to fail."""
        return self._control[FAILURES_LEFT]
