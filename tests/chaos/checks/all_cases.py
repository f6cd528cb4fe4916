"""Every hand-written history."""

from __future__ import annotations

from tests.chaos.checks.cases_answers import ANSWER_CASES
from tests.chaos.checks.cases_bodies import BODY_CASES, LIMIT_CASES, LOSS_CASES, PATIENCE_CASES
from tests.chaos.checks.cases_charges import CHARGE_CASES
from tests.chaos.checks.cases_early import EARLY_CASES, NOBODYS_CASES
from tests.chaos.checks.cases_exact import EXACT_CASES
from tests.chaos.checks.cases_idle import IDLE_CASES
from tests.chaos.checks.cases_locks import FENCE_CASES, RELEASE_CASES, TAKEOVER_CASES, WRITE_CASES
from tests.chaos.checks.cases_order import ORDER_CASES
from tests.chaos.checks.cases_overlaps import OVERLAP_CASES
from tests.chaos.checks.cases_rest import REST_CASES
from tests.chaos.checks.cases_told import STRAY_CASES, TOLD_CASES
from tests.chaos.checks.cases_waits import WAIT_CASES

CASES = (
    *CHARGE_CASES,
    *OVERLAP_CASES,
    *FENCE_CASES,
    *WRITE_CASES,
    *RELEASE_CASES,
    *TAKEOVER_CASES,
    *IDLE_CASES,
    *EXACT_CASES,
    *ORDER_CASES,
    *WAIT_CASES,
    *TOLD_CASES,
    *BODY_CASES,
    *LIMIT_CASES,
    *LOSS_CASES,
    *PATIENCE_CASES,
    *ANSWER_CASES,
    *EARLY_CASES,
    *NOBODYS_CASES,
    *STRAY_CASES,
    *REST_CASES,
)
