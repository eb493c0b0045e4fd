"""Where the bus of a system lives: one server behind the proxy, a master with sentinels, or a cluster."""

from collections.abc import Callable
from pathlib import Path

from redis.backoff import NoBackoff
from redis.retry import Retry
from support.client import Client, connect, connect_cluster
from support.cluster import RedisCluster
from support.redis_server import RedisServer
from support.sentinel import RedisWithSentinels

KINDS = ("server", "sentinel", "cluster")


def client_of(server: RedisServer) -> Client:
    """Return a client that gives up quickly: the server may be under a fault."""
    return connect(server.port, socket_timeout=1, retry=Retry(NoBackoff(), 0))


class OneServer:
    proxied = True

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer(folder)

    def start(self) -> None:
        self.server.start()
        self._client = client_of(self.server)

    def url(self, link: Callable[[int], int]) -> str:
        """`link` takes a port and returns that of a proxy in front of it."""
        return f"redis://127.0.0.1:{link(self.server.port)}/0"

    @property
    def client(self) -> Client:
        return self._client

    def now(self) -> tuple[int, int]:
        return self._client.time()

    def close(self) -> None:
        if self.server.process is not None and self.server.process.poll() is None:
            self.server.resume()
        self.server.close()


class Sentinels:
    proxied = False

    def __init__(self, folder: Path) -> None:
        self.servers = RedisWithSentinels(folder)
        self._clients: dict[int, Client] = {}

    def start(self) -> None:
        self.servers.start()
        self._clients = {server.port: client_of(server) for server in self.servers.servers}

    def url(self, link: Callable[[int], int]) -> str:
        return self.servers.url

    @property
    def client(self) -> Client:
        return self._clients[self.servers.master().port]

    def now(self) -> tuple[int, int]:
        return self.client.time()

    def close(self) -> None:
        for server in self.servers.servers:
            if server.process is not None and server.process.poll() is None:
                server.resume()
        self.servers.close()


class Cluster:
    proxied = False

    def __init__(self, folder: Path) -> None:
        self.servers = RedisCluster(folder)
        self._client: Client | None = None

    def start(self) -> None:
        self.servers.start()

    def url(self, link: Callable[[int], int]) -> str:
        return self.servers.url

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = connect_cluster([node.port for node in self.servers.nodes], timeout=2)
        return self._client

    def now(self) -> tuple[int, int]:
        return client_of(self.servers.masters()[0]).time()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        for node in self.servers.nodes:
            if node.process is not None and node.process.poll() is None:
                node.resume()
        self.servers.close()


Backend = OneServer | Sentinels | Cluster


def backend(kind: str, folder: Path) -> Backend:
    backends: dict[str, Callable[[Path], Backend]] = {
        "server": OneServer,
        "sentinel": Sentinels,
        "cluster": Cluster,
    }
    return backends[kind](folder)
