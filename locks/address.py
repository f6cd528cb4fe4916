"""Where the lock store is: one server, the master that Sentinels name, or the masters of a Cluster."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from urllib.parse import unquote

from locks.identity import Credentials, PasswordFile, Tls, called

SCHEMES = ("redis", "rediss", "redis+sentinel", "redis+cluster")
SENTINEL_PORT, REDIS_PORT = 26379, 6379

_split = re.compile(r"([a-z+]+)://(?:([^/?#@]*)@)?([^/?#@]*)(?:/([^?#@]*))?(?:\?([^#]*))?").fullmatch
_host = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\s:/?#@\[\],%]*))(?::([0-9]{1,5}))?").fullmatch
# Words that change what is sent where. redis-py's others, of its pools and timeouts, mean nothing here.
_TLS_WORDS = {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs"}
_CREDENTIAL_WORDS = ("username", "password", "password_file")
_OUR_WORDS = {"db", *_CREDENTIAL_WORDS} | _TLS_WORDS
_SENTINEL_WORDS = {f"sentinel_{word}" for word in (*_CREDENTIAL_WORDS, "tls")}
_REDIS_PYS_WORDS = {
    "client_name",
    "decode_responses",
    "encoding",
    "health_check_interval",
    "max_connections",
    "protocol",
    "retry_on_error",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_read_size",
    "socket_timeout",
    "timeout",
}
_VERIFY_MODES = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is and who we are to it; repr shows no secret."""

    host: str
    port: int
    database: int
    credentials: Credentials
    tls: Tls | None
    ip: str | None = None  # where the host was found, once it was

    @classmethod
    def from_url(cls, url: str) -> Address:
        """Reads redis:// and rediss:// URLs. Raises ValueError for any other."""
        if not url.startswith(("redis://", "rediss://")):
            raise ValueError("a Redis URL starts with redis:// or rediss://")
        return _read(url, REDIS_PORT).addresses(secure=url.startswith("rediss://"))[0]

    def at(self, host: str, port: int) -> Address:
        """The same credentials and TLS on another server."""
        return replace(self, host=host, port=port, ip=None)

    @property
    def where(self) -> str:
        """host:port, and the IP address where the host is a name."""
        found = f" ({self.ip})" if self.ip not in (None, self.host) else ""
        return f"{self.host}:{self.port}{found}"

    @property
    def must_be_read(self) -> bool:
        """Whether read() takes its time."""
        return self.tls is not None or callable(self.credentials)

    def read(self) -> tuple[tuple[str, ...], ssl.SSLContext | None]:
        """Credentials and TLS as they are now: files are read, a callable is called. Raises ValueError."""
        credentials = called(self.credentials) if callable(self.credentials) else self.credentials
        return credentials, None if self.tls is None else self.tls.context()

    def __repr__(self) -> str:
        return f"Address({self.host}:{self.port}/{self.database})"


@dataclass(frozen=True, slots=True)
class Sentinels:
    """`redis+sentinel://user:password@h1:p1,h2:p2/SERVICE/0?tls=1&sentinel_username=…&sentinel_password=…`

    User and password are those of the data servers; the Sentinels have their own. tls is for both, unless sentinel_tls
    says something else. repr shows no secret.
    """

    sentinels: tuple[Address, ...]
    service: str
    data: Address  # its host and port stand for nothing


@dataclass(frozen=True, slots=True)
class Cluster:
    """`redis+cluster://user:password@h1:p1,h2:p2?tls=1`: any of its nodes, to begin with."""

    nodes: tuple[Address, ...]


Place = Address | Sentinels | Cluster


def place_of(url: str, *, credentials: Callable[[], tuple[str, ...]] | None = None) -> Place:
    """Reads any URL that the lock store may have. `credentials`: instead of the URL's, for its data servers.

    Raises ValueError, in one line and without the URL's secrets; also when a file that the URL names cannot be read.
    """
    place = _place_of(url)
    if credentials is None:
        return place
    data = place.data if isinstance(place, Sentinels) else place.nodes[0] if isinstance(place, Cluster) else place
    if data.credentials:
        raise ValueError("credentials are given beside those of the URL; choose one")
    match place:
        case Address():
            return replace(place, credentials=credentials)
        case Sentinels():
            return replace(place, data=replace(place.data, credentials=credentials))
        case Cluster():
            return Cluster(tuple(replace(node, credentials=credentials) for node in place.nodes))


def _place_of(url: str) -> Place:
    scheme = url.partition("://")[0]
    if scheme in ("redis", "rediss"):
        return Address.from_url(url)
    if scheme == "redis+sentinel":
        return _sentinels(url)
    if scheme == "redis+cluster":
        return _cluster(url)
    raise ValueError("a lock store's URL starts with redis://, rediss://, redis+sentinel:// or redis+cluster://")


def _sentinels(url: str) -> Sentinels:
    read = _read(url, SENTINEL_PORT, {"tls"} | _SENTINEL_WORDS)
    service, _, database = read.path.partition("/")
    if not service:
        raise ValueError("redis+sentinel:// names its service: redis+sentinel://h1:p1,h2:p2/SERVICE")
    read.path = database
    secure = read.says("tls")
    guards_secure = read.says("sentinel_tls") if "sentinel_tls" in read.query else secure
    query, tls = read.query, {word: read.query[word] for word in read.query if word in _TLS_WORDS}
    if guards_secure != secure:  # the words of TLS are those of the one that has it
        read.query = {word: query[word] for word in query if secure or word not in tls}
        tls = tls if guards_secure else {}
    (data, *_) = read.addresses(secure=secure)
    read.path, read.user = "", ""
    own = {word: query[f"sentinel_{word}"] for word in _CREDENTIAL_WORDS if f"sentinel_{word}" in query}
    read.query = tls | own
    sentinels = read.addresses(secure=guards_secure)
    return Sentinels(sentinels, unquote(service), data)


def _cluster(url: str) -> Cluster:
    read = _read(url, REDIS_PORT, {"tls"})
    nodes = read.addresses(secure=read.says("tls"))
    if nodes[0].database:
        raise ValueError("a Cluster has only the database 0: redis+cluster://h1:p1,h2:p2")
    return Cluster(nodes)


@dataclass(slots=True)
class _Read:
    """A URL in its parts; all but the hosts and the values of `query` still quoted."""

    user: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    query: dict[str, str]

    def says(self, word: str) -> bool:
        return _is_yes(self.query.get(word, "no"))

    def addresses(self, *, secure: bool) -> tuple[Address, ...]:
        """One for each host."""
        database = self.path or self.query.get("db", "0")
        if not (database.isascii() and database.isdigit()):
            raise ValueError("a Redis URL ends with a database's number, if with anything: …/0")
        username, _, password = (unquote(part) for part in self.user.partition(":"))
        username = username or self.query.get("username", "")
        password = password or self.query.get("password", "")
        credentials: Credentials = (username, password) if username else (password,) if password else ()
        if "password_file" in self.query:
            if password:
                raise ValueError("a password and a password_file are given; choose one")
            credentials = PasswordFile(username, self.query["password_file"])
        for word in _TLS_WORDS & self.query.keys() if not secure else ():
            raise ValueError(f"{word} is of TLS, which is not asked for: rediss://, or tls=1 for several hosts")
        tls = _tls(self.query) if secure else None
        made = tuple(Address(host, port, int(database), credentials, tls) for host, port in self.hosts)
        made[0].read()
        return made


def _read(url: str, default_port: int, words: Set[str] = frozenset()) -> _Read:
    """No part of the URL is in what it raises: an unquoted sign may have put a password where a port should be."""
    found = _split(url) if url.isprintable() else None
    if found is None:
        raise ValueError("not a URL; in passwords the signs / ? # @ , : % are written %2F %3F %23 %40 %2C %3A %25")
    scheme, user, hosts, path, rest = found.groups()
    query: dict[str, str] = {}
    for pair in filter(None, (rest or "").split("&")):
        word, equals, value = pair.partition("=")
        if not equals or word not in _OUR_WORDS | _REDIS_PYS_WORDS | words:
            may_be_a_secret = "@" in (rest or "") or any("password" in earlier for earlier in query)
            raise ValueError(_unknown(scheme, word, words, may_be_a_secret=may_be_a_secret))
        if word in query:
            raise ValueError(f"{scheme}://…?{word}= is given twice")
        query[word] = unquote(value)
    if "+" not in scheme:
        hosts = hosts if hosts and not hosts.startswith(":") else f"localhost{hosts}"
    texts = [text for text in hosts.split(",") if text]
    if not texts:
        raise ValueError(f"{scheme}:// names at least one host")
    if len(texts) > 1 and "+" not in scheme:
        raise ValueError(f"{scheme}:// names one host")
    found_hosts = tuple(_host_and_port(text, default_port) for text in texts)
    return _Read(user or "", found_hosts, (path or "").strip("/"), query)


def _unknown(scheme: str, word: str, words: Set[str], *, may_be_a_secret: bool) -> str:
    """What is wrong with a word; it is not shown where it may be the end of a password that is not quoted."""
    named = "has WORD=VALUE&… after its ?" if may_be_a_secret or not word else f"has no word {word[:40]!r}"
    return f"{scheme}:// {named}; its words are redis-py's and {', '.join(sorted(_OUR_WORDS | words))}"


def _host_and_port(text: str, default_port: int) -> tuple[str, int]:
    found = _host(text)
    host, port = (found[1] or found[2], int(found[3] or default_port)) if found else ("", 0)
    if not host or not 0 < port < 65536:
        raise ValueError("a host is NAME or NAME:PORT, IPv6 in []; a password's / ? # are written %2F %3F %23")
    return host, port


def _tls(query: dict[str, str]) -> Tls:
    verify = query.get("ssl_cert_reqs", "required").lower()
    if verify not in _VERIFY_MODES:
        raise ValueError("ssl_cert_reqs is required, optional or none")
    if "ssl_keyfile" in query and "ssl_certfile" not in query:
        raise ValueError("ssl_keyfile is given without its ssl_certfile")
    return Tls(
        query.get("ssl_ca_certs"),
        query.get("ssl_ca_path"),
        query.get("ssl_certfile"),
        query.get("ssl_keyfile"),
        _VERIFY_MODES[verify],
        checks_name=_is_yes(query.get("ssl_check_hostname", "yes")) and verify != "none",
    )


def _is_yes(text: str) -> bool:
    if text.lower() in ("1", "t", "true", "y", "yes"):
        return True
    if text.lower() in ("", "0", "f", "false", "n", "no"):
        return False
    raise ValueError("tls, sentinel_tls and ssl_check_hostname are yes or no")
