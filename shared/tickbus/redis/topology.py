"""Where the bus lives: one server, a master that sentinels watch over, or a cluster.

    redis = locate("redis+sentinel://10.0.0.1:26379,10.0.0.2:26379/mymaster/0")
    link = await redis.link(keys.bell(7))       the raw connection to whoever is master of that key now
    connection = await redis.connect()          carries single commands for any key

Nothing is kept alive in here: after a failure the next `link` finds out anew who the master is.
"""

import asyncio
from typing import Protocol

from tickbus.errors import RedisError, RedisMisconfigured, RedisUnavailable
from tickbus.redis.client_options import check_options, check_url
from tickbus.redis.cluster import Cluster
from tickbus.redis.link import Connection, Link, ReplyError
from tickbus.redis.preflight import ask_permitted, check_alone, check_fit, open_checked
from tickbus.redis.urls import Address, Node, parse_address
from tickbus.sanitize import redact

_WATCH_SECONDS = 1.0


class Redis(Protocol):
    """`str()` of it is its URL without secrets."""

    @property
    def sharded(self) -> bool:
        """Whether the shards lie on several masters, so that one link serves one shard only."""
        ...

    async def link(self, key: str) -> Link:
        """A raw link to the master that holds `key` now. RedisUnavailable if that cannot be reached, RedisMisconfigured if it does not let us in."""
        ...

    async def connect(self) -> Connection:
        """What carries single commands for any key. The same errors."""
        ...

    async def open_checked(self) -> Connection:
        """The same, after a check that every master may carry a bus; RedisMisconfigured says the command that mends it."""
        ...


def locate(url: str) -> Redis:
    """ConfigError if `url` is none of the forms; connects to nothing yet."""
    scheme = url.partition("://")[0]
    if scheme in ("redis+sentinel", "rediss+sentinel"):
        return Sentinel(_checked(parse_address(url)))
    if scheme in ("redis+cluster", "rediss+cluster"):
        return Cluster(_checked(parse_address(url)))
    check_url(url)
    check_options(url)
    return OneServer(url)


def _checked(address: Address) -> Address:
    check_options(address.server(address.nodes[0]))
    return address


class OneServer:
    sharded = False

    def __init__(self, url: str) -> None:
        self._url = url
        self._alone = False
        """Whether it was asked, and is neither sentinel nor node of a cluster."""

    def __str__(self) -> str:
        return redact(self._url)

    async def link(self, key: str) -> Link:
        return await Link.open(self._url)

    async def connect(self) -> Link:
        link = await Link.open(self._url)
        if not self._alone:
            await check_alone(link, str(self))
            self._alone = True
        return link

    async def open_checked(self) -> Link:
        return await open_checked(self._url)


class Sentinel:
    """One master at a time, as the sentinels say; what they say is checked with the server itself.

    After `SENTINEL FAILOVER` the old master goes on taking writes for about 10 s, which are lost when it becomes a replica. So
    each link is closed as soon as the sentinels name another one.
    """

    sharded = False

    def __init__(self, address: Address) -> None:
        self._address = address

    def __str__(self) -> str:
        return self._address.shown

    async def link(self, key: str) -> Link:
        return await self._master()

    async def connect(self) -> Link:
        return await self._master()

    async def open_checked(self) -> Link:
        link = await self._master()
        await check_fit(link, str(self))
        return link

    async def _master(self) -> Link:
        why: RedisError | None = None
        for at, node in enumerate(self._address.nodes):
            try:
                master = await self._ask(node)
                link = await self._open(master)
            except RedisError as error:  # this one may be cut off or new, what it says may be old
                why = error
            else:
                link.while_open(self._watch(link, master, at))
                return link
        if isinstance(why, RedisMisconfigured):
            raise why
        raise RedisUnavailable(f"no master at {self}: {why}")

    async def _watch(self, link: Link, master: Node, at: int) -> None:
        """`at`: the sentinel that named this master."""
        nodes = self._address.nodes
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                named = await self._ask(nodes[at % len(nodes)])
                if named != master:
                    (await self._open(named)).close()
                    link.close("the sentinels name another master")
            except RedisError:  # it does not answer, or names one that is no master: old news
                at += 1

    async def _ask(self, node: Node) -> Node:
        try:
            link = await Link.open(self._address.sentinel(node))
            try:
                reply = await link.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.master)
            finally:
                link.close()
        except RedisMisconfigured as error:
            why = str(error).partition(";")[0]
            raise RedisMisconfigured(
                f"the sentinel {node}: {why}; sentinels have a password of their own, or none: ?sentinel_password=... in the URL"
            ) from None
        except ReplyError as error:
            raise RedisMisconfigured(f"{node} is no sentinel ({error}); write redis://host:port/0") from None
        if reply is None:
            raise RedisMisconfigured(
                f"the sentinel {node} knows no master {self._address.master!r}; see: redis-cli -p {node.port} SENTINEL MASTERS"
            )
        return Node(reply[0].decode(), int(reply[1]))

    async def _open(self, master: Node) -> Link:
        link = await Link.open(self._address.server(master))
        role, *_ = await ask_permitted(link, "ROLE")
        if role != b"master":
            link.close()
            raise RedisUnavailable(f"{master} is not the master yet, or no longer")
        return link
