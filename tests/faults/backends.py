"""Where the bus of a system lives: one server behind the proxy, a master with a replica and sentinels, or a cluster of six."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis as redis_py
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster as ClusterClient
from redis.retry import Retry
from support.cluster import RedisCluster
from support.redis_server import RedisServer
from support.sentinel import RedisWithSentinels

KINDS = ("server", "sentinel", "cluster")


def client_of(server: RedisServer) -> "redis_py.Redis[bytes]":
    """One that gives up soon: what is looked at may be under a fault."""
    return redis_py.Redis(port=server.port, socket_timeout=1, retry=Retry(NoBackoff(), 0))


class OneServer:
    proxied = True

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer(folder)

    def start(self) -> None:
        self.server.start()
        self._client = client_of(self.server)

    def url(self, link: Callable[[int], int]) -> str:
        """`link`: a port -> that of a proxy in front of it."""
        return f"redis://127.0.0.1:{link(self.server.port)}/0"

    @property
    def client(self) -> Any:
        return self._client

    def now(self) -> tuple[int, int]:
        return self._client.time()

    def close(self) -> None:
        if self.server.process is not None and self.server.process.poll() is None:
            self.server.go_on()
        self.server.close()


class Sentinels:
    proxied = False

    def __init__(self, folder: Path) -> None:
        self.servers = RedisWithSentinels(folder)
        self._clients: dict[int, Any] = {}

    def start(self) -> None:
        self.servers.start()
        self._clients = {server.port: client_of(server) for server in self.servers.servers}

    def url(self, link: Callable[[int], int]) -> str:
        return self.servers.url

    @property
    def client(self) -> Any:
        return self._clients[self.servers.master().port]

    def now(self) -> tuple[int, int]:
        return self.client.time()

    def close(self) -> None:
        for server in self.servers.servers:
            if server.process is not None and server.process.poll() is None:
                server.go_on()
        self.servers.close()


class Cluster:
    proxied = False

    def __init__(self, folder: Path) -> None:
        self.servers = RedisCluster(folder)
        self._client: Any = None

    def start(self) -> None:
        self.servers.start()

    def url(self, link: Callable[[int], int]) -> str:
        return self.servers.url

    @property
    def client(self) -> Any:
        if self._client is None:
            nodes = [redis_py.cluster.ClusterNode("127.0.0.1", node.port) for node in self.servers.nodes]
            self._client = ClusterClient(startup_nodes=nodes, socket_timeout=2)
        return self._client

    def now(self) -> tuple[int, int]:
        return client_of(self.servers.masters()[0]).time()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        for node in self.servers.nodes:
            if node.process is not None and node.process.poll() is None:
                node.go_on()
        self.servers.close()


def backend(kind: str, folder: Path) -> "OneServer | Sentinels | Cluster":
    return {"server": OneServer, "sentinel": Sentinels, "cluster": Cluster}[kind](folder)
