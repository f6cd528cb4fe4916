"""Each mutant still fits the product, and an edit that would do nothing says so."""

from __future__ import annotations

import pytest

from db import charging_statements, decisions
from db.decisions import ChargeRequest, Payer, Rules, decide
from locks.store import QueueLimits, Scripts
from tests.chaos.checks.judging import CHECKERS
from tests.chaos.mutants import MUTANTS, UNSEEN_MUTANTS, Mutant
from tests.chaos.mutants.edits import Edit, Lua, Python, StaleEdit, Statement
from tests.chaos.mutants.in_child import in_child
from tests.chaos.points import TARGET_POINTS
from tests.chaos.teeth import MIX_OF_HINT

PROPERTIES = {checker.__name__ for checker in CHECKERS}
ALL = {**MUTANTS, **UNSEEN_MUTANTS}
HINTS = set(MIX_OF_HINT)


async def nothing() -> None:
    """For a child that is only to be patched."""


@pytest.mark.parametrize("mutant", ALL.values(), ids=ALL)
def test_each_mutant_can_be_applied_to_the_product_as_it_is(mutant: Mutant) -> None:
    in_child(mutant, nothing)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_each_mutant_is_described_in_words_that_the_run_knows(mutant: Mutant) -> None:
    assert mutant.name == next(name for name, each in MUTANTS.items() if each is mutant)
    assert mutant.caught_by
    assert set(mutant.caught_by) <= PROPERTIES
    assert set(mutant.hints) <= HINTS
    assert {point for point, _ in mutant.points} <= set(TARGET_POINTS)
    assert mutant.edits or mutant.postgres_settings or mutant.register_unfenced


def test_no_two_mutants_are_the_same() -> None:
    changes = [
        (mutant.edits, tuple(mutant.postgres_settings.items()), mutant.register_unfenced) for mutant in MUTANTS.values()
    ]
    assert len(set(changes)) == len(changes)


@pytest.mark.parametrize(
    "edit",
    [
        Python("db.decisions:decide", "-    no such line"),
        Python("db.decisions:decide_not", "-    decisions = Decisions()"),
        Python("db.batch:Batch._entries.missing", "-    decisions = Decisions()"),
        Python("db.decisions:_judge", "         return IllegalRequest()\n-\n+    # twice there"),
        Lua("extend.lua", "-no such line"),
        Lua("acquire_free.lua", "-      end"),
        Statement("LOCK", "no such text", ""),
        Statement("LOCK", "appointment_info.id", ""),
        Statement("NO_SUCH_STATEMENT", "FOR UPDATE", ""),
    ],
    ids=str,
)
def test_an_edit_that_does_not_fit_says_so_and_changes_nothing(edit: Edit) -> None:
    with pytest.raises(StaleEdit):
        edit.check()
    with pytest.raises(StaleEdit):
        edit.apply()


def test_a_mutant_of_which_one_edit_does_not_fit_changes_nothing() -> None:
    before = charging_statements.LOCK.prepare
    fits, does_not = Statement("LOCK", " FOR UPDATE OF appointment_info", ""), Python("db.decisions:decide", "-never")

    with pytest.raises(StaleEdit):
        Mutant(name="half", does="", caught_by=(), edits=(fits, does_not)).patch()

    assert charging_statements.LOCK.prepare == before


async def decided_twice() -> list[object]:
    """By whoever imported the function before it was edited, too."""
    rows = decisions.LockedRows({}, {}, {})
    rules = Rules(Payer.ENTRANT, default_price=1)
    asked = [ChargeRequest(1, 1)]
    return [decide(rows, asked, rules), decisions.decide(rows, asked, rules)]


def test_edits_of_one_function_add_up_and_reach_whoever_has_it_already() -> None:
    once = Python("db.decisions:decide", "-    return decisions\n+    return [len(decisions.verdicts)]")
    twice = Python(
        "db.decisions:decide", "-    return [len(decisions.verdicts)]\n+    return [len(decisions.verdicts), 7]"
    )

    async def applied() -> list[object]:
        once.apply()
        twice.apply()
        return await decided_twice()

    assert in_child(None, applied) == [[1, 7], [1, 7]]


def test_edits_of_one_script_add_up_and_leave_the_others() -> None:
    once = Lua("extend.lua", "-return 'extended'\n+return 'taken'")
    twice = Lua(
        "extend.lua",
        "-local lease_id, lease_ms, grant_fence, fencing_token = ARGV[1], ARGV[2], ARGV[3], ARGV[4]\n"
        "+local fencing_token, lease_id, lease_ms, grant_fence = ARGV[4], ARGV[1], ARGV[2], ARGV[3]",
    )

    async def sources() -> list[str]:
        return [str(words[2]) for words in Scripts(QueueLimits(), holder="here").greeting]

    async def edited() -> list[str]:
        once.apply()
        twice.apply()
        return await sources()

    whole, mutant = in_child(None, sources), in_child(None, edited)

    changed = [text for before, text in zip(whole, mutant, strict=True) if before != text]
    assert len(changed) == 1
    assert "return 'taken'" in changed[0]
    assert "local fencing_token, lease_id, lease_ms, grant_fence = ARGV[4], ARGV[1], ARGV[2], ARGV[3]" in changed[0]
