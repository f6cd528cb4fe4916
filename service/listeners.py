"""Who else hears what the locks and charges of an instance do: for programs that embed one."""

from __future__ import annotations

from dataclasses import dataclass

from db import events as charge_events
from db.events import ChargeEvent
from locks import events as lock_events
from locks.events import LockEvent


@dataclass(frozen=True, slots=True)
class Listeners:
    """Both hear each event in the instance's event loop, after the metrics have; neither may raise."""

    on_lock_event: lock_events.Listener = lock_events.ignore
    on_charge_event: charge_events.Listener = charge_events.ignore

    def after(self, first: Listeners) -> Listeners:
        """Those that hear each event behind the first ones; where nobody does, just these."""
        if self == NOBODY:
            return first

        def on_lock_event(event: LockEvent) -> None:
            first.on_lock_event(event)
            self.on_lock_event(event)

        def on_charge_event(event: ChargeEvent) -> None:
            first.on_charge_event(event)
            self.on_charge_event(event)

        return Listeners(on_lock_event, on_charge_event)


NOBODY = Listeners()
