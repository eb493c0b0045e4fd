"""Redis Cluster: who holds which slot now, links to the masters, and commands that find their node.

All keys of a shard share a slot (their hash tag), so what belongs together is written and read on one raw link to one master:
`Cluster.link`. Single commands for any key go through a `ClusterLink`.
"""

import asyncio
from collections.abc import Iterable, Sequence

from tickbus.errors import RedisError, RedisMisconfigured, RedisUnavailable
from tickbus.redis.client_options import REPLY_SECONDS
from tickbus.redis.link import NOT_HERE, Link, Reply, ReplyError, raise_error
from tickbus.redis.preflight import check_fit
from tickbus.redis.resp import Command, pack
from tickbus.redis.slots import SlotMap, command_slot, key_slot, parse_slots
from tickbus.redis.urls import Address, Node

_FRESH_SECONDS = 0.2
"""A map younger than this is not asked for again: 64 shards that lose their node together ask once."""
_LEARN_SECONDS = 1.0
"""A node that hangs must not hold up those who want to know where else to go. Longer while few are known to ask."""
_PATIENCE_SECONDS = 3.0
"""How long a command is tried again that no node has executed. A failover may take longer: then the caller decides."""
_RETRY_FIRST, _RETRY_LAST = 0.02, 0.5
_ASKING = pack(("ASKING",))


class Cluster:
    """Belongs to one event loop."""

    sharded = True

    def __init__(self, address: Address) -> None:
        self._address = address
        self._slots = SlotMap([])
        self._nodes: list[Node] = []
        """All that were in the newest map."""
        self._learned_at: float | None = None
        self._failed: tuple[float, str] | None = None
        """When nobody could be asked, and why."""
        self._asked = 0
        self._learning = asyncio.Lock()

    def __str__(self) -> str:
        return self._address.shown

    async def link(self, key: str) -> Link:
        """A link to the master that holds `key` now. RedisUnavailable if there is none, or it is not there: ask again later."""
        await self.learn()
        return await self.open(self.master(key_slot(key)))

    async def connect(self) -> "ClusterLink":
        await self.learn()
        return ClusterLink(self)

    async def open_checked(self) -> "ClusterLink":
        """RedisMisconfigured unless every master may carry a part of a bus, and every slot has a master."""
        await self.learn()
        for node in self._slots.masters:
            link = await self.open(node)
            await check_fit(link, str(node), cluster=True)
            state = await link.ask("CLUSTER", "INFO")
            link.close()
            if b"cluster_state:ok" not in state:
                raise RedisMisconfigured(
                    f"the cluster at {self} is not complete, says {node}; look with: redis-cli --cluster check {node}"
                )
        return ClusterLink(self)

    def master(self, slot: int) -> Node:
        node = self._slots.master(slot)
        if node is None:
            raise RedisUnavailable(f"no node of the cluster at {self} has slot {slot}")
        return node

    async def open(self, node: Node) -> Link:
        try:
            return await Link.open(self._address.server(node))
        except RedisUnavailable:
            self._learned_at = None  # it may be dead: the others will say who has its slots
            raise

    async def learn(self) -> None:
        """Bring the map up to date, unless that was just done, or just failed: 64 shards whose cluster is gone ask once, too."""
        async with self._learning:
            now = asyncio.get_running_loop().time()
            if self._learned_at is not None and now - self._learned_at < _FRESH_SECONDS:
                return
            if self._failed is not None and now - self._failed[0] < _FRESH_SECONDS:
                raise RedisUnavailable(self._failed[1])
            candidates = list(dict.fromkeys([*self._nodes, *self._address.nodes]))
            # another one first each time: one that was paused or cut off has an old view until it hears the others
            self._asked += 1
            start = self._asked % len(candidates)
            patience = max(_LEARN_SECONDS, REPLY_SECONDS / len(candidates))
            why: RedisError | None = None
            for node in candidates[start:] + candidates[:start]:
                try:
                    async with asyncio.timeout(patience):
                        await self._learn_from(node)
                except RedisUnavailable as error:
                    why = error
                except TimeoutError:
                    why = RedisUnavailable(f"{node} does not answer")
                else:
                    self._learned_at, self._failed = now, None
                    return
            self._failed = (
                asyncio.get_running_loop().time(),
                f"no node of the cluster at {self} answers: {why}",
            )
            raise RedisUnavailable(self._failed[1])

    async def _learn_from(self, node: Node) -> None:
        link = await Link.open(self._address.server(node))
        try:
            reply = await link.ask("CLUSTER", "SLOTS")
        except ReplyError as error:
            raise RedisMisconfigured(
                f"{node} is no node of a cluster ({error}); write redis://host:port/0"
            ) from None
        finally:
            link.close()
        slots, nodes = parse_slots(reply, node)
        if not nodes:
            raise RedisUnavailable(f"{node} knows no slots: it belongs to no cluster yet")
        self._slots, self._nodes = slots, nodes


class ClusterLink:
    """Carries single commands to the nodes that hold their keys. No transactions, nothing that blocks.

    It mends itself: `closed` is true only after `close`. Commands of one `ask_all` are executed in order per node; while a slot
    moves, those that were refused are sent again after the others.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._links: dict[Node, Link] = {}
        self.closed = False

    async def ask(self, *command: "bytes | str | int", timeout: float = REPLY_SECONDS) -> Reply:
        """As Link.ask."""
        (reply,) = await self.ask_all([command], timeout)
        return reply

    async def ask_all(self, commands: Iterable[Command], timeout: float = REPLY_SECONDS) -> list[Reply]:
        """As Link.ask_all. RedisUnavailable also if some were sent and their connection broke: whether they were executed nobody knows."""
        asked = list(commands)
        replies: list[Reply] = [None] * len(asked)
        loop = asyncio.get_running_loop()
        deadline, wait = loop.time() + _PATIENCE_SECONDS, _RETRY_FIRST
        left: Sequence[int] = range(len(asked))
        while left:
            if self.closed:
                raise RedisUnavailable("closed")
            left, why = await self._try(asked, left, replies, timeout)
            if left:
                if loop.time() + wait > deadline:
                    raise RedisUnavailable(f"the cluster does not take it: {why}")
                await asyncio.sleep(wait)
                wait = min(2 * wait, _RETRY_LAST)
                await self._cluster.learn()
        for reply in replies:
            raise_error(reply)
        return replies

    async def _try(
        self, asked: Sequence[Command], wanted: Sequence[int], replies: list[Reply], timeout: float
    ) -> tuple[list[int], object]:
        """Send the `wanted` ones; -> those that no node has executed, and why."""
        left: list[int] = []
        why: object = None
        sent: list[tuple[list[int], asyncio.Future[list[Reply]]]] = []
        for node, members in self._by_node(asked, wanted).items():
            try:
                link = await self._linked(node)
            except RedisUnavailable as error:  # nothing was sent
                left, why = left + members, error
                continue
            sent.append(
                (members, link.send(b"".join([pack(asked[at]) for at in members]), len(members), timeout))
            )
        broken: RedisUnavailable | None = None
        for members, future in sent:
            try:
                found = await future
            except RedisUnavailable as error:
                broken = error
                continue
            for at, reply in zip(members, found, strict=True):
                replies[at] = (
                    reply if not _names_other(reply) else await self._ask_other(reply, asked[at], timeout)
                )
                if _not_executed(replies[at]):
                    left.append(at)
                    why = replies[at]
        if broken is not None:
            raise broken
        return left, why

    def _by_node(self, asked: Sequence[Command], wanted: Sequence[int]) -> dict[Node, list[int]]:
        found: dict[Node, list[int]] = {}
        for at in wanted:
            found.setdefault(self._cluster.master(command_slot(asked[at])), []).append(at)
        return found

    async def _ask_other(self, reply: Reply, command: Command, timeout: float) -> Reply:
        """The key is on its way and already at the node that `reply` names; -> what that says, or `reply` if it is not there."""
        host, _, port = str(reply).rpartition(" ")[2].rpartition(":")
        try:
            link = await self._linked(Node(host, int(port)))
        except RedisUnavailable:
            return reply
        return (await link.send(_ASKING + pack(command), 2, timeout))[1]

    async def _linked(self, node: Node) -> Link:
        link = self._links.get(node)
        if link is None or link.closed:
            link = self._links[node] = await self._cluster.open(node)
        return link

    def close(self) -> None:
        self.closed = True
        for link in self._links.values():
            link.close()


def _names_other(reply: Reply) -> bool:
    return isinstance(reply, ReplyError) and str(reply).startswith("ASK ")


def _not_executed(reply: Reply) -> bool:
    return isinstance(reply, ReplyError) and str(reply).startswith(NOT_HERE)
