"""A real Redis Cluster of six nodes: three masters, each with a replica."""

import random
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import redis
from redis.cluster import ClusterNode

from support.redis_server import RedisServer, needs
from support.waiting import until
from tickbus.redis.slots import key_slot

_OPTIONS = (
    "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-config-file", "nodes.conf", "--repl-diskless-sync-delay", "0",
)  # fmt: skip
_AWAY = (redis.ConnectionError, redis.TimeoutError, redis.ResponseError)


class RedisCluster:
    def __init__(self, folder: Path) -> None:
        self.nodes = [_node(folder / str(at)) for at in range(6)]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> None:
        """Returns when every replica holds what its master does: one that was never in step is not promoted."""
        for node in self.nodes:
            node.start()
        addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
        command = [
            needs("redis-cli"),
            "--cluster",
            "create",
            *addresses,
            "--cluster-replicas",
            "1",
            "--cluster-yes",
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        self.settled()

    @cached_property
    def client(self) -> "redis.RedisCluster":
        """For any key; it finds the masters anew where they have changed."""
        return redis.RedisCluster(
            startup_nodes=[ClusterNode("127.0.0.1", node.port) for node in self.nodes], socket_timeout=5
        )

    def settled(self) -> None:
        """Wait until all nodes run, agree on who holds what, and every master has a replica in step."""
        until(self._settled, 30, "the cluster is complete")

    def _settled(self) -> bool:
        try:
            roles = [node.client.info("replication") for node in self.nodes]
            views = {self._view(node) for node in self.nodes}
        except _AWAY:
            return False
        replicas = [role for role in roles if role["role"] == "slave"]
        ok = all(b"cluster_state:ok" in node.client.execute_command("CLUSTER", "INFO") for node in self.nodes)
        return (
            ok
            and len(replicas) == 3
            and len(views) == 1
            and all(role["master_link_status"] == "up" for role in replicas)
        )

    def _view(self, node: RedisServer) -> tuple[tuple[int, int, int], ...]:
        """(first slot, last slot, port of the master), as this node sees it."""
        return tuple(
            sorted(
                (first, last, holder[1])
                for first, last, holder, *_ in node.client.execute_command("CLUSTER", "SLOTS")
            )
        )

    def masters(self) -> list[RedisServer]:
        """Those that call themselves so and run."""
        found = []
        for node in self.nodes:
            with suppress(*_AWAY):
                if node.client.info("replication")["role"] == "master":
                    found.append(node)
        return found

    def master(self, key: str) -> RedisServer:
        """Who holds a key."""
        slot = key_slot(key)
        for node in self.masters():
            for first, last, port in self._view(node):
                if first <= slot <= last and port == node.port:
                    return node
        raise AssertionError(f"no node has slot {slot}")

    def replica(self, master: RedisServer) -> RedisServer:
        return next(
            node for node in self.nodes if node.client.info("replication").get("master_port") == master.port
        )

    def fail_over(self, key: str) -> RedisServer:
        """As an operator does it, nothing is lost; -> the new master of `key`."""
        old = self.master(key)
        new = self.replica(old)

        def done() -> bool:
            if new.client.info("replication")["role"] == "master":
                return bool(old.client.info("replication")["role"] == "slave")
            with suppress(redis.ResponseError):  # one is under way; on a busy machine it may come to nothing
                new.client.execute_command("CLUSTER", "FAILOVER")
            return False

        until(done, 30, "failover")
        return new

    def move(self, slot: int, to: RedisServer, between: Callable[[], object] | None = None) -> None:
        """Migrate a slot with all its keys; `between()` is called while half of them are there."""
        source = next(
            node
            for node in self.masters()
            if any(a <= slot <= b and p == node.port for a, b, p in self._view(node))
        )
        ids = {node: node.client.execute_command("CLUSTER", "MYID").decode() for node in (source, to)}
        to.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to])
        keys = sorted(source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100_000))
        half = len(keys) // 2
        for at, key in enumerate(keys):
            if at == half and between is not None:
                between()
            source.client.execute_command("MIGRATE", "127.0.0.1", to.port, key, 0, 5000)
        if not keys and between is not None:
            between()
        for node in (to, source, *[other for other in self.masters() if other not in (to, source)]):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[to])

    def flush(self) -> None:
        for node in self.masters():
            node.client.flushall()

    def heal(self) -> None:
        """Start again what was killed, let go what was paused: as it was, but for who is master."""
        for node in self.nodes:
            assert node.process is not None
            if node.process.poll() is not None:
                node.client.close()
                node.start()
            else:
                node.go_on()
        self.settled()

    def close(self) -> None:
        if "client" in vars(self):
            self.client.close()
        for node in self.nodes:
            node.close()


def _node(folder: Path) -> RedisServer:
    """The nodes talk to each other on port + 10000; both are outside the range from which the system gives ports away."""
    node = RedisServer(folder, *_OPTIONS)
    while True:
        node.port = random.randrange(10_000, 20_000)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", node.port))
                other.bind(("127.0.0.1", node.port + 10_000))
            except OSError:
                continue
        node.url = f"redis://127.0.0.1:{node.port}/0"
        return node
