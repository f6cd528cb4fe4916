"""Where the lock store is: one server, the master that Sentinels name, or the masters of a Cluster."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import SSLConnection, parse_url

SCHEMES = ("redis", "rediss", "redis+sentinel", "redis+cluster")
SENTINEL_PORT, REDIS_PORT = 26379, 6379


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is and who we are to it; repr shows no secret."""

    host: str
    port: int
    database: int
    credentials: tuple[str, ...]
    tls: ssl.SSLContext | None

    @classmethod
    def from_url(cls, url: str) -> Address:
        """Reads redis:// and rediss:// URLs. Raises ValueError for any other."""
        if not url.startswith(("redis://", "rediss://")):
            raise ValueError("a Redis URL starts with redis:// or rediss://")
        parts: dict[str, Any] = dict(parse_url(url))
        password = parts.get("password")
        username = parts.get("username")
        credentials = tuple(part for part in (username, password) if part) if password else ()
        tls = _tls_context(parts) if parts.get("connection_class") is SSLConnection else None
        return cls(
            parts.get("host", "localhost"),
            int(parts.get("port", REDIS_PORT)),
            int(parts.get("db", 0)),
            credentials,
            tls,
        )

    def at(self, host: str, port: int) -> Address:
        """The same credentials and TLS on another server."""
        return replace(self, host=host, port=port)

    def __repr__(self) -> str:
        return f"Address({self.host}:{self.port}/{self.database})"


@dataclass(frozen=True, slots=True)
class Sentinels:
    """`redis+sentinel://user:password@h1:p1,h2:p2/SERVICE/0?tls=1&sentinel_username=…&sentinel_password=…`

    User and password are those of the data servers; the Sentinels have their own. repr shows no secret.
    """

    hosts: tuple[tuple[str, int], ...]
    service: str
    data: Address  # its host and port stand for nothing
    credentials: tuple[str, ...] = field(repr=False, default=())


@dataclass(frozen=True, slots=True)
class Cluster:
    """`redis+cluster://user:password@h1:p1,h2:p2?tls=1`: any of its nodes, to begin with."""

    nodes: tuple[Address, ...]


Place = Address | Sentinels | Cluster


def place_of(url: str) -> Place:
    """Reads any URL that the lock store may have. Raises ValueError, in one line and without the URL's secrets."""
    scheme = url.partition("://")[0]
    if scheme in ("redis", "rediss"):
        return Address.from_url(url)
    if scheme == "redis+sentinel":
        return _sentinels(url)
    if scheme == "redis+cluster":
        return _cluster(url)
    raise ValueError("a lock store's URL starts with redis://, rediss://, redis+sentinel:// or redis+cluster://")


def _sentinels(url: str) -> Sentinels:
    user, hosts, path, query = _split(url, SENTINEL_PORT)
    service, _, database = path.partition("/")
    if not service:
        raise ValueError("redis+sentinel:// names its service: redis+sentinel://h1:p1,h2:p2/SERVICE")
    if database and not database.isdigit():
        raise ValueError("redis+sentinel:// ends with a database's number, if with anything: …/SERVICE/0")
    password = query.pop("sentinel_password", "")
    credentials = (query.pop("sentinel_username", ""), password) if password else ()
    data = _data_address(user, hosts[0], int(database or 0), query)
    return Sentinels(hosts, service, data, tuple(part for part in credentials if part))


def _cluster(url: str) -> Cluster:
    user, hosts, path, query = _split(url, REDIS_PORT)
    if path not in ("", "0"):
        raise ValueError("a Cluster has only the database 0: redis+cluster://h1:p1,h2:p2")
    first = _data_address(user, hosts[0], 0, query)
    return Cluster(tuple(first.at(*host) for host in hosts))


def _split(url: str, default_port: int) -> tuple[str, tuple[tuple[str, int], ...], str, dict[str, str]]:
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    query = {}
    for pair in filter(None, parts.query.split("&")):
        name, _, value = pair.partition("=")
        query[name] = unquote(value)
    found = tuple(_host(text, default_port) for text in hosts.split(",") if text)
    if not found:
        raise ValueError(f"{parts.scheme}:// names at least one host")
    return user, found, parts.path.strip("/"), query


def _host(text: str, default_port: int) -> tuple[str, int]:
    split = urlsplit(f"//{text}")  # knows of [::1]:6379
    try:
        port = split.port
    except ValueError:
        port = 0
    if not split.hostname or port == 0:
        raise ValueError(f"not a host and port: {text!r}")
    return split.hostname, port or default_port


def _data_address(user: str, host: tuple[str, int], database: int, query: dict[str, str]) -> Address:
    """The rest is redis-py's to read: the same words mean the same as in a redis:// URL."""
    secure = query.pop("tls", "0").lower() in ("1", "true", "yes")
    name = f"[{host[0]}]" if ":" in host[0] else host[0]
    options = "&".join(f"{key}={value}" for key, value in query.items())
    scheme, at = ("rediss" if secure else "redis"), ("@" if user else "")
    return Address.from_url(f"{scheme}://{user}{at}{name}:{host[1]}/{database}?{options}")


def _tls_context(parts: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=parts.get("ssl_ca_certs"))
    if parts.get("ssl_certfile"):
        context.load_cert_chain(parts["ssl_certfile"], parts.get("ssl_keyfile"))
    if str(parts.get("ssl_check_hostname", "true")).lower() in ("false", "0", "no"):
        context.check_hostname = False
    if parts.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
