"""Coupons are neither made nor lost: in every snapshot, and for each user at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.verdict import Example, Verdict, found

Key = tuple[int, ...]


def balances_conserved(evidence: Evidence) -> Verdict:
    """Granted less spent is what is left, and nothing is below zero: over all at each snapshot, of each at the end."""
    snapshots = evidence.by_kind["snapshot"]
    violations = [
        Example(f"granted {e['granted']}, spent {e['spent']}, left {e['left']}, lowest {e['lowest']}", e["t"])
        for e in snapshots
        if e["granted"] - e["spent"] != e["left"] or (e["lowest"] is not None and e["lowest"] < 0)
    ]
    accounts = _accounts(evidence)
    violations += _wrong_accounts(accounts or {})
    return found(
        "balances_conserved",
        violations,
        checked=len(snapshots) + len(accounts or {}),
        counts={"snapshots": len(snapshots), "accounts": len(accounts or {})},
        missing="the history has no final balances" if accounts is None else None,
    )


def _accounts(evidence: Evidence) -> dict[Key, tuple[int, int, int]] | None:
    """Granted, spent and left of each user, and of each coupon where the tables tell it; None without the tables."""
    tables = ("coupon_grant", "user_consume", "user_coupon")
    has_coupon = all(evidence.has_column(table, "coupon_id") for table in tables)
    columns = ("user_id", "coupon_id", "count") if has_coupon else ("user_id", "count")
    sums: dict[Key, list[int]] = defaultdict(lambda: [0, 0, 0])
    for place, table in enumerate(tables):
        rows = evidence.rows(table, *columns)
        if rows is None:
            return None
        for *key, count in rows:
            sums[tuple(key)][place] += count
    return {key: (granted, spent, left) for key, (granted, spent, left) in sums.items()}


def _wrong_accounts(accounts: dict[Key, tuple[int, int, int]]) -> Iterator[Example]:
    for key, (granted, spent, left) in sorted(accounts.items()):
        if granted - spent != left or left < 0:
            yield Example(f"user {key[0]}: granted {granted}, spent {spent}, left {left}")
