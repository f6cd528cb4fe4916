"""A master with replicas and three Sentinels that put a replica in its place within about two seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from tests.harness import wait_until
from tests.servers.redis_server import RedisServer
from tests.servers.wire import ErrorReply

NAME = "mymaster"
QUORUM = 2
SENTINEL_COUNT = 3
# Sentinel's own periods are of seconds; what it does is the same, only sooner.
FASTER = ("INFO-PERIOD", 250, "PUBLISH-PERIOD", 250, "ASK-PERIOD", 250)


class SentinelGroup:
    """Use it with `with`. passwords: of the data nodes, and of the Sentinels.

    A master that does not answer for down_after_s is replaced; with very short times a busy machine replaces a
    healthy one.
    """

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *,
        replica_count: int = 1,
        down_after_s: float = 0.8,
        failover_timeout_s: float = 3.0,
        password: str | None = None,
        sentinel_password: str | None = None,
    ) -> None:
        self.name = NAME
        self.password = password
        self.sentinel_password = sentinel_password
        settings = [f"masterauth {password}"] if password else []
        first = RedisServer(binary, folder, settings=settings, password=password)
        following = [*settings, f"replicaof 127.0.0.1 {first.port}"]
        replicas = [RedisServer(binary, folder, settings=following, password=password) for _ in range(replica_count)]
        self.data_nodes = [first, *replicas]
        watching = [
            f"sentinel monitor {NAME} 127.0.0.1 {first.port} {QUORUM}",
            f"sentinel down-after-milliseconds {NAME} {round(down_after_s * 1000)}",
            f"sentinel failover-timeout {NAME} {round(failover_timeout_s * 1000)}",
            f"sentinel parallel-syncs {NAME} {max(1, replica_count)}",
            *([f"sentinel auth-pass {NAME} {password}"] if password else []),
            *([f"sentinel sentinel-pass {sentinel_password}"] if sentinel_password else []),
        ]
        self.sentinels = [
            RedisServer(binary, folder, settings=watching, password=sentinel_password, arguments=["--sentinel"])
            for _ in range(SENTINEL_COUNT)
        ]

    @property
    def url(self) -> str:
        """redis+sentinel://[:password@]host:port,host:port,host:port/mymaster[?sentinel_password=…], all quoted."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        query = f"?sentinel_password={quote(self.sentinel_password, safe='')}" if self.sentinel_password else ""
        return f"redis+sentinel://{self.data_nodes[0].credentials}{hosts}/{self.name}{query}"

    def start(self) -> None:
        """Returns once every Sentinel knows the others and every replica, so that any may be lost."""
        for node in self.data_nodes:
            node.start()
        wait_until(self._all_follow, what="replicas that have copied their master")
        for sentinel in self.sentinels:
            sentinel.start()
            with contextlib.suppress(ErrorReply):  # Redis 6.2 cannot
                sentinel.ask("SENTINEL", "DEBUG", *FASTER)
        wait_until(self._all_known, what="Sentinels that know each other and the replicas")

    def stop(self) -> None:
        """All gone, also what was frozen; harmless twice."""
        for server in [*self.sentinels, *self.data_nodes]:
            server.kill()

    def master_port(self) -> int:
        """The master's port, as the first Sentinel that lives tells it."""
        return _port_told_by(self._live_sentinels()[0])

    def master(self) -> RedisServer:
        """The master, as the first Sentinel that lives tells it."""
        return self.data_node(self.master_port())

    def replicas(self) -> list[RedisServer]:
        """The running data nodes but for the master."""
        master_port = self.master_port()
        return [node for node in self.data_nodes if node.process is not None and node.port != master_port]

    def data_node(self, port: int) -> RedisServer:
        """The data node at this port."""
        return next(node for node in self.data_nodes if node.port == port)

    def kill_master(self) -> RedisServer:
        """Kills the master, and tells which one that was; what its replicas have not got yet is lost."""
        master = self.master()
        master.kill()
        return master

    def freeze_master(self) -> RedisServer:
        """Freezes the master, and tells which one that was; thawed after the failover it believes for a moment that it
        still is the master."""
        master = self.master()
        master.freeze()
        return master

    def fail_over(self) -> int:
        """An operator's failover with the old master alive; returns as wait_for_new_master does."""
        old = self.master()
        self._live_sentinels()[0].ask("SENTINEL", "FAILOVER", self.name)
        return self.wait_for_new_master(instead_of=old)

    def wait_for_new_master(self, *, instead_of: RedisServer) -> int:
        """The new master's port, once it is writable and every Sentinel that lives names it."""
        wait_until(lambda: self._agreed_master(instead_of.port), what="a failover")
        return self.master_port()

    def wait_for_replicas(self) -> None:
        """Returns once every running data node but the master copies it: an old master has learnt its place."""
        wait_until(self._all_follow, what="replicas that have copied their master")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _live_sentinels(self) -> Sequence[RedisServer]:
        return [sentinel for sentinel in self.sentinels if sentinel.process is not None]

    def _all_follow(self) -> bool:
        try:
            running = [node.ask("ROLE") for node in self.data_nodes if node.process is not None]
        except ConnectionError:
            return False  # a server that learns that it is a replica now closes what was connected to it
        following = [role for role in running if role[0] == "slave" and role[3] == "connected"]
        return len(following) == len(running) - 1

    def _all_known(self) -> bool:
        return all(self._knows_all(sentinel) for sentinel in self.sentinels)

    def _knows_all(self, sentinel: RedisServer) -> bool:
        try:
            master = _as_dict(sentinel.ask("SENTINEL", "MASTER", self.name))
            replicas = [_as_dict(each) for each in sentinel.ask("SENTINEL", "REPLICAS", self.name)]
        except (OSError, ErrorReply):
            return False
        ready = [each for each in replicas if each["flags"] == "slave" and each["master-link-status"] == "ok"]
        return (
            master["flags"] == "master"
            and int(master["num-other-sentinels"]) == SENTINEL_COUNT - 1
            and len(ready) == len(self.data_nodes) - 1
        )

    def _agreed_master(self, old_port: int) -> bool:
        ports = {_port_told_by(sentinel) for sentinel in self._live_sentinels()}
        if len(ports) != 1 or old_port in ports:
            return False
        with contextlib.suppress(OSError, ErrorReply):
            return bool(self.data_node(ports.pop()).ask("ROLE")[0] == "master")
        return False


def _port_told_by(sentinel: RedisServer) -> int:
    return int(sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])


def _as_dict(flat: list[Any]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
