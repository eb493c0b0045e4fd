"""A real master with a replica, and three sentinels that watch over them."""

import socket
import subprocess
from pathlib import Path

import redis

from support.client import connect
from support.redis_server import RedisServer, free_port, require_program
from support.waiting import until

MASTER = "market"


class SentinelServer:
    def __init__(self, folder: Path, config: str) -> None:
        self._program = require_program("redis-server")
        self._file = folder / "sentinel.conf"
        folder.mkdir(parents=True)
        self.port = free_port()
        self._file.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n{config}")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self._program, str(self._file), "--sentinel"], stdout=subprocess.DEVNULL
        )
        self.client = connect(self.port)
        until(self._listens, what="a sentinel listens")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.client.close()


class RedisWithSentinels:
    def __init__(self, folder: Path, *options: str) -> None:
        self.servers = [RedisServer(folder / "a", "--repl-diskless-sync-delay", "0", *options)]
        first = self.servers[0].port
        self.servers.append(
            RedisServer(
                folder / "b", "--repl-diskless-sync-delay", "0", "--replicaof", f"127.0.0.1 {first}", *options
            )
        )
        config = (
            f"sentinel monitor {MASTER} 127.0.0.1 {first} 2\n"
            f"sentinel down-after-milliseconds {MASTER} 1000\n"
            f"sentinel failover-timeout {MASTER} 5000\n"
            f"sentinel parallel-syncs {MASTER} 1\n"
        )
        self.sentinels = [SentinelServer(folder / f"s{number}", config) for number in range(3)]
        addresses = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{addresses}/{MASTER}/0"

    def start(self) -> None:
        for server in self.servers:
            server.start()
        until(
            lambda: self.servers[1].client.info("replication")["master_link_status"] == "up",
            20,
            "the replica is in sync",
        )
        for sentinel in self.sentinels:
            sentinel.start()
        self.wait_settled()

    def wait_settled(self) -> None:
        """Wait until both servers run in sync, and all sentinels know each other and agree."""
        until(self._settled, 30, "master, replica and sentinels agree")

    def _settled(self) -> bool:
        try:
            roles = {server.port: server.client.info("replication") for server in self.servers}
            views = [
                sentinel.client.execute_command("SENTINEL", "MASTER", MASTER) for sentinel in self.sentinels
            ]
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        masters = [str(port) for port, role in roles.items() if role["role"] == "master"]
        in_sync = [
            port
            for port, role in roles.items()
            if role["role"] == "slave" and role["master_link_status"] == "up"
        ]
        expected = {
            "port": masters[0] if masters else "",
            "num-other-sentinels": "2",
            "num-slaves": "1",
            "flags": "master",
        }
        agree = all(_fields(view).items() >= expected.items() for view in views)
        return len(masters) == 1 and len(in_sync) == 1 and agree

    def master(self) -> RedisServer:
        """Return the master according to the first sentinel."""
        _, port = self.sentinels[0].client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return next(server for server in self.servers if server.port == int(port))

    def fail_over(self) -> RedisServer:
        """Fail over as an operator does and return the new master.

        The old one stays a second master for about 10 s.
        """
        old = self.master()
        until(self._start_failover, 20, "the sentinels accept the replica")
        until(lambda: self.master() is not old, 20, "failover")
        return self.master()

    def _start_failover(self) -> bool:
        try:
            return bool(self.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", MASTER))
        except redis.ResponseError:  # what they know about a replica is a few seconds old
            return False

    def heal(self) -> None:
        """Restart what was killed and resume what was paused."""
        for server in self.servers:
            assert server.process is not None
            if server.process.poll() is not None:
                server.client.close()
                server.start()
            else:
                server.resume()
        master = self.master()
        # a master that returns before the sentinels have replaced it is still the master, whatever it was
        # started as; otherwise no master is left
        master.client.execute_command("REPLICAOF", "NO", "ONE")
        for server in self.servers:
            if server is not master:  # the sentinels would do this too, after 10 s
                server.client.execute_command("REPLICAOF", "127.0.0.1", master.port)
        self.wait_settled()

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.close()
        for server in self.servers:
            server.close()


def _fields(view: dict[bytes, bytes] | list[bytes]) -> dict[str, str]:
    pairs = view.items() if isinstance(view, dict) else zip(view[::2], view[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in pairs}
