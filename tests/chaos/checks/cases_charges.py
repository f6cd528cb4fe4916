"""Hand-written histories of charges, entries and coupons: which properties each of them breaks."""

from __future__ import annotations

from tests.chaos.checks.cases import Case
from tests.chaos.checks.histories import HandWritten

ONCE = "charged_at_most_once"
THERE = "acknowledged_is_there"
REFUSED = "refused_not_charged"
SETTLED = "unknown_is_settled"
ORDER = "consume_once_linearizable"
BALANCES = "balances_conserved"
ENTRIES = "entries_match_answers"


def charged_and_repeated() -> HandWritten:
    """User 1 is charged, user 2 enters after that; the tables agree."""
    history = HandWritten().enter("a", 7, 1).charged("a", charge_id=1, payer=1)
    history.enter("b", 7, 2).already("b", charge_id=1, payer=1)
    history.charge_row(1, 7, 1).entry_rows((7, 1), (7, 2)).appointment_row(7, is_consume=True)
    history.table("coupon_grant", [1, 5, "r1"], [2, 5, "r2"]).table("user_coupon", [1, 4], [2, 5])
    return history.event("snapshot", granted=10, spent=1, left=9, lowest=4)


def nothing_but(*pairs: tuple[int, int]) -> HandWritten:
    """Tables without a charge, and these entries."""
    return HandWritten().table("user_consume").entry_rows(*pairs)


def order(*steps: str) -> HandWritten:
    """One appointment without tables. A step: an id to ask (`a`), or an id and its answer (`a=charged`, `a=?`)."""
    history = HandWritten()
    for step in steps:
        op, _, answer = step.partition("=")
        if not answer:
            history.enter(op, 7, 1)
        elif answer == "?":
            history.unknown(op)
        elif answer == "charged":
            history.charged(op, charge_id=1, payer=1)
        elif answer == "already":
            history.already(op)
        else:
            history.refused(op, answer)
    return history


POOR = "insufficient-coupons"

CHARGE_CASES = (
    Case("charged, repeated, all there", charged_and_repeated()),
    Case("two rows for one appointment", charged_and_repeated().charge_row(2, 7, 1), {ONCE, BALANCES}),
    Case(
        "two told of one charge",
        charged_and_repeated().enter("c", 7, 1).charged("c", charge_id=1, payer=1).entry_rows((7, 1)),
        {ONCE, ORDER},
    ),
    Case("two told, no tables", order("a", "b", "a=charged", "b=charged"), {ONCE, ORDER}),
    Case(
        "a charge that was told of is gone",
        nothing_but((7, 1)).enter("a", 7, 1).charged("a", charge_id=1, payer=1),
        {THERE},
    ),
    Case(
        "a charge is told with another id",
        HandWritten().enter("a", 7, 1).charged("a", charge_id=9, payer=1).charge_row(1, 7, 1).entry_rows((7, 1)),
        {THERE},
    ),
    Case(
        "a charge is told with another count",
        HandWritten()
        .enter("a", 7, 1)
        .charged("a", charge_id=1, payer=1, count=2)
        .charge_row(1, 7, 1)
        .entry_rows((7, 1)),
        {THERE},
    ),
    Case(
        "somebody else paid than who was told",
        HandWritten()
        .enter("a", 7, 1)
        .charged("a", charge_id=1, payer=2)
        .charge_row(1, 7, 2)
        .entry_rows((7, 1), (7, 2)),
        {THERE, ENTRIES},
    ),
    Case(
        "an entry without its row",
        HandWritten().enter("a", 7, 1).charged("a", charge_id=1, payer=1).charge_row(1, 7, 1).entry_rows(),
        {THERE, ENTRIES},
    ),
    Case(
        "the second of two entries without its row",
        HandWritten()
        .enter("a", 7, 1)
        .charged("a", charge_id=1, payer=1)
        .enter("b", 7, 1)
        .already("b")
        .charge_row(1, 7, 1)
        .entry_rows((7, 1)),
        {THERE, ENTRIES},
    ),
    Case("is_consume without a charge", nothing_but().appointment_row(8, is_consume=True), {THERE}),
    Case("a charge without is_consume", charged_and_repeated().appointment_row(7, is_consume=False), {THERE}),
    Case(
        "a grant that was told of is gone",
        HandWritten()
        .event("invoke", op="g", f="grant", user=1, count=5, reference="r")
        .event("ok", op="g", status=201)
        .table("coupon_grant"),
        {THERE},
    ),
    Case("refused, nothing done", nothing_but().enter("a", 7, 1).refused("a", POOR)),
    Case("refused, with an ENTER row", nothing_but((7, 1)).enter("a", 7, 1).refused("a", POOR), {REFUSED, ENTRIES}),
    Case(
        "refused, and charged",
        HandWritten()
        .enter("a", 7, 1)
        .refused("a", "charge-in-progress")
        .enter("b", 7, 1)
        .already("b")
        .charge_row(1, 7, 1)
        .entry_rows((7, 1)),
        {REFUSED, ORDER},
    ),
    Case(
        "refused as charged, and nobody charged",
        nothing_but((7, 1)).enter("a", 7, 1).refused("a", "overloaded", charged=True),
        {REFUSED},
    ),
    Case(
        "refused as perhaps charged, and charged",
        HandWritten()
        .enter("a", 7, 1)
        .refused("a", "charge-unknown", charged="unknown")
        .charge_row(1, 7, 1)
        .entry_rows((7, 1)),
    ),
    Case(
        "unknown, and charged, as the repeat was told",
        HandWritten()
        .enter("a", 7, 1)
        .unknown("a")
        .enter("b", 7, 1)
        .already("b")
        .charge_row(1, 7, 1)
        .entry_rows((7, 1), (7, 1)),
    ),
    Case("unknown, and nothing done", nothing_but().enter("a", 7, 1).unknown("a")),
    Case(
        "unknown, charged, without the ENTER row",
        HandWritten()
        .enter("a", 7, 1)
        .unknown("a")
        .enter("b", 7, 1)
        .already("b")
        .charge_row(1, 7, 1)
        .entry_rows((7, 1)),
        {SETTLED},
    ),
    Case("an unknown one entered twice", nothing_but((7, 1), (7, 1)).enter("a", 7, 1).unknown("a"), {ENTRIES}),
    Case("an entry of nobody", nothing_but((7, 1)), {ENTRIES}),
    Case(
        "a charge without an ENTER row of its payer",
        HandWritten().charge_row(1, 7, 2).entry_rows(),
        {ENTRIES},
    ),
    Case("already charged, and nobody can have charged", order("a", "a=already"), {ORDER}),
    Case("already charged before the charge was asked for", order("a", "a=already", "b", "b=charged"), {ORDER}),
    Case("already charged while the charge was under way", order("a", "b", "b=already", "a=charged")),
    Case("already charged, asked for before the charge", order("b", "a", "b=already", "a=charged")),
    Case("already charged before the only unknown one", order("a", "a=already", "b", "b=?"), {ORDER}),
    Case("already charged after an unknown one began", order("b", "a", "a=already", "b=?")),
    Case("no coupons after the charge", order("a", "a=charged", "b", f"b={POOR}"), {ORDER}),
    Case("no coupons while the charge was under way", order("b", "a", "a=charged", f"b={POOR}")),
    Case("no coupons after it was found charged", order("u", "a", "a=already", "b", f"b={POOR}", "u=?"), {ORDER}),
    Case(
        "charged only after no coupons, found charged before",
        order("c", "a", "a=already", "b", f"b={POOR}", "c=charged"),
        {ORDER},
    ),
    Case("in progress after the charge", order("a", "a=charged", "b", "b=charge-in-progress")),
    Case(
        "a snapshot with a coupon too many",
        charged_and_repeated().event("snapshot", granted=10, spent=1, left=10, lowest=4),
        {BALANCES},
    ),
    Case(
        "a deadlock that Postgres had to end",
        charged_and_repeated().event("snapshot", granted=10, spent=1, left=9, lowest=4, deadlocks=1),
        {"no_deadlocks"},
    ),
    Case(
        "a snapshot below zero",
        charged_and_repeated().event("snapshot", granted=10, spent=1, left=9, lowest=-1),
        {BALANCES},
    ),
    Case(
        "a user with a coupon too few, another with one too many",
        HandWritten()
        .table("user_consume")
        .table("coupon_grant", [1, 5, "r1"], [2, 5, "r2"])
        .table("user_coupon", [1, 4], [2, 6]),
        {BALANCES},
    ),
    Case(
        "a user below zero",
        charged_and_repeated().table("coupon_grant", [3, -1, "r3"]).table("user_coupon", [3, -1]),
        {BALANCES},
    ),
)
