"""Where a lock store is: every form of its URL, and what is wrong with the others, told without their secrets."""

from __future__ import annotations

import itertools
import ssl
from pathlib import Path
from urllib.parse import quote

import pytest

from locks.address import Address, Cluster, Place, Sentinels, place_of
from tests.servers.tls import Certificates

HARD = "p@ss/w:rd%?#&,+ ü"  # nothing that a URL may carry unquoted
SECRET = "hunter2"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority's file, whose name wants quoting."""
    folder = tmp_path_factory.mktemp("of a&b")
    Certificates.make(folder)
    return folder / "ca.pem"


def one(url: str) -> Address:
    place = place_of(url)
    assert isinstance(place, Address)
    return place


def sentinels(url: str) -> Sentinels:
    place = place_of(url)
    assert isinstance(place, Sentinels)
    return place


def cluster(url: str) -> Cluster:
    place = place_of(url)
    assert isinstance(place, Cluster)
    return place


def where(*addresses: Address) -> list[tuple[str, int]]:
    return [(address.host, address.port) for address in addresses]


@pytest.mark.parametrize(
    ("url", "host", "port", "database", "credentials"),
    [
        ("redis://", "localhost", 6379, 0, ()),
        ("redis://cache", "cache", 6379, 0, ()),
        ("redis://cache/", "cache", 6379, 0, ()),
        ("redis://:7000", "localhost", 7000, 0, ()),
        ("redis://cache:7000/5", "cache", 7000, 5, ()),
        ("redis://cache?db=5", "cache", 6379, 5, ()),
        ("redis://cache/4?db=5", "cache", 6379, 4, ()),
        ("redis://[::1]:7000/1", "::1", 7000, 1, ()),
        ("redis://[fe80::1%eth0]", "fe80::1%eth0", 6379, 0, ()),
        ("redis://10.0.0.1:7000", "10.0.0.1", 7000, 0, ()),
        ("redis://my-cache.example.com:7000", "my-cache.example.com", 7000, 0, ()),
        ("redis://:word@cache", "cache", 6379, 0, ("word",)),
        ("redis://user:word@cache", "cache", 6379, 0, ("user", "word")),
        ("redis://user@cache", "cache", 6379, 0, ("user", "")),
        ("redis://us%3Aer:wo%40rd@cache", "cache", 6379, 0, ("us:er", "wo@rd")),
        ("redis://cache?username=user&password=wo%26rd", "cache", 6379, 0, ("user", "wo&rd")),
        ("redis://cache?socket_timeout=3&health_check_interval=9&protocol=3", "cache", 6379, 0, ()),
    ],
)
def test_one_server_is_read(url: str, host: str, port: int, database: int, credentials: tuple[str, ...]) -> None:
    address = one(url)
    assert (address.host, address.port, address.database, address.credentials) == (host, port, database, credentials)
    assert address.tls is None


def test_sentinels_are_read() -> None:
    place = sentinels(
        "redis+sentinel://user:word@one:1,two,[::1]:3/my%20master/2?sentinel_username=guard&sentinel_password=wo%26rd"
    )
    assert where(*place.sentinels) == [("one", 1), ("two", 26379), ("::1", 3)]
    assert {each.credentials for each in place.sentinels} == {("guard", "wo&rd")}
    assert {each.database for each in place.sentinels} == {0}
    assert place.service == "my master"
    assert (place.data.credentials, place.data.database, place.data.tls) == (("user", "word"), 2, None)
    assert place.data.at("found", 7).credentials == ("user", "word")


def test_the_data_servers_password_is_not_the_sentinels() -> None:
    place = sentinels(f"redis+sentinel://:{SECRET}@one/service")
    assert place.data.credentials == (SECRET,)
    assert place.sentinels[0].credentials == ()


def test_a_cluster_is_read() -> None:
    place = cluster("redis+cluster://user:word@one:1,two,[::1]:3/0")
    assert where(*place.nodes) == [("one", 1), ("two", 6379), ("::1", 3)]
    assert {each.credentials for each in place.nodes} == {("user", "word")}


@pytest.mark.parametrize("form", ["redis://{}@h:1/0", "redis+sentinel://{}@h:1,i:2/s", "redis+cluster://{}@h:1,i:2"])
@pytest.mark.parametrize("username", ["", HARD])
def test_a_quoted_password_may_have_every_sign(form: str, username: str) -> None:
    place = place_of(form.format(f"{quote(username, safe='')}:{quote(HARD, safe='')}"))
    assert [address.credentials for address in data_of(place)] == [(username, HARD) if username else (HARD,)] * (
        len(data_of(place))
    )


@pytest.mark.parametrize("form", ["rediss://h?{}", "redis+sentinel://h/s?tls=1&{}", "redis+cluster://h,i?tls=yes&{}"])
def test_tls_checks_certificate_and_name_unless_told_otherwise(form: str, authority: Path) -> None:
    for address in all_of(place_of(form.format(f"ssl_ca_certs={quote(str(authority))}"))):
        context = context_of(address)
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
        (trusted,) = context.get_ca_certs()
        assert "a test's own authority" in str(trusted["subject"])
    for address in all_of(place_of(form.format("ssl_check_hostname=false"))):
        context = context_of(address)
        assert not context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
    for address in all_of(place_of(form.format("ssl_cert_reqs=none"))):
        assert context_of(address).verify_mode is ssl.CERT_NONE


def test_tls_is_for_sentinels_and_data_servers_unless_told_otherwise() -> None:
    both, data_only = sentinels("redis+sentinel://h/s?tls=1"), sentinels("redis+sentinel://h/s?tls=1&sentinel_tls=0")
    neither = sentinels("redis+sentinel://h/s?tls=no")
    assert both.data.tls is not None
    assert both.sentinels[0].tls is not None
    assert data_only.data.tls is not None
    assert data_only.sentinels[0].tls is None
    assert (neither.data.tls, neither.sentinels[0].tls) == (None, None)


BAD = [
    "",
    "localhost:6379",
    "http://h",
    "unix:///run/redis.sock",
    "REDIS://h",
    "redis:/h",
    "redis://h:0",
    "redis://h:65536",
    "redis://h:-1",
    "redis://h:port",
    "redis://h:1,i:2",
    "redis://h/one",
    "redis://h/1/2",
    "redis://h/-1",
    "redis://h?db=one",
    "redis://[::1",
    "redis://::1",
    "redis://h\n",
    "redis://h i",
    "redis://h?tls=1",  # rediss:// says that
    "redis://h?no_such_word=1",
    "redis://h?db",
    "redis://h?db=1&db=2",
    "redis://h?password=a&password_file=/nowhere/password",
    "redis://h?password_file=/nowhere/password",
    "redis://h?password_file=/dev/null",  # empty
    "redis://h?ssl_ca_certs=/nowhere/ca.pem",  # and the password would travel in plain text
    "redis+cluster://h?ssl_ca_certs=/nowhere/ca.pem",
    "redis+sentinel://h/s?ssl_cert_reqs=none",
    "redis+sentinel://h/s?sentinel_password_file=/nowhere/password",
    "rediss://h?ssl_keyfile=/nowhere/key.pem",
    "rediss://h?ssl_ca_certs=/nowhere/ca.pem",
    "rediss://h?ssl_certfile=/nowhere/cert.pem",
    "rediss://h?ssl_cert_reqs=perhaps",
    "rediss://h?ssl_check_hostname=perhaps",
    "redis+sentinel://h:1",
    "redis+sentinel://h:1/",
    "redis+sentinel:///service",
    "redis+sentinel://h:1/service/one",
    "redis+sentinel://h:x/service",
    "redis+sentinel://h/service?tls=perhaps",
    "redis+cluster://",
    "redis+cluster://,",
    "redis+cluster://h:1/3",
    "redis+cluster://h:1?db=3",
    "redis+cluster://h:1,i:x",
    "redis+cluster://h?tsl=1",  # and the password would travel in plain text
]


@pytest.mark.parametrize("url", BAD)
def test_a_bad_url_is_refused_with_one_line_that_shows_nothing_of_it(url: str) -> None:
    scheme, separator, rest = url.partition("://")
    for bad in (url, f"{scheme}{separator}user:{SECRET}@{rest}" if rest else url):
        with pytest.raises(ValueError, match=r".") as caught:
            place_of(bad)
        assert "\n" not in str(caught.value)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h?{}=1",
        "rediss://user:word@h:1/0?db=1&{}=1",
        "redis+sentinel://h/s?tls=1&{}=1",
        "redis+cluster://:word@h,i?{}=1&tls=1",
    ],
)
@pytest.mark.parametrize(
    "word", ["tsl", "sentinel_pasword", "ssl_ca_cert", "no such word", "x" * 1000, "socket-timeout"]
)
def test_a_word_that_is_not_known_is_named(url: str, word: str) -> None:
    with pytest.raises(ValueError, match=f"has no word '{word[:40]}'") as caught:
        place_of(url.format(word))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("redis://h?db=1&db=2", "db"),
        ("redis://h?ssl_ca_certs=/ca.pem", "ssl_ca_certs"),
        ("redis+cluster://h?ssl_ca_certs=/ca.pem&tls=0", "ssl_ca_certs"),
        ("rediss://h?ssl_keyfile=/key.pem", "ssl_keyfile"),
        ("redis://:word@h?password_file=/password", "password_file"),
        ("redis://h?password_file=/nowhere", "password_file.*No such file"),
        ("redis+sentinel://h/s?sentinel_password=a&sentinel_password_file=/b", "password_file"),
    ],
)
def test_a_word_that_does_not_fit_is_named(url: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        place_of(url)


def test_a_password_file_is_read_whenever_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a&b"
    for text, password in (("one\n", "one"), (f"{HARD}\r\n", HARD), (" two words ", " two words ")):
        path.write_bytes(text.encode())
        for user, credentials in (("", (password,)), ("user@", ("user", password))):
            address = one(f"redis://{user}h?password_file={quote(str(path))}")
            assert address.read() == (credentials, None)
            assert password not in repr(address)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="password_file is not UTF-8"):
        address.read()


@pytest.mark.parametrize("url", ["redis://h", "redis+sentinel://h/s?sentinel_password=own", "redis+cluster://h,i"])
def test_credentials_that_are_given_are_the_data_servers(url: str) -> None:
    place = place_of(url, credentials=lambda: ("user", "word"))
    assert {address.read()[0] for address in data_of(place)} == {("user", "word")}
    if isinstance(place, Sentinels):
        assert {address.read()[0] for address in place.sentinels} == {("own",)}
    with pytest.raises(ValueError, match="choose one"):
        place_of(url.replace("://", "://:word@"), credentials=lambda: ("user", "word"))


@pytest.mark.parametrize(
    "form", ["redis://:{}@h", "rediss://u:{}@h/0", "redis+sentinel://:{}@h/s", "redis+cluster://:{}@h"]
)
def test_an_at_sign_in_a_password_is_refused_with_how_it_is_written(form: str) -> None:
    with pytest.raises(ValueError, match=r"in passwords the signs / [?] # @ , : % are written %2F %3F %23 %40"):
        place_of(form.format("se@cretword"))


def test_the_words_of_tls_are_those_of_whoever_has_it(authority: Path) -> None:
    files = f"ssl_ca_certs={quote(str(authority))}"
    guards = sentinels(f"redis+sentinel://h/s?sentinel_tls=1&{files}")
    data = sentinels(f"redis+sentinel://h/s?tls=1&sentinel_tls=0&{files}")
    assert (guards.data.tls, data.sentinels[0].tls) == (None, None)
    assert guards.sentinels[0].tls == data.data.tls
    assert guards.sentinels[0].tls is not None


@pytest.mark.parametrize("form", ["redis://user:{}@h:1/0", "redis+sentinel://:{}@h:1/s", "redis+cluster://:{}@h:1,i:2"])
@pytest.mark.parametrize("sign", list("/?#@[% \n"))
def test_a_password_that_is_not_quoted_is_never_shown(form: str, sign: str) -> None:
    for password in (f"{SECRET}{sign}{SECRET}", f"7{sign}{SECRET}", f"{SECRET}{sign}", f"{sign}{SECRET}=1"):
        assert SECRET not in said_of(form.format(password))


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@h",
        f"redis://h?password={SECRET}",
        f"rediss://:{SECRET}@h",
        f"redis+sentinel://:{SECRET}@h/s?sentinel_password={SECRET}",
        f"redis+cluster://:{SECRET}@h,i",
    ],
)
def test_repr_shows_no_secret(url: str) -> None:
    place = place_of(url)
    assert SECRET not in repr(place)
    assert SECRET not in str(place)
    assert "h:" in repr(place)


def said_of(url: str) -> str:
    """The refusal, or what is shown of the place."""
    try:
        return repr(place_of(url))
    except ValueError as error:
        return str(error)


def data_of(place: Place) -> list[Address]:
    match place:
        case Sentinels():
            return [place.data]
        case Cluster():
            return list(place.nodes)
        case Address():
            return [place]


def context_of(address: Address) -> ssl.SSLContext:
    _, context = address.read()
    assert context is not None
    return context


def all_of(place: Place) -> list[Address]:
    ours = list(place.sentinels) if isinstance(place, Sentinels) else []
    return list(itertools.chain(data_of(place), ours))
