"""For whom a lease is held, as one ASCII text: whatever is said comes back; what could not be shown is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locks.for_whom import MAX_OWNER_LENGTH, check_owner, read_for_whom, text_for, text_for_client

request_ids = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200)
owners = st.text(min_size=1, max_size=MAX_OWNER_LENGTH).filter(lambda text: text.isprintable() and not text.isspace())


@given(request_ids, st.none() | owners)
def test_what_was_said_comes_back(request_id: str, owner: str | None) -> None:
    assert read_for_whom(text_for(request_id, owner)) == (request_id, owner, False)
    assert read_for_whom(text_for_client(request_id, owner)) == (request_id, owner, True)


@given(request_ids, st.none() | owners)
def test_it_is_one_field_of_ascii_as_redis_keeps_it(request_id: str, owner: str | None) -> None:
    for text in (text_for(request_id, owner), text_for_client(request_id, owner)):
        assert text.isascii()
        assert not {"\t", "\n", "\r"} & set(text)


def test_a_request_alone_is_its_id_and_not_one_byte_more() -> None:
    assert (text_for("r-1"), text_for("")) == ("r-1", "")


@pytest.mark.parametrize(
    "owner",
    [
        "",
        " ",
        "   ",
        "x" * (MAX_OWNER_LENGTH + 1),
        "a\tb",
        "a\nb",
        "\x1f",
        "\x7f",
        "\x1b[31m",
        "evil\u202etxt",
        "\u200b",
        "\ud800",
    ],
    ids=ascii,
)
def test_an_owner_that_could_not_be_shown_is_refused(owner: str) -> None:
    for say in (check_owner, lambda owner: text_for("r-1", owner), lambda owner: text_for_client("r-1", owner)):
        with pytest.raises(ValueError, match="an owner is 1 to 200 printable characters"):
            say(owner)


@pytest.mark.parametrize(
    "owner", ["x" * MAX_OWNER_LENGTH, "nightly import", " 100 % of 日本 🦊", "a" + " " * 50, "מִבְחָן"], ids=ascii
)
def test_spaces_and_letters_of_any_script_are_an_owners_own_affair(owner: str) -> None:
    assert read_for_whom(text_for("", owner)).owner == owner
