"""What the judge of an order sees: one that is right, and one for each thing that can be wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from db.events import Committed, RowsLocked
from locks.events import Acquired, Releasing, WakeSource
from tests.chaos.interleave.handler import Answer, Part
from tests.chaos.interleave.judging import Charge, EntryRow, Tables, judge
from tests.chaos.interleave.orders import Case, Crash
from tests.chaos.interleave.scenes import pair
from tests.chaos.interleave.stepper import Played, Seen

ID, INVITER, INVITEE = 100, 100, 101
FIRST_TOKEN, SECOND_TOKEN = 5, 6


def test_an_order_in_which_everything_holds_is_right() -> None:
    assert judge(_played(), _tables()) == []


def _charge_twice(played: Played, tables: Tables) -> None:
    tables.charges.append(Charge(2, ID, INVITEE, 1, SECOND_TOKEN))
    tables.balances[INVITEE] = 1
    played.parts[1].answers[0] = Answer(played.parts[1].asks[0], 1, "charged", 2, INVITEE, "at 2")


def _lose_the_charge(played: Played, tables: Tables) -> None:
    tables.charges.clear()


def _forget_the_mark(played: Played, tables: Tables) -> None:
    tables.marks[ID] = (False, None)


def _take_a_coupon_more(played: Played, tables: Tables) -> None:
    tables.balances[INVITER] -= 1


def _lose_an_entry(played: Played, tables: Tables) -> None:
    tables.entries.pop()


def _write_an_entry_more(played: Played, tables: Tables) -> None:
    tables.entries.append(EntryRow(ID, INVITEE, "at 3"))


def _refuse(played: Played, tables: Tables) -> None:
    played.parts[1].answers[0] = Answer(played.parts[1].asks[0], 1, "DatabaseError")
    tables.entries.pop()


def _tell_both_that_they_have_charged(played: Played, tables: Tables) -> None:
    played.parts[1].answers[0].outcome = "charged"


def _write_another_fence(played: Played, tables: Tables) -> None:
    tables.marks[ID] = (True, FIRST_TOKEN - 1)


def _give_a_smaller_token(played: Played, tables: Tables) -> None:
    played.trace[4] = _acquired(1, FIRST_TOKEN - 1)


def _let_both_in(played: Played, tables: Tables) -> None:
    played.trace.insert(1, played.trace.pop(4))


def _write_with_an_old_token(played: Played, tables: Tables) -> None:
    """Handler 1 acquires first and locks its rows last."""
    played.case = Case("lapsed", "pair", "0101010101")
    played.trace[0], played.trace[4] = _acquired(1, FIRST_TOKEN), _acquired(0, SECOND_TOKEN)
    played.trace.insert(1, played.trace.pop(4))
    tables.marks[ID] = (True, SECOND_TOKEN)
    tables.charges[0] = tables.charges[0]._replace(fence=SECOND_TOKEN)


def _stand_still(played: Played, tables: Tables) -> None:
    played.is_stuck = True


def _leave_it_locked(played: Played, tables: Tables) -> None:
    played.left_locked = [f"appointment:{ID}"]


def _find_the_row_held(played: Played, tables: Tables) -> None:
    played.trace[5] = Seen(1, 1, "rows_locked", RowsLocked([], [ID]))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (_charge_twice, "charged 2 times"),
        (_lose_the_charge, "0 appointments are charged"),
        (_forget_the_mark, "is_consume is False"),
        (_take_a_coupon_more, "granted 2, spent 1, left 0"),
        (_lose_an_entry, "ENTER row is not there"),
        (_write_an_entry_more, "ENTER rows without an answer"),
        (_refuse, "was answered DatabaseError"),
        (_tell_both_that_they_have_charged, "answered 'charged' 2 times"),
        (_write_another_fence, "is not that of its charge"),
        (_give_a_smaller_token, "does not rise"),
        (_let_both_in, "at the same time"),
        (_write_with_an_old_token, "after a newer one"),
        (_stand_still, "nobody can go on"),
        (_leave_it_locked, "is still locked"),
        (_find_the_row_held, "another one its row"),
    ],
)
def test_what_is_wrong_is_named(spoil: Callable[[Played, Tables], None], what: str) -> None:
    played, tables = _played(), _tables()

    spoil(played, tables)

    assert any(what in wrong for wrong in judge(played, tables)), judge(played, tables)


def test_who_finds_the_row_held_enters_what_is_charged_with_any_token() -> None:
    played, tables = _played(), _tables()
    _write_with_an_old_token(played, tables)
    at = next(k for k, seen in enumerate(played.trace) if seen.handler == 1 and seen.point == "rows_locked")

    played.trace[at : at + 1] = [
        Seen(1, 1, "rows_locked", RowsLocked([], [ID])),
        Seen(1, 1, "committed", Committed(0, 0, 0.0, [ID])),
    ]

    assert judge(played, tables) == []


def test_who_has_died_after_its_commit_may_have_charged_and_entered() -> None:
    assert judge(_with_death("commit_sent"), _tables()) == []


def test_who_has_died_before_its_commit_may_not_have_charged_nor_entered() -> None:
    wrong = judge(_with_death("committing"), _tables())

    assert any("answered 'charged' 0 times" in each for each in wrong)
    assert any("1 ENTER rows without an answer, and 0 may be there" in each for each in wrong)


def _with_death(point: str) -> Played:
    """Handler 0 has died, and its answer with it."""
    played = _played()
    played.case = Case("lock", "pair", "0101", Crash(0, point))
    played.died_at = point
    played.parts[0].answers.clear()
    return played


def _played() -> Played:
    """The inviter charges, then the invitee gets a turn and enters."""
    cast = pair(ID, 2)
    parts = [Part(number, asks, ()) for number, asks in enumerate(cast.parts)]
    parts[0].answers = [Answer(cast.parts[0][0], 0, "charged", 1, INVITER, "at 1")]
    parts[1].answers = [Answer(cast.parts[1][0], 1, "already_charged", 1, INVITER, "at 2")]
    trace = []
    for number, token in enumerate((FIRST_TOKEN, SECOND_TOKEN)):
        trace += [
            _acquired(number, token),
            Seen(1, number, "rows_locked", RowsLocked([ID], [])),
            Seen(2, number, "committed", Committed(1, 1 - number, 0.0, [ID])),
            Seen(3, number, "releasing", Releasing(f"appointment:{ID}", token)),
        ]
    return Played(Case("lock", "pair", "0000011111"), cast, parts, trace)


def _tables() -> Tables:
    return Tables(
        charges=[Charge(1, ID, INVITER, 1, FIRST_TOKEN)],
        entries=[EntryRow(ID, INVITER, "at 1"), EntryRow(ID, INVITEE, "at 2")],
        marks={ID: (True, FIRST_TOKEN)},
        balances={INVITER: 1, INVITEE: 2},
    )


def _acquired(number: int, token: int) -> Seen:
    return Seen(0, number, "acquired", Acquired(f"appointment:{ID}", token, 0.0, WakeSource.NONE, False, False, None))
