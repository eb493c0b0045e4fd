"""Redis Cluster: which node serves which slot, links to the masters, and routing of commands to their node.

All keys of a shard share a slot (their hash tag), so data that belongs together is written and read on one
raw link to one master: `Cluster.link`. Single commands for any key go through a `ClusterLink`.
"""

import asyncio
from collections.abc import Iterable, Sequence

from tickbus.errors import RedisError, RedisMisconfigured, RedisUnavailable
from tickbus.redis.client_options import REPLY_SECONDS
from tickbus.redis.link import NOT_HERE, Link, Reply, ReplyError, raise_common, raise_error
from tickbus.redis.preflight import check_server
from tickbus.redis.resp import Command, pack
from tickbus.redis.slots import SlotMap, command_slot, key_slot, parse_slots
from tickbus.redis.urls import Address, Node

_FRESH_SECONDS = 0.2
"""A slot map younger than this is not refreshed: 64 shards that lose their node together refresh it once."""
_REFRESH_SECONDS = 1.0
"""Timeout per node: one that hangs must not delay asking the next. Longer while few nodes are known."""
_RETRY_SECONDS = 3.0
"""How long a command that no node executed is retried. If a failover takes longer, the caller decides."""
_RETRY_FIRST, _RETRY_LAST = 0.02, 0.5
_ASKING = pack(("ASKING",))


class Cluster:
    """A cluster, for one event loop."""

    sharded = True

    def __init__(self, address: Address) -> None:
        self._address = address
        self._slots = SlotMap([])
        self._nodes: list[Node] = []
        """All nodes of the newest slot map."""
        self._refreshed_at: float | None = None
        self._failed: tuple[float, str] | None = None
        """When the last refresh failed, and why; None if it succeeded."""
        self._refreshes = 0
        self._refreshing = asyncio.Lock()

    def __str__(self) -> str:
        return self._address.redacted

    async def link(self, key: str) -> Link:
        """Return a link to the current master of `key`. RedisUnavailable, to be retried, if none is up."""
        await self.refresh()
        return await self.open(self.master(key_slot(key)))

    async def connect(self) -> "ClusterLink":
        await self.refresh()
        return ClusterLink(self)

    async def open_checked(self) -> "ClusterLink":
        """RedisMisconfigured unless every master may carry part of a bus, and every slot has a master."""
        await self.refresh()
        for node in self._slots.masters:
            link = await self.open(node)
            await check_server(link, str(node), cluster=True)
            state = await link.ask("CLUSTER", "INFO")
            link.close()
            if b"cluster_state:ok" not in state:
                raise RedisMisconfigured(
                    f"the cluster at {self} is incomplete according to {node};"
                    f" check it with: redis-cli --cluster check {node}"
                )
        return ClusterLink(self)

    @property
    def masters(self) -> list[Node]:
        return self._slots.masters

    def master(self, slot: int) -> Node:
        node = self._slots.master(slot)
        if node is None:
            raise RedisUnavailable(f"no node of the cluster at {self} serves slot {slot}")
        return node

    async def open(self, node: Node) -> Link:
        try:
            return await Link.open(self._address.server(node))
        except RedisUnavailable:
            self._refreshed_at = None  # it may be dead: the other nodes report who has its slots
            raise

    async def refresh(self) -> None:
        """Update the slot map, unless that just succeeded or failed: 64 shards of a dead cluster try once."""
        async with self._refreshing:
            now = asyncio.get_running_loop().time()
            if self._refreshed_at is not None and now - self._refreshed_at < _FRESH_SECONDS:
                return
            if self._failed is not None and now - self._failed[0] < _FRESH_SECONDS:
                raise RedisUnavailable(self._failed[1])
            candidates = list(dict.fromkeys([*self._nodes, *self._address.nodes]))
            # start at another node each time: one that was paused or cut off has a stale view at first
            self._refreshes += 1
            start = self._refreshes % len(candidates)
            timeout = max(_REFRESH_SECONDS, REPLY_SECONDS / len(candidates))
            why: RedisError | None = None
            for node in candidates[start:] + candidates[:start]:
                try:
                    async with asyncio.timeout(timeout):
                        await self._refresh_from(node)
                except RedisUnavailable as error:
                    why = error
                except TimeoutError:
                    why = RedisUnavailable(f"{node} did not respond")
                else:
                    self._refreshed_at, self._failed = now, None
                    return
            self._failed = (
                asyncio.get_running_loop().time(),
                f"no node of the cluster at {self} responded: {why}",
            )
            raise RedisUnavailable(self._failed[1])

    async def _refresh_from(self, node: Node) -> None:
        link = await Link.open(self._address.server(node))
        try:
            reply = await link.ask("CLUSTER", "SLOTS")
        except ReplyError as error:
            raise RedisMisconfigured(
                f"{node} is not a cluster node ({error}); use redis://host:port/0"
            ) from None
        finally:
            link.close()
        slots, nodes = parse_slots(reply, node)
        if not nodes:
            raise RedisUnavailable(f"{node} has no slot map: it has not joined a cluster yet")
        self._slots, self._nodes = slots, nodes


class ClusterLink:
    """Routes single commands to the nodes that serve their keys. No transactions, no blocking commands.

    It reconnects by itself: `closed` is true only after `close`. Commands of one `ask_all` are executed in
    order per node; while a slot migrates, rejected commands are resent after the others.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._links: dict[Node, Link] = {}
        self.closed = False

    async def ask(self, *command: "bytes | str | int", timeout: float = REPLY_SECONDS) -> Reply:
        """Like Link.ask."""
        (reply,) = await self.ask_all([command], timeout)
        return reply

    async def ask_all(self, commands: Iterable[Command], timeout: float = REPLY_SECONDS) -> list[Reply]:
        """Like Link.ask_all. After RedisUnavailable, commands already sent may have been executed or not."""
        replies = await self._ask(commands, timeout)
        for reply in replies:
            raise_error(reply)
        return replies

    async def ask_each(self, commands: Iterable[Command], timeout: float = REPLY_SECONDS) -> list[Reply]:
        """Like Link.ask_each."""
        replies = await self._ask(commands, timeout)
        for reply in replies:
            raise_common(reply)
        return replies

    async def _ask(self, commands: Iterable[Command], timeout: float) -> list[Reply]:
        pending = list(commands)
        replies: list[Reply] = [None] * len(pending)
        loop = asyncio.get_running_loop()
        deadline, wait = loop.time() + _RETRY_SECONDS, _RETRY_FIRST
        left: Sequence[int] = range(len(pending))
        while left:
            if self.closed:
                raise RedisUnavailable("closed")
            left, why = await self._try(pending, left, replies, timeout)
            if left:
                if loop.time() + wait > deadline:
                    raise RedisUnavailable(f"the cluster did not execute the command: {why}")
                await asyncio.sleep(wait)
                wait = min(2 * wait, _RETRY_LAST)
                await self._cluster.refresh()
        return replies

    async def _try(
        self, commands: Sequence[Command], chosen: Sequence[int], replies: list[Reply], timeout: float
    ) -> tuple[list[int], object]:
        """Send the `chosen` commands. Return those that no node executed, and why."""
        left: list[int] = []
        why: object = None
        sent: list[tuple[list[int], asyncio.Future[list[Reply]]]] = []
        for node, members in self._by_node(commands, chosen).items():
            try:
                link = await self._link_to(node)
            except RedisUnavailable as error:  # nothing was sent
                left, why = left + members, error
                continue
            sent.append(
                (members, link.send(b"".join([pack(commands[at]) for at in members]), len(members), timeout))
            )
        broken: RedisUnavailable | None = None
        for members, future in sent:
            try:
                found = await future
            except RedisUnavailable as error:
                broken = error
                continue
            for at, reply in zip(members, found, strict=True):
                if _is_redirect(reply):
                    reply = await self._follow_redirect(reply, commands[at], timeout)
                replies[at] = reply
                if _not_executed(replies[at]):
                    left.append(at)
                    why = replies[at]
        if broken is not None:
            raise broken
        return left, why

    def _by_node(self, commands: Sequence[Command], chosen: Sequence[int]) -> dict[Node, list[int]]:
        found: dict[Node, list[int]] = {}
        for at in chosen:
            found.setdefault(self._cluster.master(command_slot(commands[at])), []).append(at)
        return found

    async def _follow_redirect(self, reply: Reply, command: Command, timeout: float) -> Reply:
        """Send the command to the node that an ASK reply names: the key has migrated there already.

        Return its reply, or `reply` itself if the node is not reachable.
        """
        host, _, port = str(reply).rpartition(" ")[2].rpartition(":")
        try:
            link = await self._link_to(Node(host, int(port)))
        except RedisUnavailable:
            return reply
        return (await link.send(_ASKING + pack(command), 2, timeout))[1]

    async def _link_to(self, node: Node) -> Link:
        link = self._links.get(node)
        if link is None or link.closed:
            link = self._links[node] = await self._cluster.open(node)
        return link

    async def masters(self) -> list[tuple[str, Link]]:
        return [(str(node), await self._link_to(node)) for node in self._cluster.masters]

    def close(self) -> None:
        self.closed = True
        for link in self._links.values():
            link.close()


def _is_redirect(reply: Reply) -> bool:
    return isinstance(reply, ReplyError) and str(reply).startswith("ASK ")


def _not_executed(reply: Reply) -> bool:
    return isinstance(reply, ReplyError) and str(reply).startswith(NOT_HERE)
