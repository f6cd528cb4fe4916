"""A mutant that a run does not name, or not reliably; a test of its own shows that the defect is there.

It needs a waiter that dies just when the lock is handed to it by a holder who was refused.
"""

from __future__ import annotations

from tests.chaos.mutants.edits import Lua
from tests.chaos.mutants.mutant import Mutant

UNSEEN = (
    Mutant(
        name="handoff-to-the-dead",
        does="Hands the lock over whether or not anybody hears of it, and without an end until it is claimed.",
        caught_by=("nothing_left_behind", "alive_after_healing"),
        points=(("waiting", "die"), ("waiting", "die_later")),
        run_s=6.0,
        hints=("leases",),
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
)
