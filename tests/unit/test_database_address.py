"""DATABASE_URL as every command reads it: merged with our own settings, or refused in a line that names the part."""

from __future__ import annotations

from urllib.parse import unquote

import pytest

from db.connecting import Connector, read_url

SECRET = "hush"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgres_is_read(scheme: str) -> None:
    read = read_url(f"{scheme}://u:p%40ss@h:5/d?application_name=x&sslmode=require")

    assert read == {
        "user": "u",
        "password": "p@ss",
        "host": "h",
        "port": "5",
        "dbname": "d",
        "application_name": "x",
        "sslmode": "require",
    }


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://u:hush@h/d", "must start with postgresql://, not mysql://"),
        ("host=h password=hush", "must start with postgresql://"),
        ("postgresql://u:hush@h:port/d", "port must be a number from 1 to 65535"),
        ("postgresql://u:hush@h:0/d", "port must be"),
        ("postgresql://u:hush@h:99999/d", "port must be"),
        ("postgresql://u:hush@h1:1,h2:99999/d", "port must be"),
        ("postgresql://u:hush@[::1/d", "is not a readable address"),
        ("postgresql://u:hush@h1,h2,h3/d?port=1,2", "port has 2 parts for 3 hosts"),
        ("postgresql://u:hush@h1,h2/d?hostaddr=127.0.0.1", "hostaddr has 1 parts for 2 hosts"),
        ("postgresql://u:hush@h/d?nonsense=1", "nonsense: no such parameter"),
        ("postgresql://u:hush@h/d?sslmode=full", "sslmode must be one of disable"),
        ("postgresql://u:hush@h/d?target_session_attrs=standby", "target_session_attrs must be one of any"),
        ("postgresql://u:hush@h/d?connect_timeout=0", "connect_timeout must be a number from 1"),
        ("postgresql://u:hush@h/d?connect_timeout=soon", "connect_timeout must be"),
        ("postgresql://u:hush@h/d?service=here", "service is not read"),
        ("postgresql://u:hush@h/d?client_encoding=latin1", "client_encoding must be left out"),
        ("postgresql://u:hush@h/d?options=-c%20statement_timeout%3D0", "options sets statement_timeout"),
        ("postgresql://u:hush@h/d?options=--Lock-Timeout%3D0", "options sets Lock-Timeout"),
        ("postgresql://u:hush@h/d?options=-csearch_path%3Da%20-ctimezone%3DX", "options sets timezone"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name_and_no_secret_is_told(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        read_url(url)

    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "u:se@hush@h/d",
        "u:se@hush@h1,h2/d",
        "u:se@hu/sh@h/d",
        "u:12/hush@h/d",
        "u:se/hush@h/d",
        "h/hush@h/d",
        "h?password=se@hush",
        "@hush@h/d",
    ],
)
@pytest.mark.parametrize("query", ["", "?sslmode=disable", "?application_name=a@b"])
def test_an_at_sign_or_slash_in_a_password_is_refused_with_how_it_is_written(address: str, query: str) -> None:
    with pytest.raises(ValueError, match=r"in a password the signs @ / [?] are written %40 %2F %3F") as caught:
        read_url(f"postgresql://{address}{query}")

    assert SECRET not in str(caught.value)


def test_a_word_behind_a_password_is_not_told_for_it_may_be_its_end() -> None:
    with pytest.raises(ValueError, match="is not a readable address") as caught:
        read_url("postgresql://h/d?password=se&hush=1")

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("password", ["a:b", "a#b", "a?b", "a,b", "a[b", "a%40b", "a%2Fb", ""])
def test_other_signs_are_a_passwords_own(password: str) -> None:
    read = read_url(f"postgresql://u:{password}@h:5/d%40e?host=@abstract&application_name=x@y")

    assert read.get("password", "") == unquote(password)
    assert (read["dbname"], read["host"], read["port"]) == ("d@e", "@abstract", "5")


def test_a_connector_refuses_the_same() -> None:
    with pytest.raises(ValueError, match="connect_timeout"):
        Connector("postgresql://h/d?connect_timeout=-1", connect_timeout_s=1)
