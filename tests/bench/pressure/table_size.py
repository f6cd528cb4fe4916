"""The same load on tables of 100 thousand, 1 million and 10 million appointments, entered all over the table."""

from __future__ import annotations

import random
import shutil
from contextlib import ExitStack

from tests.bench.ground import Ground
from tests.bench.program import the_service
from tests.bench.rounds import CandidateFailed

from .stage import WORKERS, Stage, Watch, alternating, closed_window
from .verdicts import SceneResult, Window, at_least, lags_of, loop_was_free, median_per_s

TARGET = 0.8
BYTES_A_ROW = 300  # rows, index, and the journal of both
SPARE_BYTES = 2_000_000_000


def play(stage: Stage) -> SceneResult:
    """Alternating rounds, each table in a database of its own; the largest is held against the smallest."""
    sizes = stage.plan.table_sizes
    _need_room(stage, sum(sizes))
    with ExitStack() as stack:
        tables = [_Table(stage, stack.enter_context(stage.ground(f"table_{size}")), size) for size in sizes]
        for table in tables:
            table.fill()
            stage.say(f"  {table.name} are there")
        windows = alternating(stage, [table.window for table in tables])
    smallest, largest = (median_per_s(windows, table.name) for table in (tables[0], tables[-1]))
    verdict = at_least(f"{tables[-1].name} / {tables[0].name}, charges/s", largest, smallest, TARGET)
    return SceneResult(scene="table-size", windows=windows, verdicts=[verdict, *loop_was_free(lags_of(windows))])


class _Table:
    """One table, and which of its appointments are still to be entered."""

    def __init__(self, stage: Stage, ground: Ground, size: int) -> None:
        self.name = f"{size:,} appointments"
        self._ground = ground
        self._stage = stage
        self._size = size
        # As many for each round, and none twice: a small table has no more.
        self._share = min(stage.plan.appointments_per_window, size // stage.plan.rounds)
        self._ids = random.Random(size).sample(range(1, size + 1), self._share * stage.plan.rounds)

    def fill(self) -> None:
        first_id = self._ground.fill(self._size)
        assert first_id == 1
        self._ground.settle()

    def window(self) -> Window:
        """Charges a second; the service runs only now, so that no other table's keeps memory from it."""
        ids, self._ids = self._ids[: self._share], self._ids[self._share :]
        entries = self._ground.inviters_of(ids)
        self._ground.settle()
        self._stage.forget_locks()  # the other tables' appointments have the same names
        with the_service(workers=WORKERS).serving(self._ground) as running:
            return closed_window(
                self.name,
                self._stage.plan,
                running,
                Watch(self._ground, running),
                list(running.entries(entries)),
                count=self._ground.count_all,
            )


def _need_room(stage: Stage, rows: int) -> None:
    free, needed = shutil.disk_usage(stage.folder).free, rows * BYTES_A_ROW + SPARE_BYTES
    if free < needed:
        raise CandidateFailed(f"table-size needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
