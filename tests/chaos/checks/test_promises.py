"""The figures that the judges go by are those of the product, and of its documentation."""

from __future__ import annotations

from locks import lease, lending, link, renewal, returns
from locks.store import QueueLimits
from tests.chaos.checks import promises


def test_the_judges_know_the_queues_limits() -> None:
    limits = QueueLimits()

    assert (
        limits.alive_ms,
        limits.claim_ms,
        limits.grace_ms,
    ) == (promises.ALIVE_MS, promises.CLAIM_MS, promises.GRACE_MS)
    assert (
        limits.yield_ms,
        limits.slack_ms,
        limits.keep_ms,
    ) == (promises.YIELD_MS, promises.SLACK_MS, promises.KEEP_MS)
    assert (limits.run_ms, limits.run_turns) == (promises.RUN_MS, promises.RUN_TURNS)


def test_the_judges_know_the_other_times() -> None:
    assert promises.RECONNECT_MS == link.LONGEST_BACKOFF_S * 1000
    assert promises.BOOKS_MS == lending.LOOK_AT_LEAST_EVERY_S * 1000
    assert promises.RETURN_MS == returns.LONGEST_PAUSE_S * 1000
    assert promises.SLOT_MS == renewal.SLOT_S * 1000
    assert lease.margin_s(1.0) * 1000 == promises.MARGIN_MS + promises.CLOCK_RATES * 1000
