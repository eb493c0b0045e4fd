"""Writes to the bus for one owner, a feed or a service: whole transactions, exactly once, by one process.

On one server everything goes over one lane (tickbus.writer.lane). On a cluster a transaction can include
only one shard, so each shard has its own lane: a shard whose node is unavailable is buffered, the others
continue.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from tickbus.clock import BusClock, monotonic_ns
from tickbus.protocol.codec import Head, decode_head, encode
from tickbus.protocol.names import Keys
from tickbus.redis.topology import Redis
from tickbus.writer.entry import StreamWriter
from tickbus.writer.fences import Fence, Fences
from tickbus.writer.holder import new_holder
from tickbus.writer.in_flight import InFlight, raise_failed
from tickbus.writer.lane import Choose, Lane, Outage
from tickbus.writer.quarantine import Fault
from tickbus.writer.replay_buffer import DEFAULT_WINDOW, ReplayBuffer, Window
from tickbus.writer.transaction import Field, Transaction


class Publisher:
    """The writer of one owner: its fences and its lanes."""

    def __init__(
        self, redis: Redis, keys: Keys, owner: str, clock: BusClock, *, home: int | None = None,
        window: Window = DEFAULT_WINDOW, holder: str | None = None, whole_shards: bool = False,
    ) -> None:  # fmt: skip
        """`home`: a shard that it writes to, if it always owns all shards: docs/decisions/0003-fences.md.

        `whole_shards`: as for Quarantine.
        """
        self.fences = Fences(keys, owner, holder or new_holder())
        self._outage = outage = Outage(owner)
        groups: list[Collection[int]] = (
            [[shard] for shard in range(keys.shards)] if redis.sharded else [range(keys.shards)]
        )
        self.lanes = [
            Lane(
                partial(redis.link, keys.bell(next(iter(shards)))), keys, self.fences, clock,
                ReplayBuffer(_share(window, len(groups))), shards, outage,
                next(iter(shards)) if redis.sharded else home, whole_shards,
            )
            for shards in groups
        ]  # fmt: skip
        self.in_flight = InFlight(lambda shard, part: self._by_shard[shard].commit(part))
        """Parts of commits that are still in flight, on a cluster."""
        self._highest_epoch = 0
        """The highest epoch ever seen in a fence."""
        self._by_shard = {
            shard: lane for lane, shards in zip(self.lanes, groups, strict=True) for shard in shards
        }

    @property
    def epoch(self) -> int:
        """The newest epoch under which this process writes; 0 if it owns nothing."""
        return max(self.fences.held.values(), default=0)

    @property
    def up(self) -> bool:
        """Whether every lane with owned shards has a connection."""
        return all(lane.up for lane in self.lanes if lane.owned)

    @property
    def refusal(self) -> str:
        """Why Redis rejects writes, in its own words (`OOM ...`); empty while it does not."""
        return self._outage.refusal

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
        """How often Redis lost its data: the owner then rewrites what is in no stream (tickbus:meta)."""
        return sum(lane.histories_lost for lane in self.lanes)

    @property
    def quarantined(self) -> list[Fault]:
        """Keys that some other program wrote to: they are kept out of the transactions until mended."""
        return [fault for lane in self.lanes for fault in lane.quarantine.all]

    def held_heads(self) -> dict[str, Head]:
        """Return the heads after what is held for streams that take no entries, by stream name."""
        return {
            stream.name: decode_head(head)
            for lane in self.lanes
            for part in lane.quarantine.held.values()
            for stream, head in part.heads.items()
        }

    async def write_heads(self, heads: Mapping[StreamWriter, Head], bus_ms: int) -> None:
        """Store heads, also of streams that take no entries."""
        for lane, shards in self._groups({stream.shard for stream in heads}).items():
            await lane.write_heads(
                {stream: encode(head) for stream, head in heads.items() if stream.shard in shards}, bus_ms
            )

    async def recheck(self, bus_ms: int) -> None:
        """Write what was held for keys that are mended by now."""
        await asyncio.gather(*(lane.commit(Transaction(bus_ms)) for lane in self.lanes if lane.quarantine))

    def lane(self, shard: int) -> Lane:
        return self._by_shard[shard]

    async def take_over(self) -> dict[int, Fence]:
        """Raise all fences to the same new epoch. Return the previous fences."""
        before: dict[int, Fence] = {}

        def higher(found: Mapping[int, Fence]) -> dict[int, int]:
            before.update(found)
            highest = max(self._highest_epoch, *(fence.epoch for fence in found.values()))
            return dict.fromkeys(found, 1 + highest)

        await self.read_fences()
        await self._claim_all(higher)
        return before

    async def read_fences(self) -> dict[int, Fence]:
        """Return the stored fences of all shards. An epoch seen once is never assigned again."""
        found: dict[int, Fence] = {}

        def note(stored: Mapping[int, Fence]) -> dict[int, int]:
            found.update(stored)
            return {}

        await self._claim_all(note)
        self._highest_epoch = max(self._highest_epoch, *(fence.epoch for fence in found.values()))
        return found

    async def released(self) -> bool:
        """Return whether the last writer of this owner released its fences.

        Fences that are missing, or older than before, do not prove that.
        """
        fences = (await self.read_fences()).values()
        highest = max(fence.epoch for fence in fences)
        return not any(fence.holder for fence in fences) and highest == self._highest_epoch

    async def _claim_all(self, choose: Choose) -> None:
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
        """Take over those of `shards` that `choose` returns. Return these with their previous fences.

        `first`: fields to set together with the fence of a shard that never had an owner. `timeout`: seconds
        after which cluster shards whose master does not respond are skipped; their fences may be ours anyway.
        """
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
        """Retain what the previous owner stored recently: it is resent if Redis loses it."""
        for shard, part in _split(written).items():
            self._by_shard[shard].replay.inherit(part, monotonic_ns())

    async def release(self, shards: Collection[int] | None = None) -> None:
        """Release shards, or all owned ones, so that their next owner need not wait. Best effort.

        Whatever of them is not stored yet never will be.
        """
        leaving = list(self.fences.held) if shards is None else shards
        await asyncio.gather(*self.in_flight.cancel(leaving), return_exceptions=True)
        await asyncio.gather(*(lane.release(group) for lane, group in self._groups(leaving).items()))

    def drop(self, shards: Collection[int]) -> None:
        """Forget shards that another process took over."""
        self.in_flight.cancel(shards)
        for lane, group in self._groups(shards).items():
            lane.drop(group)

    async def commit(self, transaction: Transaction, timeout: float | None = None) -> None:
        """Store it, however long Redis is unavailable. On a cluster it is one transaction per shard.

        `timeout`: seconds after which cluster shards that have not stored their part no longer delay the
        others: see `in_flight`. Fenced if another process took over shards of it, named in `Fenced.shards`:
        nothing of these is stored.
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
    """Return the share of the replay memory that one lane may use."""
    return (
        window
        if lanes == 1
        else window._replace(bytes=type(window.bytes)(max(1 << 20, 4 * window.bytes // lanes)))
    )


def _split(transaction: Transaction) -> dict[int, Transaction]:
    """Split a transaction into one part per shard."""
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
