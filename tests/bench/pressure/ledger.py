"""The hot payer, over HTTP, against credit-ledger, without HTTP: one guarded UPDATE a charge on one account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.ground import Ground
from tests.bench.program import ROOT, the_service
from tests.bench.rounds import CandidateFailed
from tests.harness import driver_url

from .hot_payer import HOT, hot_window
from .stage import WORKERS, Plan, Stage, alternating
from .verdicts import SceneResult, Window, at_least, lags_of, loop_was_free, median_per_s


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the peer is run."""

    name: str
    words: tuple[str, ...]


# 32 threads is what it is measured with by its own bench; fewer fight less over the row, on one core less over Python.
TUNINGS = (
    Tuning("credit-ledger, 32 threads", ("--threads=32",)),
    Tuning("credit-ledger, 6 on one core", ("--threads=6", "--one-core")),
)
TARGET = 3.0
REQUIREMENTS = Path(__file__).parents[1] / "requirements-peers.txt"
PIP_WITHIN_S = 120
GRANTED = 1_000_000_000
GRACE_S = 60.0


class NotInstalled(Exception):
    """The peer cannot be had on this machine; the message is one line."""


def play(stage: Stage) -> SceneResult:
    """Alternating rounds of ours and of each of the peer's tunings; the faster one is the peer."""
    try:
        packages = install_peers(stage.folder / "peers")
    except NotInstalled as error:
        stage.say(f"  not measured: {error}")
        return SceneResult(scene="ledger", windows=[], verdicts=[], not_measured=str(error))
    with stage.ground("ledger") as ground, the_service(workers=WORKERS).serving(ground) as running:
        peers = [partial(_peer_window, tuning, stage.plan, ground, packages) for tuning in TUNINGS]
        windows = alternating(stage, [partial(hot_window, stage.plan, running, ground), *peers])
    hot = median_per_s(windows, HOT)
    rates = {name: median_per_s(windows, name) or 0.0 for name in (each.name for each in TUNINGS)}
    best = max(rates, key=lambda name: rates[name])
    verdict = at_least(f"one hot payer / {best}, charges/s", hot, rates[best] or None, TARGET)
    return SceneResult(scene="ledger", windows=windows, verdicts=[verdict, *loop_was_free(lags_of(windows))])


def install_peers(folder: Path) -> Path:
    """The pinned packages in a folder of their own, as pip gives them; what they need is here. Raises NotInstalled."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        done = subprocess.run(
            [*command, f"--target={folder}", f"--requirement={REQUIREMENTS}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PIP_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"pip install did not end within {PIP_WITHIN_S} s") from error
    if done.returncode != 0:
        raise NotInstalled(f"credit-ledger cannot be had: {_last_line(done.stderr)}")
    return folder


def _peer_window(tuning: Tuning, plan: Plan, ground: Ground, packages: Path) -> Window:
    """All threads charge a new account; then their answers are held against its ledger and its balance."""
    account = str(uuid.uuid4())
    ground.run(SCHEMA, {})
    ground.settle()
    ground.run(GRANT, {"account": account, "count": GRANTED})
    command = [sys.executable, "-m", "tests.bench.pressure.ledger_peer", f"--account={account}", *tuning.words]
    found = _run(
        [*command, f"--warm-up={plan.warm_up_s}", f"--seconds={plan.measured_s}"],
        os.environ | {"PYTHONPATH": str(packages), "BENCH_DATABASE_URL": _url(ground)},
        limit_s=plan.warm_up_s + plan.measured_s + GRACE_S,
    )
    return Window(
        contestant=tuning.name,
        measured_s=plan.measured_s,
        answered=found["charged"],
        per_s=found["charged"] / plan.measured_s,
        latency_ms=found["latency_ms"],
        faults=_faults(ground, account, found),
    )


def _run(command: list[str], environment: dict[str, str], *, limit_s: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CandidateFailed("credit-ledger did not end in time") from error
    if done.returncode != 0:
        raise CandidateFailed(f"credit-ledger: {_last_line(done.stderr)}")
    return dict(json.loads(done.stdout))


def _faults(ground: Ground, account: str, found: dict[str, Any]) -> tuple[str, ...]:
    ((rows, balance),) = ground.rows(STATE, {"account": account})
    charged, refused = found["charged_in_all"], found["refused"]
    if refused == 0 and rows == charged == GRANTED - balance:
        return ()
    return (f"{charged} charges and {refused} refusals, {rows} ledger rows, {GRANTED - balance} spent",)


def _url(ground: Ground) -> str:
    return driver_url(ground.database_url).render_as_string(hide_password=False)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


# Its own schema.sql without row-level security and foreign keys, which would only cost it time.
SCHEMA = """
create table if not exists credit_balance (
    tenant_id uuid primary key,
    credits numeric(18, 4) not null default 0,
    updated_at timestamptz not null default now()
);
create table if not exists credit_ledger (
    id uuid primary key,
    tenant_id uuid not null,
    delta numeric(18, 4) not null,
    reason varchar(120) not null default 'usage',
    idempotency_key varchar(200),
    balance_after numeric(18, 4),
    created_at timestamptz not null default now(),
    constraint uq_credit_ledger_idem unique (tenant_id, idempotency_key)
);
create index if not exists ix_credit_ledger_tenant on credit_ledger (tenant_id)
"""
GRANT = "insert into credit_balance (tenant_id, credits) values (%(account)s, %(count)s)"
STATE = """
select (select count(*) from credit_ledger where tenant_id = %(account)s),
       (select credits from credit_balance where tenant_id = %(account)s)
"""
