"""Every kind of lock store that the library must work on, and what the tests of its contract share."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from locks import Locker, LockStoreDown
from locks.events import LockEvent
from locks.keys import keys_of
from locks.store import QueueLimits
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.test_locker import Heard
from tests.servers.cluster import Cluster
from tests.servers.fixtures import HARD_PASSWORD
from tests.servers.kinds import KINDS, TLS_KIND, server_binary
from tests.servers.redis_server import AclUser, RedisServer
from tests.servers.sentinel import SentinelGroup
from tests.servers.tls import Certificates

# All that a Locker does to a server, as docs/locks.md tells operators.
RIGHTS = (
    "resetchannels &lock-wake:* &__redis__:invalidate"
    " ~lock:* ~lock-queue:* ~lock-waiters:* ~lock-grant:* ~lock-signal:* ~lock-asked:* -@all"
    " +ping +select +role +cluster|myid +cluster|slots +asking"
    " +script|load +evalsha +subscribe +client|id +client|tracking +client|caching"
    " +time +get +mget +set +del +exists +pexpire +pttl +lpush +publish"
    " +hget +hset +hdel +hincrby +zadd +zrange +zrank +zrem"
)
STORES = (*KINDS, "tls", "acl", "password", "database", "sentinel", "cluster")
SLOWLY: dict[str, Any] = {"alive_ms": 60_000}  # no heartbeat before 20 s: who wakes earlier was woken


@dataclass(frozen=True, slots=True)
class Store:
    """A lock store as its users see it, and its servers as an operator does."""

    kind: str
    url: str
    server_of: Callable[[str], RedisServer]
    all_servers: Callable[[], Sequence[RedisServer]]
    sentinels: Sequence[RedisServer] = ()
    operator: str = ""  # 'user:password@', where that is not the URL's own
    database: int = 0

    @contextmanager
    def client(self, name: str) -> Iterator[redis.Redis]:
        """An operator's client of the server that has this lock's keys."""
        with self._client(self.server_of(name)) as client:
            yield client

    def delete(self, key: str, *, of: str) -> None:
        """An operator's DEL of a key of this lock."""
        with self.client(of) as client:
            assert client.delete(key) == 1

    def name_on_each(self) -> list[str]:
        """New names of locks, one on each server."""
        return self.names(len(self.all_servers()))

    def names(self, count: int) -> list[str]:
        """New names of locks; of a Cluster, on each of its masters in turn."""
        servers = itertools.cycle(self.all_servers())
        return [self._name_on(next(servers)) for _ in range(count)]

    def connection_counts(self) -> list[int]:
        """How many connections each server has, without the test's, replicas' and Sentinels' own."""
        return [len(self.connections(server)) for server in self.all_servers()]

    def connections(self, server: RedisServer) -> list[int]:
        """The numbers of a server's connections, likewise."""
        with self._client(server) as client:
            ours, listed = client.client_id(), client.client_list()
        found = [
            each for each in listed if not (set(each["flags"]) & set("MS") or each["name"].startswith("sentinel-"))
        ]
        return [int(each["id"]) for each in found if int(each["id"]) != ours]

    def told(self, command: str) -> int:
        """How often the servers, and their Sentinels, were told this command, also where they refused."""
        return sum(self._told(server, command) for server in [*self.all_servers(), *self.sentinels])

    def cut(self) -> None:
        """Ends all connections."""
        for server in self.all_servers():
            with self._client(server) as client:
                for kind in ("normal", "pubsub"):
                    client.client_kill_filter(_type=kind, skipme=True)

    def _told(self, server: RedisServer, command: str) -> int:
        with self._client(server) as client:
            stats = client.info("commandstats").get(f"cmdstat_{command}", {})
        return int(stats.get("calls", 0)) + int(stats.get("rejected_calls", 0))

    @contextmanager
    def _client(self, server: RedisServer) -> Iterator[redis.Redis]:
        url = server.url.replace(server.credentials, self.operator) if self.operator else server.url
        client = redis.Redis.from_url(
            url.replace("/0", f"/{self.database}"), decode_responses=True, socket_timeout=PATIENCE_S, protocol=2
        )
        try:
            yield client
        finally:
            client.close()

    def _name_on(self, server: RedisServer) -> str:
        while True:
            name = f"test:{uuid.uuid4().hex}"
            if len(self.all_servers()) == 1 or self.server_of(name) is server:
                return name


@contextmanager
def running(kind: str, folder: Path) -> Iterator[Store]:
    """A store of this kind, gone afterwards."""
    with ExitStack() as stack:
        match kind:
            case "sentinel":
                group = stack.enter_context(SentinelGroup(server_binary("valkey"), folder))
                yield sentinel_store(group)
            case "cluster":
                cluster = stack.enter_context(Cluster(server_binary("valkey"), folder))
                yield cluster_store(cluster)
            case _:
                server = _server(kind, folder)
                stack.callback(server.kill)
                server.start()
                database = 5 if kind == "database" else 0
                yield Store(
                    kind,
                    server.url.replace("/0", f"/{database}"),
                    lambda name: server,
                    lambda: [server],
                    operator="operator:word@" if kind == "acl" else "",
                    database=database,
                )


def sentinel_store(group: SentinelGroup) -> Store:
    """A running Sentinel group as a store."""
    return Store("sentinel", group.url, lambda name: group.master(), lambda: [group.master()], group.sentinels)


def cluster_store(cluster: Cluster) -> Store:
    """A running Cluster as a store."""
    return Store(
        "cluster",
        cluster.url,
        lambda name: cluster.node_of(keys_of(name).lock),
        lambda: [node for node in cluster.live_nodes() if node.ask("ROLE")[0] == "master"],
    )


@asynccontextmanager
async def locking(
    store: Store | str,
    *,
    heard: Callable[[LockEvent], None] | None = None,
    instance_id: str = "test",
    command_timeout_s: float = 20,
    outage_wait_s: float | None = None,
    **limits: int,
) -> AsyncIterator[Locker]:
    """A connected locker, with a command timeout that a busy machine does not reach."""
    locker = Locker(
        store if isinstance(store, str) else store.url,
        instance_id=instance_id,
        command_timeout_s=command_timeout_s,
        outage_wait_s=outage_wait_s,
        queue_limits=QueueLimits(**{"alive_ms": 5000, **limits}),
        listener=heard or Heard(),
    )
    async with locker:
        yield locker


async def vanish(store: Store, locker: Locker, name: str) -> None:
    """What a SIGKILL does to a locker, once its servers have seen it: its connections end, and it has said nothing."""
    for node in list(locker._servers.nodes()):
        for link in (node.commands, node.messages):
            assert link._task is not None
            link._task.cancel()
            link.drop("killed by the test")
            link._connect = _never  # type: ignore[method-assign]
    channel = locker._servers.node_of(name).channel

    async def nobody_listens() -> bool:
        with store.client(name) as client:
            return bool(client.pubsub_numsub(channel)[0][1] == 0)

    await wait_until_async(nobody_listens, what="the server to see the connections end")


async def in_line(locker: Locker, name: str, count: int) -> None:
    """Waits until so many processes stand in the lock's line at the server."""

    async def enough() -> bool:
        view = await locker.inspect(name)
        return view is not None and len(view.waiting) == count

    await wait_until_async(enough, what=f"{count} in line")


async def answered(locker: Locker, name: str) -> None:
    """Waits until this locker, in line for the lock, has the answer to all that it has asked about it."""

    async def nothing_is_on_its_way() -> bool:
        line = locker._lines.by_name[name]
        if line.asked is not None:
            return False
        await locker.inspect(name)  # on the same connection, so answered after all that was asked before
        return line.asked is None

    await wait_until_async(nothing_is_on_its_way, what="the answers to a locker's questions")


async def watching(locker: Locker, name: str) -> None:
    """Waits until this locker will be told, over connections that are there, of the lock's next change."""

    async def watches() -> bool:
        line = locker._lines.by_name[name]
        # Of every server: each that comes back has every line look once more.
        all_up = all(node.messages.is_up for node in locker._servers.nodes())
        return line._watched and line.asked is None and all_up

    # Less than SLOWLY's heartbeat.
    await wait_until_async(watches, patience_s=15, what="a lock key that is watched")


async def _never() -> Any:
    raise LockStoreDown("killed by the test")


def _server(kind: str, folder: Path) -> RedisServer:
    match kind:
        case "tls":
            return RedisServer(
                server_binary(TLS_KIND), folder, certificates=Certificates.make(folder), password=HARD_PASSWORD
            )
        case "acl":
            users = [AclUser("locks", HARD_PASSWORD, RIGHTS), AclUser("operator", "word")]
            return RedisServer(server_binary("valkey"), folder, users=users)
        case "password":
            return RedisServer(server_binary("valkey"), folder, password=HARD_PASSWORD)
        case "database":
            return RedisServer(server_binary("valkey"), folder)
        case _:
            return RedisServer(server_binary(kind), folder)
