"""Whoever fires the faults of a schedule: targeted ones as instances reach their points, ambient ones by time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.chaos.every_kind import EVERY_KIND
from tests.chaos.faults import FaultKind, FaultMissed
from tests.chaos.history import History
from tests.chaos.lives import InstanceHandle
from tests.chaos.schedule import Fault, Schedule

if TYPE_CHECKING:
    from tests.chaos.run import World

PATIENCE_S = 2.5
RARE_PATIENCE_S = 4.0
RARE = ("lost", "extended", "waiting")
END_WAIT_S = 15.0


class Nemesis:
    """For the harness' event loop."""

    def __init__(self, schedule: Schedule, history: History, world: World) -> None:
        self._history = history
        self._world = world
        self._queues: dict[int, deque[Fault]] = {}
        self._ambient: list[Fault] = []
        for fault in schedule.faults:
            if "at_s" in fault:
                self._ambient.append(fault)
            else:
                self._queues.setdefault(fault["instance"], deque()).append(fault)
        self._ambient.sort(key=lambda fault: fault["at_s"])
        self._armed: dict[int, Fault] = {}
        self._is_over = False
        self._under_way: set[asyncio.Task[None]] = set()
        self.errors: list[BaseException] = []

    async def run(self, duration_s: float) -> None:
        """Faults may be fired for so long; those under way are over when this returns."""
        loop = asyncio.get_running_loop()
        begun_at_s = loop.time()
        for fault in self._ambient:
            await asyncio.sleep(max(0.0, begun_at_s + fault["at_s"] - loop.time()))
            self._begin(self._ambiently(fault))
        await asyncio.sleep(max(0.0, begun_at_s + duration_s - loop.time()))
        self._is_over = True
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=END_WAIT_S)
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    @property
    def is_exhausted(self) -> bool:
        """Whether every targeted fault has been fired or missed."""
        return not any(self._queues.values()) and not self._armed

    def next_for(self, instance: InstanceHandle) -> Mapping[str, Any] | None:
        """As Harness.next_for: the same one again until it is reached or missed."""
        if self._is_over:
            return None
        fault = self._armed.get(instance.number)
        if fault is None:
            queue = self._queues.get(instance.number)
            if not queue:
                return None
            fault = self._armed[instance.number] = queue.popleft()
        patience_s = RARE_PATIENCE_S if fault["point"] in RARE else PATIENCE_S
        return {"id": fault["id"], "point": fault["point"], "nth": fault["nth"], "patience_s": patience_s}

    async def on_reached(self, instance: InstanceHandle, question: Mapping[str, Any]) -> None:
        """As Harness.on_reached. A fault that begins only when its instance has gone on is run beside it."""
        fault = self._armed.pop(instance.number, None)
        if fault is None or fault["id"] != question["reached"] or self._is_over:
            return
        facts = {key: question[key] for key in ("name", "appointments") if key in question}
        running = self._targeted(fault, instance, facts)
        if EVERY_KIND[fault["kind"]].lets_go:
            self._begin(running)
        else:
            await running

    def on_missed(self, instance: InstanceHandle, fault_id: int) -> None:
        """As Harness.on_missed."""
        fault = self._armed.pop(instance.number, None)
        if fault is not None and fault["id"] == fault_id:
            self._history.write("missed", id=fault_id, kind=fault["kind"], why=f"no {fault['point']} came in time")

    def _begin(self, running: Any) -> None:
        task = asyncio.get_running_loop().create_task(running)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _ambiently(self, fault: Fault) -> None:
        number = fault.get("instance")
        target = self._world.instances.get(number) if number is not None else None
        await self._fire(fault, target, targeted=False, facts={})

    async def _targeted(self, fault: Fault, instance: InstanceHandle, facts: dict[str, Any]) -> None:
        await self._fire(fault, instance, targeted=True, facts=facts)

    async def _fire(
        self, fault: Fault, target: InstanceHandle | None, *, targeted: bool, facts: dict[str, Any]
    ) -> None:
        kind = EVERY_KIND[fault["kind"]]
        if target is not None:
            facts |= {"i": target.number, "life": target.life}
        detail = {key: value for key, value in fault.items() if key not in ("id", "kind", "instance", "at_s")}
        self._history.write(
            "fault",
            id=fault["id"],
            kind=kind.name,
            scope=scope_of(kind, target),
            forgets=kind.forgets,
            targeted=targeted,
            **{**detail, **facts},
        )
        try:
            await kind.run(self._world, fault, target)
        except FaultMissed as missed:
            self._history.write("missed", id=fault["id"], kind=kind.name, why=str(missed))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.errors.append(error)  # whatever it is, a fault that did not heal must not go unseen
        finally:
            self._history.write("healed", id=fault["id"], kind=kind.name)


def scope_of(kind: FaultKind, target: InstanceHandle | None) -> str:
    """What a fault may have harmed, as the history names it."""
    return kind.scope if target is None else kind.scope.replace("<i>", str(target.number))


async def quietly(task: asyncio.Task[None]) -> None:
    """Cancels it, and waits for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
