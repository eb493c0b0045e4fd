"""Fences: which process may write a shard of an owner, a feed or a service. Pure.

Per shard stand the epoch (`fence:<owner>`) and the process that raised it (`holder:<owner>`; empty = it ended cleanly). Both
are set in one transaction that is void if anybody else touched them since they were looked at. A writer owns the shard while it
finds its own pair there. A higher epoch, or its own epoch raised by another process, means that it was replaced. A lower one, or
none, means that Redis lost history (a failover, a flush) and that nobody else wrote since: it is set again.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from tickbus.errors import Fenced
from tickbus.protocol.names import Keys
from tickbus.redis.resp import command_prefix, pack, pack_bulk


class Fence(NamedTuple):
    """What stands in Redis for one shard."""

    epoch: int
    """0: none."""
    holder: str
    """Empty: it was released, or never held."""


class Fences:
    """The fences of one owner, and those of them that this process holds."""

    def __init__(self, keys: Keys, owner: str, holder: str) -> None:
        self.owner = owner
        self.holder = holder
        self.held: dict[int, int] = {}
        """Shard -> the epoch under which this process writes it."""
        self._keys = keys
        # packed once: they travel with every transaction
        self._fence = [pack_bulk(keys.fence(shard, owner)) for shard in range(keys.shards)]
        self._pair = [
            pack_bulk(keys.fence(shard, owner), keys.holder(shard, owner)) for shard in range(keys.shards)
        ]
        self._arm_one = [self._arm((shard,)) for shard in range(keys.shards)]
        self._holder = holder.encode()

    def arm(self, shards: Collection[int]) -> bytes:
        """WATCH and a look, two commands; `read` understands the reply to the look. In this order: a fence that is raised after the
        look must void the transaction."""
        return self._arm_one[next(iter(shards))] if len(shards) == 1 else self._arm(shards)

    def _arm(self, shards: Collection[int]) -> bytes:
        fences, pairs = [self._fence[shard] for shard in shards], [self._pair[shard] for shard in shards]
        return b"".join(
            [command_prefix("WATCH", len(shards)), *fences, command_prefix("MGET", 2 * len(shards)), *pairs]
        )

    def read(self, shards: Collection[int], reply: Sequence[bytes | None]) -> dict[int, Fence]:
        epochs, holders = reply[::2], reply[1::2]
        return {
            shard: Fence(int(epoch or 0), (holder or b"").decode())
            for shard, epoch, holder in zip(shards, epochs, holders, strict=True)
        }

    def set(self, epochs: Mapping[int, int], holder: str | None = None) -> list[bytes]:
        """The commands that raise fences to these epochs; `holder=""` releases them."""
        by = self.holder if holder is None else holder
        return [
            pack(
                ("MSET", self._keys.fence(shard, self.owner), epoch, self._keys.holder(shard, self.owner), by)
            )
            for shard, epoch in epochs.items()
        ]

    def expected(self, shards: Collection[int]) -> list[bytes]:
        """The reply to the look while nobody else took these shards."""
        return [value for shard in shards for value in (b"%d" % self.held[shard], self._holder)]

    def judge(self, found: Mapping[int, Fence]) -> list[int]:
        """-> shards of ours whose fence is gone or older than ours. Fenced if a shard was taken over by another process."""
        taken = {
            shard: fence
            for shard, fence in found.items()
            if fence.epoch > self.held[shard]
            or (fence.epoch == self.held[shard] and fence.holder not in ("", self.holder))
        }
        if taken:
            shard, fence = next(iter(taken.items()))
            raise Fenced(
                f"{self.owner}: epoch {fence.epoch} writes now, this process had epoch {self.held[shard]}; what it still held is not merged",
                taken,
            )
        return [shard for shard, fence in found.items() if fence != (self.held[shard], self.holder)]
