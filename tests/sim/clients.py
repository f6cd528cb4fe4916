"""Clients outside, who hold leases that were lent to them and count by themselves; whichever process they ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from locks.lease import margin_s
from locks.loan import Loan
from tests.sim.recording import CHOSEN, ns

if TYPE_CHECKING:
    from tests.sim.simulation import Place, Simulation


class Client:
    """One of them, with one lease."""

    def __init__(self, simulation: Simulation, place: Place, loan: Loan) -> None:
        self.loan = loan
        self._recording = simulation.recording
        self._who = {"i": f"c{next(simulation.client_numbers)}", "life": 1}
        place.ears.sweep(loan.name)  # what is lent the process itself does not hold any more
        self._tell(place, "adopted", until=_ends_at(place, loan), outside=True)

    @classmethod
    async def lent(cls, simulation: Simulation, place: Place, name: str, *, lease_ttl_s: float, wait_s: float) -> Self:
        """Has a lease. Raises as Lending.lend."""
        place.invokes(name)
        loan = await place.locker.lending.lend(name, lease_ttl_s=lease_ttl_s, wait_s=wait_s, request_id="lent")
        return cls(simulation, place, loan)

    @classmethod
    async def lent_as(
        cls, simulation: Simulation, place: Place, name: str, lease_id: str, *, lease_ttl_s: float, wait_s: float
    ) -> Self:
        """Has a lease under an id that it chose. Raises as Lending.lend_as."""
        place.invokes(name)
        place.chosen_ids.add(lease_id)
        asked_s = simulation.world.now_s
        try:
            loan = await place.locker.lending.lend_as(
                name, lease_id, lease_ttl_s=lease_ttl_s, wait_s=wait_s, request_id=CHOSEN
            )
        except BaseException:
            simulation.may_be_lent(name, lease_id, asked_s)  # it is the client's all the same, who may ask again
            raise
        return cls(simulation, place, loan)

    async def extend(self, place: Place) -> None:
        """Its whole time again. Raises as Lending.extend."""
        loan = self.loan
        extended = await place.locker.lending.extend(loan.name, loan.lease_id, lease_ttl_s=loan.lease_ttl_s)
        self._tell(place, "extended", until=_ends_at(place, extended))

    async def release(self, place: Place) -> None:
        """Gives it back. Raises as Lending.release."""
        self._tell(place, "releasing")
        await place.locker.lending.release(self.loan.name, self.loan.lease_id)

    def _tell(self, place: Place, p: str, **facts: Any) -> None:
        name, fence = self.loan.name, self.loan.fencing_token
        self._recording.write("point", place.process.now_s, p=p, **self._who, name=name, fence=fence, **facts)


def _ends_at(place: Place, loan: Loan) -> int:
    """When its lease is over, by the clock of whoever has handed it over."""
    return ns(place.process.true_s(loan.counted_from_s + loan.lease_ttl_s - margin_s(loan.lease_ttl_s)))
