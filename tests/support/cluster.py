"""A real Redis Cluster of six nodes: three masters, each with a replica."""

import random
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import redis

from support.client import Client, connect_cluster
from support.redis_server import RedisServer, require_program
from support.waiting import until
from tickbus.redis.slots import key_slot

_OPTIONS = (
    "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-config-file", "nodes.conf",
    "--repl-diskless-sync-delay", "0",
)  # fmt: skip
_UNAVAILABLE = (redis.ConnectionError, redis.TimeoutError, redis.ResponseError)


class RedisCluster:
    def __init__(self, folder: Path) -> None:
        self.nodes = [_node(folder / str(number)) for number in range(6)]
        self._client: Client | None = None
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> None:
        """Return when every replica is in sync with its master: one that never was is not promoted."""
        for node in self.nodes:
            node.start()
        addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
        command = [
            require_program("redis-cli"),
            "--cluster",
            "create",
            *addresses,
            "--cluster-replicas",
            "1",
            "--cluster-yes",
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        self.wait_settled()

    @property
    def client(self) -> Client:
        """A client for any key; it discovers the masters again where they have changed."""
        if self._client is None:
            self._client = connect_cluster(node.port for node in self.nodes)
        return self._client

    def wait_settled(self) -> None:
        """Wait until all nodes run and agree on the slots, and every master has a replica in sync."""
        until(self._settled, 30, "the cluster is complete")

    def _settled(self) -> bool:
        try:
            roles = [node.client.info("replication") for node in self.nodes]
            views = {self._view(node) for node in self.nodes}
        except _UNAVAILABLE:
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
        """Return (first slot, last slot, port of the master) of each range as this node sees it."""
        ranges = node.client.execute_command("CLUSTER", "SLOTS")
        return tuple(sorted((first, last, master[1]) for first, last, master, *_ in ranges))

    def masters(self) -> list[RedisServer]:
        """Return the running nodes that consider themselves master."""
        masters = []
        for node in self.nodes:
            with suppress(*_UNAVAILABLE):
                if node.client.info("replication")["role"] == "master":
                    masters.append(node)
        return masters

    def master(self, key: str) -> RedisServer:
        """Return the master that owns a key."""
        slot = key_slot(key)
        for node in self.masters():
            for first, last, port in self._view(node):
                if first <= slot <= last and port == node.port:
                    return node
        raise AssertionError(f"no node owns slot {slot}")

    def replica(self, master: RedisServer) -> RedisServer:
        return next(
            node for node in self.nodes if node.client.info("replication").get("master_port") == master.port
        )

    def fail_over(self, key: str) -> RedisServer:
        """Fail over as an operator does, without loss, and return the new master of `key`."""
        old = self.master(key)
        new = self.replica(old)

        def done() -> bool:
            if new.client.info("replication")["role"] == "master":
                return bool(old.client.info("replication")["role"] == "slave")
            with suppress(redis.ResponseError):  # one is in progress; on a busy machine it may fail
                new.client.execute_command("CLUSTER", "FAILOVER")
            return False

        until(done, 30, "failover")
        return new

    def move(self, slot: int, to: RedisServer, between: Callable[[], object] | None = None) -> None:
        """Migrate a slot with all its keys; `between()` is called when half of them have moved."""
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
        for number, key in enumerate(keys):
            if number == half and between is not None:
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
        """Restart what was killed and resume what was paused; the masters may be other nodes than before."""
        for node in self.nodes:
            assert node.process is not None
            if node.process.poll() is not None:
                node.client.close()
                node.start()
            else:
                node.resume()
        self.wait_settled()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        for node in self.nodes:
            node.close()


def _node(folder: Path) -> RedisServer:
    """Return a node. Nodes talk to each other on port + 10000; both ports are outside the ephemeral range."""
    node = RedisServer(folder, *_OPTIONS)
    while True:
        node.port = random.randrange(10_000, 20_000)
        with socket.socket() as client, socket.socket() as bus:
            try:
                client.bind(("127.0.0.1", node.port))
                bus.bind(("127.0.0.1", node.port + 10_000))
            except OSError:
                continue
        node.url = f"redis://127.0.0.1:{node.port}/0"
        return node
