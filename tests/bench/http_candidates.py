"""The candidates that answer HTTP: the service, and the obvious implementation, under the same load."""

from __future__ import annotations

import uvloop

from .connection import CHARGED
from .cpu import Meter, Reading
from .ground import Appointments, Ground
from .load import LoadError, LoadResult, drive
from .program import HOST, Program
from .rounds import CandidateFailed, Plan, Round, cpu_us_per_charge, percentiles_ms


class HttpCandidate:
    """A program that serves POST /v1/appointments/{id}/entries, and runs only during its own rounds."""

    def __init__(self, program: Program) -> None:
        self.name = program.name
        self._program = program

    def measure(self, ground: Ground, plan: Plan, appointments: Appointments) -> Round:
        """Starts the program, drives it, stops it, and holds its answers against the database."""
        readings: list[Reading | None] = []
        with self._program.serving(ground) as running:
            meter = Meter(ground.process_roots() | {"workers": running.pids})
            requests = list(running.entries(appointments.by_inviters()))
            load = drive(
                host=HOST,
                port=running.port,
                requests=requests,
                connections=plan.connections,
                warm_up_s=plan.warm_up_s,
                measured_s=plan.measured_s,
                at_boundary=lambda: readings.append(meter.read()),
            )
            try:
                result = uvloop.run(load)
            except (LoadError, OSError) as error:
                raise CandidateFailed(f"{self.name}: {error}{running.log_tail()}") from error
        before, after = readings
        return Round(
            candidate=self.name,
            charged=result.measured,
            measured_s=result.measured_s,
            charges_per_s=result.measured / result.measured_s,
            latency_ms=percentiles_ms(result.latencies_s),
            cpu_us_per_charge=cpu_us_per_charge(
                before, after, charged=result.measured, known_s={"client": result.process_cpu_s}
            ),
            faults=_faults(ground, appointments, result),
        )


def _faults(ground: Ground, appointments: Appointments, result: LoadResult) -> tuple[str, ...]:
    wanted = CHARGED.decode()
    faults = [f"{count} answers were {what}" for what, count in sorted(result.answers.items()) if what != wanted]
    counted = ground.count(appointments)
    answered = result.answers.get(wanted, 0)
    if (counted.charges, counted.entries, counted.marked) != (answered, answered, answered):
        faults.append(f"{answered} answers said charged, Postgres holds {counted}")
    return tuple(faults)
