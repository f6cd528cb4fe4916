"""Mutants of the charging transaction: what is written together, what is locked, and what callers are told of it."""

from __future__ import annotations

from tests.chaos.mutants.edits import Edit, Python, Statement
from tests.chaos.mutants.mutant import Mutant

_LOSE_COMMIT = (("committing", "lose_commit_reply"),)
_SLOW_INSIDE = (("rows_locked", "delay"), ("decided", "delay"), ("committing", "delay"))


def coupons_read(order_and_lock: str) -> tuple[Edit, ...]:
    """The payers' coupons are read in this order, and locked in this way, or not."""
    locked = " ORDER BY user_coupon.user_id FOR UPDATE)"
    return tuple(Statement(name, locked, f" {order_and_lock})") for name in ("LOCK_FREE", "LOCK"))


CHARGES = (
    Mutant(
        name="refused-fails-batch",
        does="Tells everybody in a batch what one of them was refused for.",
        caught_by=("refused_not_charged", "entries_match_answers", "consume_once_linearizable"),
        points=(("rows_locked", "delay"), ("committing", "delay"), ("committed", "delay")),
        hints=("coupons",),
        edits=(
            Python(
                "db.charging:Charges._charge",
                """
                +            for verdict in batch.verdicts:
                +                if not isinstance(verdict, (Entry, HeldElsewhere, NotChargedYet)):
                +                    raise verdict
                             return batch.verdicts
                """,
            ),
        ),
    ),
    Mutant(
        name="unknown-as-refused",
        does="Answers that nothing was charged when the connection was lost during COMMIT.",
        caught_by=("refused_not_charged", "entries_match_answers"),
        points=_LOSE_COMMIT,
        hints=("wide",),
        edits=(
            Python(
                "db.charging:Charges._charge",
                """
                -            except CommitUnknown:
                -                if not await self._had_committed(batch):
                -                    progress.may_have_committed = False
                -                    continue  # nothing was written, so it may run again
                +            except CommitUnknown as error:
                +                raise DatabaseDown(str(error)) from error
                """,
            ),
        ),
    ),
    Mutant(
        name="unknown-as-committed",
        does="Takes a COMMIT whose connection was lost for done.",
        caught_by=("acknowledged_is_there", "consume_once_linearizable", "entries_match_answers"),
        points=(("committing", "lose_commit_request"), ("committing", "terminate_backend")),
        hints=("wide",),
        edits=(
            Python(
                "db.charging:Charges._charge",
                """
                -                if not await self._had_committed(batch):
                +                if False:
                """,
            ),
        ),
    ),
    Mutant(
        name="no-settling",
        does="Takes a COMMIT whose connection was lost for not done, and runs the transaction again.",
        caught_by=("consume_once_linearizable", "entries_match_answers", "unknown_is_settled"),
        points=_LOSE_COMMIT,
        hints=("wide",),
        edits=(
            Python(
                "db.charging:Charges._charge",
                """
                -                if not await self._had_committed(batch):
                +                if True:
                """,
            ),
        ),
    ),
    Mutant(
        name="entry-outside",
        does="Writes the ENTER rows of a charge in a transaction of their own, after the charge.",
        caught_by=("entries_match_answers", "acknowledged_is_there", "unknown_is_settled"),
        points=(("committed", "die"),),
        hints=("wide",),
        edits=(
            Python(
                "db.batch:ChargingBatch._writing",
                """
                +        self.later = WRITE_ENTRIES.with_values(**self._entries(entrants))
                         return WRITE.with_values(
                """,
            ),
            Python(
                "db.batch:ChargingBatch._writing",
                """
                -            **self._entries(entrants),
                +            entry_ids=[],
                +            entered_ids=[],
                +            entrant_ids=[],
                """,
            ),
            Python(
                "db.charging:Charges._charge",
                """
                +            if getattr(batch, "later", None) is not None:
                +                async with self._connection() as connection:
                +                    await self._ask(connection, batch.later)
                             return batch.verdicts
                """,
            ),
        ),
    ),
    Mutant(
        name="flag-forgotten",
        does="Writes a charge, and not that the appointment is charged.",
        caught_by=("acknowledged_is_there",),
        hints=("wide",),
        edits=(Statement("WRITE", "SET is_consume=true, lock_fence=", "SET lock_fence="),),
    ),
    Mutant(
        name="fence-not-written",
        does="Leaves the fencing token out of the row that it charges, where a stale holder would meet it.",
        caught_by=("row_fence_rises",),
        hints=("wide",),
        edits=(Statement("WRITE", "SET is_consume=true, lock_fence=charge.fence", "SET is_consume=true"),),
    ),
    Mutant(
        name="lane-lost",
        does="Has one lane less for each transaction that fails.",
        caught_by=("alive_after_healing",),
        ambient=("postgres_quit",),
        run_s=6.0,
        hints=("wide", "hot"),
        edits=(
            Python(
                "service.charging:Charging._done",
                """
                -        queue.under_way.discard(batch)
                +        if not task.cancelled() and task.exception() is None:
                +            queue.under_way.discard(batch)
                """,
            ),
        ),
    ),
    Mutant(
        name="repeat-without-entry",
        does="Lets people into a charged appointment without an ENTER row.",
        caught_by=("entries_match_answers",),
        hints=("hot", "retries"),
        edits=(
            Python(
                "db.batch:RepeatingBatch.begin",
                """
                -        return WRITE_ENTRIES.with_values(**self._entries(entrants)) if entrants else None
                +        return None
                """,
            ),
        ),
    ),
    Mutant(
        name="coupons-not-locked",
        does="Reads the payer's coupons without locking them; the table does not mind a debt.",
        caught_by=("balances_conserved",),
        points=_SLOW_INSIDE,
        hints=("coupons", "wide"),
        edits=coupons_read("ORDER BY user_coupon.user_id"),
        schema=("ALTER TABLE user_coupon DROP CONSTRAINT user_coupon_count_check",),
    ),
    Mutant(
        name="coupons-overwritten",
        does="Reads the payer's coupons without locking them, and writes what should be left of what it read.",
        caught_by=("balances_conserved",),
        points=_SLOW_INSIDE,
        hints=("coupons", "wide"),
        edits=(
            *coupons_read("ORDER BY user_coupon.user_id"),
            Statement("WRITE", "count=(user_coupon.count - spent.spent_count)", "count=spent.spent_count"),
            Python(
                "db.batch:ChargingBatch._locked_rows",
                """
                +        self.read = balances
                         return LockedRows(appointments, balances, {})
                """,
            ),
            Python(
                "db.batch:ChargingBatch._writing",
                """
                -            spent_counts=list(decisions.spent.values()),
                +            spent_counts=[self.read[id_] - count for id_, count in decisions.spent.items()],
                """,
            ),
        ),
    ),
    Mutant(
        name="no-lock-order",
        does="Locks the coupons of a batch's payers in any order, so that two batches can wait for each other.",
        caught_by=("no_deadlocks",),
        points=_SLOW_INSIDE,
        run_s=4.0,
        hints=("payers",),
        edits=coupons_read("ORDER BY random() FOR UPDATE"),
    ),
    Mutant(
        name="asynchronous-commit",
        does="Does not wait until a COMMIT is on the disk.",
        caught_by=("acknowledged_is_there",),
        ambient=("postgres_quit", "postgres_kill"),  # what is not written down yet is lost with the server, too
        hints=("wide",),
        edits=(
            Python(
                "db.database:connector",
                """
                -        "timezone": "UTC",
                +        "timezone": "UTC",
                +        "synchronous_commit": "off",
                """,
            ),
        ),
        postgres_settings={"wal_writer_delay": "10000ms"},
    ),
    Mutant(
        name="no-fsync",
        does="Lets Postgres believe that what was written is on the disk.",
        caught_by=("acknowledged_is_there",),
        ambient=("power_loss",),
        hints=("wide",),
        world="power",
        postgres_settings={"fsync": "off"},
    ),
)
