"""What a worker holds after so many entries: charges and repeats of many users, each with many access tokens."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from tests.bench.connection import ALREADY_CHARGED, CHARGED
from tests.bench.ground import Ground
from tests.bench.load import drive_all
from tests.bench.program import HOST, Running, the_service
from tests.bench.rounds import CandidateFailed, percentiles_ms

from .lag import lag_between, scrape
from .stage import WORKERS, Plan, Stage, driven
from .verdicts import SceneResult, Verdict, Window, at_most, faults_of, lags_of, loop_was_free

TARGET = 1.1
CHARGED_SHARE = 0.3
# More than a worker remembers, with the users of both sides.
TOKENS_PER_USER = 4
# A repeat keeps this far behind the charges, more than there are connections, so that its charge was answered.
DISTANCE = 5000
WANTED = {CHARGED, ALREADY_CHARGED}


def play(stage: Stage) -> SceneResult:
    """Entries without a pause, but for a look at each of the plan's counts."""
    with stage.ground("memory") as ground, the_service(workers=WORKERS).serving(ground) as running:
        entries, done = _mixed_entries(running, ground, stage.plan), 0
        windows: list[Window] = []
        held: list[dict[int, int]] = []
        for count in stage.plan.entries:
            windows.append(stage.tell(_window(running, ground, stage.plan, entries, done, count)))
            held.append(pss_kib(running.worker_pids()))
            each = ", ".join(f"{kib / 1024:.1f} MiB" for kib in held[-1].values())
            stage.say(f"  workers hold {each} after {count:,} entries")
            done = count
    verdicts = [_verdict(stage.plan, held[0], held[-1]), *loop_was_free(lags_of(windows))]
    return SceneResult(scene="memory", windows=windows, verdicts=verdicts)


def pss_kib(pids: list[int]) -> dict[int, int]:
    """What each process holds, shared pages by its share. Raises CandidateFailed where the kernel does not tell."""
    try:
        return {pid: pss_of(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in pids}
    except OSError as error:
        raise CandidateFailed(f"the workers' memory cannot be read: {error}") from error


def pss_of(rollup: str) -> int:
    """KiB, from the text of smaps_rollup."""
    (line,) = (line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1])


def _mixed_entries(running: Running, ground: Ground, plan: Plan) -> Iterator[bytes]:
    draw = random.Random(7)
    appointments = ground.new_appointments(round(CHARGED_SHARE * max(plan.entries)) + DISTANCE)
    first_id, inviters, invitees = appointments.first_id, appointments.payer_ids, appointments.invitee_ids
    begun = 0
    while True:
        fresh = begun < len(inviters) and (begun <= DISTANCE or draw.random() < CHARGED_SHARE)
        index = begun if fresh else draw.randrange(begun - DISTANCE)
        begun += fresh
        user_id = inviters[index] if fresh or draw.random() < 0.5 else invitees[index]
        yield running.entry(first_id + index, user_id, token_number=draw.randrange(TOKENS_PER_USER))


def _window(running: Running, ground: Ground, plan: Plan, entries: Iterator[bytes], done: int, count: int) -> Window:
    before = ground.count_all()
    scraped = scrape(running.port)
    load = drive_all(
        host=HOST,
        port=running.port,
        requests=itertools.islice(entries, count - done),
        connections=plan.connections,
        wanted=WANTED,
    )
    result = driven(load, running)
    return Window(
        contestant=f"up to {count:,} entries",
        measured_s=result.measured_s,
        answered=result.measured,
        per_s=result.measured / result.measured_s,
        latency_ms=percentiles_ms(result.latencies_s),
        lag=lag_between(scraped, scrape(running.port)),
        faults=faults_of(result.answers, before, ground.count_all(), wanted=[each.decode() for each in WANTED]),
    )


def _verdict(plan: Plan, first: dict[int, int], last: dict[int, int]) -> Verdict:
    """The worker that has grown most; nothing to judge when one of them was replaced meanwhile."""
    what = f"a worker's MiB after {plan.entries[-1]:,} / {plan.entries[0]:,} entries"
    if first.keys() != last.keys():
        return at_most(f"{what}: a worker died", None, None, TARGET)
    worst = max(first, key=lambda pid: last[pid] / first[pid])
    return at_most(what, last[worst] / 1024, first[worst] / 1024, TARGET)
