"""A cluster of three masters, with replicas if wanted, whose slots a test moves live, one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness import wait_until
from tests.servers.processes import unused_port
from tests.servers.redis_server import RedisServer
from tests.servers.wire import ErrorReply

MASTER_COUNT = 3
SLOT_COUNT = 16_384
MIGRATE_WAIT_MS = 5_000
KEYS_AT_ONCE = 100


class ClusterNode(RedisServer):
    """A server in cluster mode, with a port for the other nodes beside the clients' one. Redis 7 or newer."""

    def __init__(self, binary: Path, folder: Path, *, node_timeout_s: float, password: str | None = None) -> None:
        self.bus_port = unused_port()
        settings = [
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            f"cluster-node-timeout {round(node_timeout_s * 1000)}",
            f"cluster-port {self.bus_port}",
            "repl-ping-replica-period 1",  # CLUSTER SLOTS names a replica once it has received anything, if only this
            *([f"masterauth {password}"] if password else []),
        ]
        super().__init__(binary, folder, settings=settings, password=password)

    def node_id(self) -> str:
        """Its name in the cluster."""
        return str(self.ask("CLUSTER", "MYID"))


def alone_settings() -> list[str]:
    """Lines of the configuration of a server that is a Cluster by itself, once it has all slots."""
    return ["cluster-enabled yes", f"cluster-port {unused_port()}"]


def give_all_slots(server: RedisServer) -> None:
    """Makes it a Cluster by itself; returns once it is one."""
    server.ask("CLUSTER", "ADDSLOTSRANGE", 0, SLOT_COUNT - 1)
    wait_until(lambda: "cluster_state:ok" in server.ask("CLUSTER", "INFO"), what="a Cluster of one")


class Cluster:
    """Use it with `with`. replica_count is per master; a master away for node_timeout_s is replaced by its replica."""

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *,
        replica_count: int = 0,
        node_timeout_s: float = 1.0,
        password: str | None = None,
    ) -> None:
        count = MASTER_COUNT * (1 + replica_count)
        self.password = password
        self.nodes = [
            ClusterNode(binary, folder, node_timeout_s=node_timeout_s, password=password) for _ in range(count)
        ]

    @property
    def url(self) -> str:
        """redis+cluster://[:password@]host:port,host:port with the first two masters of the start."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        return f"redis+cluster://{self.nodes[0].credentials}{hosts}"

    def start(self) -> None:
        """Returns once every node knows every other one and who has which slots."""
        for node in self.nodes:
            node.start()
        masters = self.nodes[:MASTER_COUNT]
        for number, master in enumerate(masters):
            first, end = (SLOT_COUNT * at // MASTER_COUNT for at in (number, number + 1))
            master.ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        ids = [master.node_id() for master in masters]
        for number, replica in enumerate(self.nodes[MASTER_COUNT:]):
            wait_until(partial(_follow, replica, ids[number % MASTER_COUNT]), what="a replica that knows its master")
        self.wait_until_agreed()

    def stop(self) -> None:
        """All gone; harmless twice."""
        for node in self.nodes:
            node.kill()

    def slot_of(self, key: str) -> int:
        """The key's slot."""
        return int(self.live_nodes()[0].ask("CLUSTER", "KEYSLOT", key))

    def node_of(self, key: str) -> ClusterNode:
        """The master that has the key's slot now."""
        return self.master_of(self.slot_of(key))

    def master_of(self, slot: int) -> ClusterNode:
        """The master that has this slot now."""
        return self._at(_ports_of(slot, self.live_nodes()[0])[0])

    def replicas_of(self, slot: int) -> list[ClusterNode]:
        """The replicas of the master that has this slot."""
        return [self._at(port) for port in _ports_of(slot, self.live_nodes()[0])[1:]]

    def other_master(self, than: ClusterNode) -> ClusterNode:
        """Some live master that is another one."""
        return next(node for node in self.live_nodes() if node is not than and node.ask("ROLE")[0] == "master")

    def live_nodes(self) -> Sequence[ClusterNode]:
        """The nodes that run."""
        return [node for node in self.nodes if node.process is not None]

    def begin_move(self, slot: int, *, to: ClusterNode) -> SlotMove:
        """Opens the slot's move: from now on its master answers ASK for keys that it does not have."""
        move = SlotMove(self, slot, source=self.master_of(slot), target=to)
        move.open()
        return move

    def move_slot(self, slot: int, *, to: ClusterNode) -> None:
        """Moves the slot with all its keys."""
        move = self.begin_move(slot, to=to)
        move.move_keys()
        move.finish()

    def kill_master_of(self, slot: int) -> ClusterNode:
        """Kills the master that has this slot, and tells which one that was."""
        master = self.master_of(slot)
        master.kill()
        return master

    def wait_for_takeover(self, slot: int, *, instead_of: ClusterNode) -> ClusterNode:
        """The new master of the slot, once all live nodes agree on it."""
        wait_until(
            lambda: all(_ports_of(slot, node)[:1] != [instead_of.port] for node in self.live_nodes()), what="a takeover"
        )
        self.wait_until_agreed()
        return self.master_of(slot)

    def wait_until_agreed(self) -> None:
        """Returns once all live nodes answer cluster_state:ok, know each other and agree on every slot."""
        wait_until(self._agreed, what="a cluster that agrees")

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

    def _at(self, port: int) -> ClusterNode:
        return next(node for node in self.nodes if node.port == port)

    def _agreed(self) -> bool:
        live = self.live_nodes()
        views = []
        for node in live:
            state = dict(line.split(":", 1) for line in node.ask("CLUSTER", "INFO").splitlines() if ":" in line)
            if state["cluster_state"] != "ok" or int(state["cluster_known_nodes"]) != len(self.nodes):
                return False
            owners = {(first, last): [each[1] for each in at] for first, last, *at in node.ask("CLUSTER", "SLOTS")}
            views.append({slots: (ports[0], set(ports[1:])) for slots, ports in owners.items()})
        settled = all(node.info("replication").get("master_link_status", "up") == "up" for node in live)
        replicas_wanted = len(live) - MASTER_COUNT
        replicas_seen = {port for _, ports in views[0].values() for port in ports}
        return settled and len(replicas_seen) == replicas_wanted and all(view == views[0] for view in views)


class SlotMove:
    """A slot on its way from source to target, as redis-cli --cluster reshard does it, one step a call."""

    def __init__(self, cluster: Cluster, slot: int, *, source: ClusterNode, target: ClusterNode) -> None:
        assert source is not target
        self.slot = slot
        self.source = source
        self.target = target
        self._cluster = cluster

    def open(self) -> None:
        """The source answers ASK for keys that it does not have; the target takes them after ASKING."""
        self.target.ask("CLUSTER", "SETSLOT", self.slot, "IMPORTING", self.source.node_id())
        self.source.ask("CLUSTER", "SETSLOT", self.slot, "MIGRATING", self.target.node_id())

    def move_keys(self, *keys: str) -> None:
        """Moves these keys, or else all; of a command on several keys that are split, TRYAGAIN is the answer."""
        if keys:
            self._migrate(keys)
            return
        while found := self.source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, KEYS_AT_ONCE):
            self._migrate(found)

    def finish(self) -> None:
        """The slot is the target's, and all masters know it: the source answers MOVED. All keys must have moved."""
        owner = self.target.node_id()
        others = [node for node in self._cluster.live_nodes() if node not in (self.source, self.target)]
        for node in [self.target, self.source, *others]:
            if node.ask("ROLE")[0] == "master":
                node.ask("CLUSTER", "SETSLOT", self.slot, "NODE", owner)
        self._cluster.wait_until_agreed()

    def abandon(self) -> None:
        """The slot stays the source's; keys that have moved already are gone from its clients' sight."""
        for node in (self.target, self.source):
            node.ask("CLUSTER", "SETSLOT", self.slot, "STABLE")

    def _migrate(self, keys: Sequence[str]) -> None:
        credentials = ["AUTH", self._cluster.password] if self._cluster.password else []
        place = ("127.0.0.1", self.target.port, "", 0, MIGRATE_WAIT_MS)
        self.source.ask("MIGRATE", *place, *credentials, "KEYS", *keys)


def _follow(replica: ClusterNode, master_id: str) -> bool:
    try:
        replica.ask("CLUSTER", "REPLICATE", master_id)
    except ErrorReply:  # it has not heard of its master yet
        return False
    return True


def _ports_of(slot: int, node: ClusterNode) -> list[int]:
    """The master's port and its replicas', as this node knows them; empty when nobody has the slot."""
    for first, last, *at in node.ask("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return [each[1] for each in at]
    return []
