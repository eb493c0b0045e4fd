"""Where the bus lives: one server, a master monitored by sentinels, or a cluster.

    redis = locate("redis+sentinel://10.0.0.1:26379,10.0.0.2:26379/mymaster/0")
    link = await redis.link(keys.bell(7))       the raw connection to the current master of that key
    connection = await redis.connect()          carries single commands for any key

Connections are not kept alive here: after a failure the next `link` looks up the master again.
"""

import asyncio
from typing import Protocol

from tickbus.errors import RedisError, RedisMisconfigured, RedisUnavailable
from tickbus.redis.client_options import check_options, check_url
from tickbus.redis.cluster import Cluster
from tickbus.redis.link import Connection, Link, ReplyError
from tickbus.redis.preflight import ask_permitted, check_server, check_standalone, open_checked
from tickbus.redis.urls import Address, Node, parse_address
from tickbus.sanitize import SECRETS, redact

_WATCH_SECONDS = 1.0


class Redis(Protocol):
    """A Redis deployment. `str()` returns its URL without secrets."""

    @property
    def sharded(self) -> bool:
        """Whether the shards are spread over several masters, so that a link serves only one shard."""
        ...

    async def link(self, key: str) -> Link:
        """Return a raw link to the current master of `key`.

        RedisUnavailable if it cannot be reached, RedisMisconfigured if it refuses the connection.
        """
        ...

    async def connect(self) -> Connection:
        """Return a connection for single commands for any key. Errors as for `link`."""
        ...

    async def open_checked(self) -> Connection:
        """Like `connect`, but check that every master may carry a bus.

        If not, RedisMisconfigured has the command that fixes it.
        """
        ...


def locate(url: str) -> Redis:
    """Return the deployment at `url`, not connected. ConfigError if the URL is invalid."""
    SECRETS.add_url(url)
    scheme = url.partition("://")[0]
    if scheme in ("redis+sentinel", "rediss+sentinel"):
        return Sentinel(_validated(parse_address(url)))
    if scheme in ("redis+cluster", "rediss+cluster"):
        return Cluster(_validated(parse_address(url)))
    check_url(url)
    check_options(url)
    return SingleServer(url)


def _validated(address: Address) -> Address:
    check_options(address.server(address.nodes[0]))
    return address


class SingleServer:
    sharded = False

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_standalone = False
        """Whether it was checked, and is neither a sentinel nor a cluster node."""

    def __str__(self) -> str:
        return redact(self._url)

    async def link(self, key: str) -> Link:
        return await Link.open(self._url)

    async def connect(self) -> Link:
        link = await Link.open(self._url)
        if not self._is_standalone:
            await check_standalone(link, str(self))
            self._is_standalone = True
        return link

    async def open_checked(self) -> Link:
        return await open_checked(self._url)


class Sentinel:
    """One master at a time, as reported by the sentinels; the report is verified with the server itself.

    After `SENTINEL FAILOVER` the old master still accepts writes for about 10 s, which are lost when it
    becomes a replica. So each link is closed as soon as the sentinels report another master.
    """

    sharded = False

    def __init__(self, address: Address) -> None:
        self._address = address

    def __str__(self) -> str:
        return self._address.redacted

    async def link(self, key: str) -> Link:
        return await self._master()

    async def connect(self) -> Link:
        return await self._master()

    async def open_checked(self) -> Link:
        link = await self._master()
        await check_server(link, str(self))
        return link

    async def _master(self) -> Link:
        why: RedisError | None = None
        for at, node in enumerate(self._address.nodes):
            try:
                master = await self._query_master(node)
                link = await self._open_master(master)
            except RedisError as error:  # this sentinel may be cut off or new, its report may be stale
                why = error
            else:
                link.while_open(self._watch(link, master, at))
                return link
        if isinstance(why, RedisMisconfigured):
            raise why
        raise RedisUnavailable(f"no master at {self}: {why}")

    async def _watch(self, link: Link, master: Node, at: int) -> None:
        """Close the link when the sentinels report another master. `at`: which of them reported this one."""
        nodes = self._address.nodes
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                reported = await self._query_master(nodes[at % len(nodes)])
                if reported != master:
                    (await self._open_master(reported)).close()
                    link.close("the sentinels report another master")
            except RedisError:  # no reply, or the reported server is not a master: stale
                at += 1

    async def _query_master(self, node: Node) -> Node:
        try:
            link = await Link.open(self._address.sentinel(node))
            try:
                reply = await link.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.master)
            finally:
                link.close()
        except RedisMisconfigured as error:
            why = str(error).partition(";")[0]
            raise RedisMisconfigured(
                f"sentinel {node}: {why}; sentinels have their own password, or none:"
                " set ?sentinel_password=... in the URL"
            ) from None
        except ReplyError as error:
            raise RedisMisconfigured(f"{node} is not a sentinel ({error}); use redis://host:port/0") from None
        if reply is None:
            raise RedisMisconfigured(
                f"sentinel {node} does not know master {self._address.master!r};"
                f" list its masters with: redis-cli -p {node.port} SENTINEL MASTERS"
            )
        return Node(reply[0].decode(), int(reply[1]))

    async def _open_master(self, master: Node) -> Link:
        link = await Link.open(self._address.server(master))
        role, *_ = await ask_permitted(link, "ROLE")
        if role != b"master":
            link.close()
            raise RedisUnavailable(f"{master} is not the master: not yet, or no longer")
        return link
