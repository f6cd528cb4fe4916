"""The one way to a connection, for every command alike: what DATABASE_URL says, and our own settings beside it.

A name may have several addresses, and a URL several hosts: each is tried in turn, with a deadline of its own. libpq
would do that, but not for connections that somebody else drives (psycopg2's asynchronous mode, and its wait callback):
there it forgets connect_timeout, and the first silent address is waited for until all time is over.
"""

from __future__ import annotations

import math
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import psycopg2
from psycopg2.extensions import DECIMAL, new_type, parse_dsn, register_type

from db.errors import Unusable
from db.waiting import wait_for_answer, waits_bounded

SCHEMES = ("postgres", "postgresql", "postgresql+psycopg2")
LONGEST_CONNECT_TIMEOUT_S = 3600

# The settings of a session that are ours to make.
OUR_SETTINGS = ("timezone", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")

_REFUSED = {
    "service": "is not read: write what the service file says into the address",
    "client_encoding": "must be left out: it is always UTF8",
    "replication": "must be left out",
    "load_balance_hosts": "must be left out: hosts are tried in their order",
}
_CHOICES = {
    "target_session_attrs": ("any", "read-write", "primary"),
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
}
_OPTION = re.compile(r"(?:^|\s)(?:-c\s*|--)([\w.-]+)\s*=")

Parameters = Mapping[str, Any]


class Connector:
    """Makes connections to one database, each with the same settings. For any thread."""

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float,
        settings: Parameters | None = None,
        application_name: str = "chargeonce",
    ) -> None:
        """`settings`: those of OUR_SETTINGS that sessions get. Raises ValueError for a URL that read_url refuses."""
        parameters = read_url(url)
        self._hosts = _hosts(parameters)
        self._connect_timeout_s = float(parameters.get("connect_timeout", connect_timeout_s))
        ours = [f"-c {name}={value}" for name, value in (settings or {}).items()]
        self._parameters = {
            "application_name": application_name,
            **{name: value for name, value in parameters.items() if name not in ("host", "hostaddr", "port")},
            "connect_timeout": str(math.ceil(self._connect_timeout_s)),
            "options": " ".join([parameters.get("options", ""), *ours]).strip(),
        }
        self._last: Parameters | None = None

    def connect(self) -> Any:
        """A connection for one thread, whose waits block. Raises psycopg2.Error, Unusable."""

        def open_one(parameters: Parameters) -> Any:
            with waits_bounded(self._connect_timeout_s):
                return _checked(psycopg2.connect(**parameters))

        return self._first_that_answers(open_one)

    def connect_asynchronously(self, script: str) -> Any:
        """A connection in psycopg2's asynchronous mode that has run the script; blocks until then. Raises likewise."""

        def open_one(parameters: Parameters) -> Any:
            deadline_s = time.monotonic() + self._connect_timeout_s
            raw = psycopg2.connect(**parameters, async_=True)
            try:
                wait_for_answer(raw, deadline_s)
                cursor = _checked(raw).cursor()
                cursor.execute(script)
                wait_for_answer(raw, deadline_s)
            except BaseException:
                raw.close()
                raise
            return raw

        return self._first_that_answers(open_one)

    def _first_that_answers(self, open_one: Callable[[Parameters], Any]) -> Any:
        addresses, failures = self._addresses()
        # Of several, one may be a standby; a single one is taken as it is.
        choosing = {"target_session_attrs": "read-write"} if len(addresses) > 1 else {}
        for address in addresses:
            try:
                raw = open_one({**choosing, **self._parameters, **address})
            except psycopg2.Error as error:
                failures.append(f"{_name(address)}: {_first_line(error)}" if len(addresses) > 1 else _first_line(error))
                continue
            self._last = address
            return raw
        raise psycopg2.OperationalError("; ".join(failures))

    def _addresses(self) -> tuple[list[Parameters], list[str]]:
        """Where to try, and what could not be looked up. Looked up each time: a name may have moved."""
        found: list[Parameters] = []
        failures: list[str] = []
        for host in self._hosts:
            try:
                found += _looked_up(host)
            except OSError as error:
                failures.append(f"{host['host']}: {error.strerror or error}")
        # What has answered comes first, so that a silent one before it costs its deadline once, not at each connection.
        return sorted(found, key=lambda address: address != self._last), failures


def read_url(url: str) -> Parameters:
    """A database URL's parts by libpq's names. Raises ValueError, which names the part that cannot be honoured."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError("must start with postgresql://" + (f", not {scheme}://" if separator else ""))
    if _has_stray_at(rest):
        raise ValueError("has an @ that separates nothing; in a password the signs @ / ? are written %40 %2F %3F")
    try:
        parameters: dict[str, str] = parse_dsn(f"postgresql://{rest}")
    except psycopg2.ProgrammingError as error:
        # libpq's other complaints quote the address, password and all; what follows a password may be its end.
        may_be_a_secret = "password" in rest.partition("?")[2]
        found = None if may_be_a_secret else re.search(r'invalid URI query parameter: "(\w*)"', str(error))
        reason = f"{found[1]}: no such parameter" if found else "is not a readable address"
        raise ValueError(f"{reason} (postgresql://user:password@host:port/name)") from None
    for name, value in parameters.items():
        if name in _REFUSED:
            raise ValueError(f"{name} {_REFUSED[name]}")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}")
    for name in _OPTION.findall(parameters.get("options", "")):
        if name.lower().replace("-", "_") in OUR_SETTINGS:
            raise ValueError(f"options sets {name}, which is set by settings of its own")
    _check_number("connect_timeout", parameters.get("connect_timeout", "1"), LONGEST_CONNECT_TIMEOUT_S)
    _hosts(parameters)
    return parameters


def _has_stray_at(rest: str) -> bool:
    """Whether there is an @ before the query that does not end the user's part as libpq reads it.

    libpq takes what stands around such an @ for hosts and names, and those are told when they cannot be reached.
    """
    user, _, place = rest.partition("@")
    if "/" in user:
        return "@" in rest.partition("?")[0]
    return "@" in place.partition("?")[0] or ("@" in rest and "?" in user.partition(":")[0])


def _hosts(parameters: Parameters) -> Sequence[Parameters]:
    """Each host with its own parameters; a host without a name is libpq's default, a local socket."""
    split = {name: parameters[name].split(",") for name in ("host", "hostaddr", "port") if name in parameters}
    count = max([len(split[name]) for name in ("host", "hostaddr") if name in split], default=1)
    hosts: list[dict[str, str]] = [{"port": "5432"} for _ in range(count)]
    for name, values in split.items():
        if len(values) not in (1, count) or (name != "port" and len(values) != count):
            raise ValueError(f"{name} has {len(values)} parts for {count} hosts")
        for host, value in zip(hosts, values * count, strict=False):
            if value:
                host[name] = value
    for host in hosts:
        _check_number("port", host["port"], 65535)
    return hosts


def _check_number(name: str, value: str, largest: int) -> None:
    if not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= largest:
        raise ValueError(f"{name} must be a number from 1 to {largest}")


def _looked_up(host: Parameters) -> list[Parameters]:
    """The host at each of its addresses. Its name stays beside them: certificates and passwords go by it."""
    name = host.get("host", "")
    if "hostaddr" in host or not name or name.startswith(("/", "@")):  # a folder, or a name, of local sockets
        return [host]
    found = socket.getaddrinfo(name, int(host["port"]), type=socket.SOCK_STREAM)
    return [{**host, "hostaddr": str(address[0])} for *_, address in found]


def _name(address: Parameters) -> str:
    host, number = address.get("host", ""), address.get("hostaddr", "")
    where = f"{host} ({number})" if host and number not in ("", host) else host or number
    return f"{where} port {address['port']}"


def _checked(raw: Any) -> Any:
    """The connection, in whose database every text and number means what it does here. Raises Unusable."""
    encoding = raw.info.parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):
        raw.close()
        raise Unusable(f"the database's encoding is {encoding}: it must be UTF8 (CREATE DATABASE … ENCODING 'UTF8')")
    register_type(_NUMERIC, raw)
    return raw


def _whole(text: Any, cursor: object) -> int | Decimal | None:
    """All our numbers are whole, whatever type an operator has given to their columns."""
    if text is None:
        return None
    number = Decimal(text)
    return int(number) if number.is_finite() and number == int(number) else number


_NUMERIC = new_type(DECIMAL.values, "NUMERIC", _whole)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
