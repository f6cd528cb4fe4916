"""Values of statements that are sent as text: integers, and nothing that could become SQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger
from sqlalchemy.dialects.postgresql import ARRAY

from db.charging_statements import STATEMENTS
from db.prepared import INDEXES_ALWAYS, Prepared, script

ONE = Prepared("one", sa.select(sa.cast(sa.bindparam("ids"), ARRAY(BigInteger))))


class Sly(int):
    """An integer that shows itself as something else."""

    def __str__(self) -> str:
        return "}'; DROP TABLE user_consume; --"

    __repr__ = __str__


@pytest.mark.parametrize(
    "value",
    [
        "1",
        "1}'; DROP TABLE user_consume; --",
        b"1",
        [1],
        (1, 2),
        {"a": 1},
        pytest.param(object(), id="object()"),  # its repr differs from one process to the next
        datetime(2026, 1, 1, tzinfo=UTC),
        1 + 2j,
    ],
    ids=repr,
)
@pytest.mark.parametrize("others", [[], [1], [None], [1, None, 2]], ids=repr)
def test_what_is_no_number_is_a_type_error(value: Any, others: list[Any]) -> None:
    with pytest.raises(TypeError):
        ONE.with_values(ids=[*others, value])
    with pytest.raises(TypeError):
        ONE.with_values(ids=[value, *others])


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.none()))
def test_integers_and_nulls_are_an_array_of_them(values: list[int | None]) -> None:
    inside = ",".join("NULL" if value is None else str(value) for value in values)

    assert ONE.with_values(ids=values) == f"EXECUTE one('{{{inside}}}')"


@given(st.text())
def test_no_string_becomes_sql(text: str) -> None:
    with pytest.raises(TypeError):
        ONE.with_values(ids=[text])  # type: ignore[list-item]


def test_a_number_is_written_as_its_digits_whatever_it_says_it_is() -> None:
    assert ONE.with_values(ids=[Sly(7), True]) == "EXECUTE one('{7,1}')"
    assert ONE.with_values(ids=[Sly(7), None]) == "EXECUTE one('{7,NULL}')"


def test_values_go_to_the_parameters_of_their_names() -> None:
    two = Prepared(
        "two", sa.select(*[sa.cast(sa.bindparam(name), ARRAY(BigInteger)) for name in ("first", "second", "first")])
    )

    assert two.with_values(second=[2], first=[1]) == "EXECUTE two('{1}', '{2}')"
    with pytest.raises(KeyError):
        two.with_values(first=[1])


def test_the_script_prepares_each_statement_once_after_its_settings() -> None:
    lines = script(STATEMENTS).split(";")

    assert [line.split(" = ")[0] for line in lines[: len(INDEXES_ALWAYS)]] == [f"SET {name}" for name in INDEXES_ALWAYS]
    prepared = [line.split(" AS ")[0] for line in lines[len(INDEXES_ALWAYS) :]]
    assert len(prepared) == len(set(prepared)) == len(STATEMENTS)
    assert all(line.startswith("PREPARE ") for line in prepared)
