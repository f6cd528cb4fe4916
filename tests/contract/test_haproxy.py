"""The repository's HAProxy configuration in front of two real instances: who is let through, and who is refused how."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection

import pytest

from tests import harness
from tests.contract.api import PROBLEM_MEMBERS, Answer, Api, answer_of
from tests.contract.conftest import World, a_world
from tests.harness import PATIENCE_S, Service, bearer, wait_until
from tests.servers.haproxy import Haproxy, haproxy, haproxy_binary

SOMEBODY, ASKS_OFTEN, HAS_MANY, LOGS_IN, IS_SLOW = (f"127.0.0.{number}" for number in range(2, 7))
STANDS_STILL_S = 6.5  # two checks that are not answered, at two seconds each
MOST_CONNECTIONS, MOST_LOG_INS = 1000, 60
METRICS_SPELT = [
    "/metrics",
    "/metrics?a=b",
    "/metrics/",
    "/%6detrics",
    "/m%65tric%73",
    "//metrics",
    "/./metrics",
    "/dashboard/../metrics",
    "/%2e/metrics",
    "/%2fmetrics",
    "/metrics%00",
    "/metrics;a=b",
    "/metrics#a",
    "http://127.0.0.1/metrics",
    "http://127.0.0.1/%6Detrics",
]

pytestmark = pytest.mark.skipif(
    haproxy_binary() is None and os.environ.get("CI") != "true",
    reason="haproxy is not installed (deploy/system-packages.sh installs it)",
)


@dataclass(frozen=True, slots=True)
class Front:
    """HAProxy, what is behind it, and requests from whichever address."""

    haproxy: Haproxy
    world: World
    services: list[Service]

    def connect(self, source: str) -> socket.socket:
        """A connection from this address; nothing of it is sent yet."""
        address = ("127.0.0.1", self.haproxy.port)
        return socket.create_connection(address, timeout=PATIENCE_S, source_address=(source, 0))

    def call(self, method: str, path: str, source: str, body: str | None = None, **headers: str) -> Answer:
        """One request from this address."""
        address = ("127.0.0.1", self.haproxy.port)
        with contextlib.closing(HTTPConnection(*address, timeout=PATIENCE_S, source_address=(source, 0))) as connection:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            return answer_of(connection.getresponse())


@pytest.fixture(scope="module")
def front(module_database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Two instances, each a `chargeonce serve` of one worker, and HAProxy before them."""
    folder = tmp_path_factory.mktemp("front")
    addresses = {"database_url": module_database_url, "redis_url": redis_url}
    with ExitStack() as stack:
        world = stack.enter_context(a_world(folder, module_database_url, redis_url, {}))
        other = stack.enter_context(harness.service(folder, workers=1, **addresses))
        ports = [Api(each.url).port for each in (world.service, other)]
        yield Front(stack.enter_context(haproxy(folder, ports)), world, [world.service, other])


def refused(answer: Answer, status: int, code: str) -> None:
    """A refusal of HAProxy's is one like any other."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json.keys() >= PROBLEM_MEMBERS
    assert (answer.json["status"], answer.json["code"], answer.json["charged"]) == (status, code, False)
    assert answer.json["request_id"] == answer.headers["x-request-id"]


def test_an_entry_goes_through_to_either_instance_and_keeps_its_request_id(front: Front) -> None:
    for number in range(4):
        id_, inviter, _ = front.world.meeting()
        path, given = f"/v1/appointments/{id_}/entries", {"X_Request_Id": f"mine-{number}"}
        entered = front.call("POST", path, SOMEBODY, **bearer(inviter), **given)
        assert (entered.status, entered.headers["x-request-id"]) == (201, f"mine-{number}")

    def is_logged(told: str) -> bool:
        return any(told in service.logged() for service in front.services)

    wait_until(lambda: all(is_logged(f'"mine-{number}"') for number in range(4)), what="a line of each entry")
    insane = front.call("GET", "/v1/contention", SOMEBODY, X_Request_Id="not sane {}")
    assert (insane.status, insane.json["code"]) == (401, "unauthenticated")
    assert insane.headers["x-request-id"] == insane.json["request_id"] != "not sane {}"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", METRICS_SPELT)
def test_nobody_outside_reads_the_metrics_however_they_are_spelt(front: Front, method: str, path: str) -> None:
    with front.connect(SOMEBODY) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        told = b"".join(iter(lambda: connection.recv(65536), b""))
    assert told.split()[1] in (b"400", b"404"), told[:300]
    assert b"chargeonce_" not in told


def test_the_metrics_are_refused_as_an_instance_refuses_what_is_not_there(front: Front) -> None:
    refused(front.call("GET", "/metrics", SOMEBODY, X_Request_Id="mine"), 404, "not-found")
    assert all(Api(service.url).get("/metrics").status == 200 for service in front.services)


def test_an_address_that_asks_too_often_is_refused_and_another_is_served(front: Front) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"  # answered by HAProxy itself, so that it takes no second
    with front.connect(ASKS_OFTEN) as connection:
        statuses = Counter[bytes]()
        for _ in range(220):
            connection.sendall(request * 100)
            statuses += statuses_of(connection, 100)

    assert statuses[b"429"] > 500
    refused(front.call("GET", "/livez", ASKS_OFTEN, X_Request_Id="mine"), 429, "too-many-requests")
    answer = front.call("GET", "/livez", ASKS_OFTEN, X_Request_Id="mine")
    assert (answer.headers["retry-after"], answer.headers["x-request-id"]) == ("10", "mine")
    id_, inviter, _ = front.world.meeting()
    assert front.call("POST", f"/v1/appointments/{id_}/entries", SOMEBODY, **bearer(inviter)).status == 201


def statuses_of(connection: socket.socket, count: int) -> Counter[bytes]:
    """Of so many answers, asked for in one."""
    told = b""
    while told.count(b"HTTP/1.1 ") < count or not told.endswith(b"}"):
        more = connection.recv(65536)
        assert more, "it was closed"
        told += more
    return Counter(each[:3] for each in told.split(b"HTTP/1.1 ")[1:])


def test_an_address_with_too_many_connections_is_refused_and_another_is_served(front: Front) -> None:
    with ExitStack() as stack:

        def has_more(count: int) -> None:  # those that say nothing are closed after a while
            for _ in range(count):
                stack.enter_context(front.connect(HAS_MANY))

        def is_refused() -> bool:
            has_more(MOST_CONNECTIONS // 10)
            return front.call("GET", "/livez", HAS_MANY).status == 429

        has_more(MOST_CONNECTIONS)
        wait_until(is_refused, what="all of them to be counted")
        refused(front.call("GET", "/livez", HAS_MANY), 429, "too-many-requests")

        def gets_none() -> bool:
            try:
                has_more(MOST_CONNECTIONS // 10)
                front.call("GET", "/livez", HAS_MANY)
            except ConnectionError:
                return True
            return False

        wait_until(gets_none, what="a connection that is closed at once")
        assert front.call("GET", "/livez", SOMEBODY).status == 200

    wait_until(lambda: front.call("GET", "/livez", HAS_MANY).status == 200, what="its share again")


def test_an_address_logs_in_so_often_in_a_minute_and_no_more(front: Front) -> None:
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    tried = [
        front.call("POST", "/dashboard/login", LOGS_IN, body="token=wrong", **form) for _ in range(MOST_LOG_INS + 5)
    ]

    statuses = [answer.status for answer in tried]
    assert 429 not in statuses[:MOST_LOG_INS]
    assert statuses[MOST_LOG_INS:] == [429] * 5
    refused(tried[-1], 429, "too-many-requests")
    assert front.call("GET", "/dashboard/login", SOMEBODY).status == 200


def test_a_body_that_does_not_arrive_reaches_no_instance_and_is_told_so(front: Front) -> None:
    id_, inviter, _ = front.world.meeting()
    headers = "".join(f"{name}: {value}\r\n" for name, value in bearer(inviter).items())
    with front.connect(IS_SLOW) as slow:
        slow.sendall(
            f"POST /v1/appointments/{id_}/entries HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 2\r\n\r\n{{".encode()
        )
        answer = slow.recv(65536)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["code"] == "invalid-request"
    assert not any(f'"appointment_id":{id_}' in service.logged() for service in front.services)


def test_an_instance_that_stands_still_for_a_while_is_not_down_and_one_that_is_gone_is(front: Front) -> None:
    [worker] = front.services[1].worker_pids()
    went_down = front.haproxy.stats()["api-2"]["chkdown"]
    os.kill(worker, signal.SIGSTOP)
    try:
        time.sleep(STANDS_STILL_S)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert front.haproxy.stats()["api-2"]["chkdown"] == went_down

    assert front.services[1].stop() == 0
    wait_until(lambda: front.haproxy.stats()["api-2"]["status"].startswith("DOWN"), what="api-2 to be down")
    assert front.call("GET", "/readyz", SOMEBODY).status == 200
