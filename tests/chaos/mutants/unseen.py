"""Mutants that a run does not name, or not reliably. Tests of their own show that the defect is there.

One costs time and no money, and there is no property for it: how soon a released lock is the next waiter's. One needs a
waiter that dies just when the lock is handed to it by a holder who was refused. And two batches that lock the same
payers at the same time, in another order, do not meet in every search.
"""

from __future__ import annotations

from tests.chaos.mutants.charges import coupons_read
from tests.chaos.mutants.edits import Lua
from tests.chaos.mutants.mutant import Mutant

UNSEEN = (
    Mutant(
        name="handoff-to-the-dead",
        does="Hands the lock over whether or not anybody hears of it, and without an end until it is claimed.",
        caught_by=("nothing_left_behind", "alive_after_healing"),
        points=(("acquired", "die"), ("waiting", "die_later")),
        hints=("coupons",),
        edits=(
            Lua(
                "prelude.lua",
                """
                -    if call('PUBLISH', head, message) > 0 then
                +    if call('PUBLISH', head, message) >= 0 then
                """,
            ),
            Lua(
                "prelude.lua",
                """
                +      call('PERSIST', lock)
                       call('HSET', waiters, '.handoffs', handoffs + turns, '.turns_here', turns)
                """,
            ),
        ),
    ),
    Mutant(
        name="acquire-not-idempotent",
        does="Does not know its own lock again when the answer to its acquire was lost, and queues behind itself.",
        caught_by=("handoff_in_time",),
        points=(("releasing", "lose_redis_reply"), ("waiting", "lose_redis_reply")),
        hints=("leases", "hot"),
        edits=(
            Lua(
                "acquire.lua",
                """
                -if holder == lease_id then
                +if false then
                """,
            ),
        ),
    ),
    Mutant(
        name="no-lock-order",
        does="Locks the coupons of a batch's payers in any order, so that two batches can wait for each other.",
        caught_by=("no_deadlocks",),
        points=(("rows_locked", "delay"), ("committing", "delay")),
        run_s=4.0,
        hints=("hot", "wide"),
        edits=coupons_read("ORDER BY random() FOR UPDATE"),
    ),
)
