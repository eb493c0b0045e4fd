"""Writing to the bus for one owner, a feed or a service: whole transactions, once, by one process.

On one server everything goes over one lane (tickbus.writer.lane). On a cluster a transaction can hold one shard only, so each shard
has a lane of its own: a shard whose node is away is held, the others go on.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from tickbus.clock import BusClock, monotonic_ns
from tickbus.protocol.names import Keys
from tickbus.redis.topology import Redis
from tickbus.writer.fences import Fence, Fences
from tickbus.writer.holder import new_holder
from tickbus.writer.in_flight import InFlight, raise_failed
from tickbus.writer.lane import Choose, Lane, Outage
from tickbus.writer.replay_buffer import DEFAULT_WINDOW, ReplayRing, Window
from tickbus.writer.transaction import Field, Transaction


class Publisher:
    def __init__(
        self, redis: Redis, keys: Keys, owner: str, clock: BusClock, *, home: int | None = None, window: Window = DEFAULT_WINDOW, holder: str | None = None,
    ) -> None:  # fmt: skip
        """`home`: for an owner that always holds all shards, one that it writes to: docs/decisions/0003-fences.md."""
        self.fences = Fences(keys, owner, holder or new_holder())
        outage = Outage(owner)
        groups: list[Collection[int]] = (
            [[shard] for shard in range(keys.shards)] if redis.sharded else [range(keys.shards)]
        )
        self.lanes = [
            Lane(
                partial(redis.link, keys.bell(next(iter(shards)))), keys, self.fences, clock, ReplayRing(_share(window, len(groups))), shards, outage,
                next(iter(shards)) if redis.sharded else home,
            )
            for shards in groups
        ]  # fmt: skip
        self.in_flight = InFlight(lambda shard, part: self._by_shard[shard].commit(part))
        """What of commits is still on its way, on a cluster."""
        self._seen = 0
        """Highest epoch that was found in a fence."""
        self._by_shard = {
            shard: lane for lane, shards in zip(self.lanes, groups, strict=True) for shard in shards
        }

    @property
    def epoch(self) -> int:
        """The newest under which this process writes; 0: it holds nothing."""
        return max(self.fences.held.values(), default=0)

    @property
    def up(self) -> bool:
        """Whether every lane that was used has a connection."""
        return all(lane.up for lane in self.lanes if lane.held)

    @property
    def retries(self) -> int:
        return sum(lane.retries for lane in self.lanes)

    @property
    def reconnects(self) -> int:
        return sum(lane.reconnects for lane in self.lanes)

    @property
    def resent(self) -> int:
        return sum(lane.resent for lane in self.lanes)

    @property
    def histories_lost(self) -> int:
        """How often Redis was found without what it held: the owner then says again what stands in no stream (tickbus:meta)."""
        return sum(lane.histories_lost for lane in self.lanes)

    def lane(self, shard: int) -> Lane:
        return self._by_shard[shard]

    async def take_over(self) -> dict[int, Fence]:
        """Raise all fences to a new epoch, the same everywhere; -> the fences as they stood before."""
        before: dict[int, Fence] = {}

        def higher(found: Mapping[int, Fence]) -> dict[int, int]:
            before.update(found)
            return dict.fromkeys(found, 1 + max(self._seen, *(fence.epoch for fence in found.values())))

        await self.look()
        await self._all(higher)
        return before

    async def look(self) -> dict[int, Fence]:
        """The fences of all shards as they stand; an epoch that was seen once is never given out again."""
        found: dict[int, Fence] = {}

        def note(stands: Mapping[int, Fence]) -> dict[int, int]:
            found.update(stands)
            return {}

        await self._all(note)
        self._seen = max(self._seen, *(fence.epoch for fence in found.values()))
        return found

    async def released(self) -> bool:
        """Whether nobody writes for this owner: whoever did said that it ended. Fences that are gone, or older than before, do not say so."""
        fences = (await self.look()).values()
        return (
            not any(fence.holder for fence in fences) and max(fence.epoch for fence in fences) == self._seen
        )

    async def _all(self, choose: Choose) -> None:
        await asyncio.gather(
            *(lane.claim(shards, choose) for lane, shards in self._groups(self._by_shard).items())
        )

    async def claim(
        self,
        shards: Collection[int],
        choose: Choose,
        first: Sequence[Field] = (),
        timeout: float | None = None,
    ) -> dict[int, Fence]:
        """Take over those of `shards` that `choose` chooses when it sees their fences; -> these, with their fences before.

        `first`: what is set together with the fence of a shard that nobody ever had. `timeout`: seconds after which shards of a cluster
        whose master does not answer are let be; their fences may stand in our name."""
        claims = [
            asyncio.ensure_future(lane.claim(group, choose, first))
            for lane, group in self._groups(shards).items()
        ]
        try:
            if claims:
                await asyncio.wait(claims, timeout=timeout if len(self.lanes) > 1 else None)
        finally:
            for claim in claims:
                claim.cancel()
            found = await asyncio.gather(*claims, return_exceptions=True)
        raise_failed(claims)
        return {
            shard: fence for claimed in found if isinstance(claimed, dict) for shard, fence in claimed.items()
        }

    def inherit(self, written: Transaction) -> None:
        """What our predecessor stored lately: should Redis lose it, we send it again."""
        for shard, part in _split(written).items():
            self._by_shard[shard].ring.inherit(part, monotonic_ns())

    async def release(self, shards: Collection[int] | None = None) -> None:
        """Give shards back, or all that are held: who wants them next need not wait. Best effort. What of them is not stored never will be."""
        given = list(self.fences.held) if shards is None else shards
        await asyncio.gather(*self.in_flight.cancel(given), return_exceptions=True)
        await asyncio.gather(*(lane.release(group) for lane, group in self._groups(given).items()))

    def drop(self, shards: Collection[int]) -> None:
        """Shards that somebody else took over."""
        self.in_flight.cancel(shards)
        for lane, group in self._groups(shards).items():
            lane.drop(group)

    async def commit(self, transaction: Transaction, timeout: float | None = None) -> None:
        """Store it; returns when it is stored, however long Redis is away. On a cluster it is one transaction per shard.

        `timeout`: seconds after which the shards of a cluster that have not stored their part yet hold up the others no longer: `in_flight`.
        Fenced if another process took over one of its shards; `shards` of the error says which. Of these nothing is stored.
        """
        if len(self.lanes) == 1:
            await self.lanes[0].commit(transaction)
            return
        before = set(self.in_flight.shards)
        parts = {shard: self.in_flight.begin(shard, part) for shard, part in _split(transaction).items()}
        full = any(self.in_flight.is_full(shard) for shard in parts)
        awaited = [part for shard, part in parts.items() if timeout is None or full or shard not in before]
        try:
            if awaited:
                await asyncio.wait(awaited, timeout=None if full else timeout)
        except asyncio.CancelledError:
            await asyncio.gather(*self.in_flight.cancel(parts), return_exceptions=True)
            raise
        self.in_flight.check()

    def _groups(self, shards: Collection[int]) -> dict[Lane, list[int]]:
        groups: dict[Lane, list[int]] = {}
        for shard in shards:
            groups.setdefault(self._by_shard[shard], []).append(shard)
        return groups

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()


def _share(window: Window, lanes: int) -> Window:
    """Of the memory for replays that one lane may take."""
    return (
        window
        if lanes == 1
        else window._replace(bytes=type(window.bytes)(max(1 << 20, 4 * window.bytes // lanes)))
    )


def _split(transaction: Transaction) -> dict[int, Transaction]:
    """Its part of each shard."""
    parts: dict[int, Transaction] = {}

    def part(shard: int) -> Transaction:
        if shard not in parts:
            parts[shard] = Transaction(transaction.bus_ms, transaction.feed_up)
            parts[shard].entries = []
            parts[shard].ring_all = transaction.ring_all
        return parts[shard]

    for entry in transaction.entries:
        entries = part(entry.stream.shard).entries
        assert isinstance(entries, list)
        entries.append(entry)
    for stream, head in transaction.heads.items():
        part(stream.shard).heads[stream] = head
    for field in transaction.fields:
        part(field.shard).fields.append(field)
    return parts
