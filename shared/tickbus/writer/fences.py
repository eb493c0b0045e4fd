"""Fences: which process may write a shard of an owner, a feed or a service. Pure.

Redis stores per shard the epoch (`fence:<owner>`) and the process that raised it (`holder:<owner>`; empty
after a clean exit). Both are set in one transaction, which is void if they were modified since they were
read. A writer owns the shard while it finds its own pair there. A higher epoch, or its own epoch raised by
another process, means that it was replaced. A lower epoch, or none, means that Redis lost history (a
failover, a flush) and that no other process wrote since: the fence is set again.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from tickbus.errors import Fenced
from tickbus.protocol.names import Keys
from tickbus.redis.resp import command_prefix, pack, pack_bulk


class Fence(NamedTuple):
    """The fence of one shard as stored in Redis."""

    epoch: int
    """0 for none."""
    holder: str
    """Empty if it was released, or never held."""


def read_fence(epoch: bytes | None, holder: bytes | None) -> Fence:
    """Return a fence as stored. No number is no fence: some other program wrote it, and it is set again."""
    if epoch is None or not epoch.isdigit() or len(epoch) > _MAX_DIGITS:
        return Fence(0, "")
    return Fence(int(epoch), (holder or b"").decode(errors="backslashreplace"))


_HOLDER = re.compile(r"[^:\s]+:[0-9]+:[0-9a-z]+")
"""As tickbus.writer.holder makes them; anything else was written by some other program."""
_MAX_DIGITS = 15
"""Of an epoch: no bus gets that far, and heads store epochs in 64 bits."""


class Fences:
    """The fences of one owner, and which of them this process holds."""

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
        """Return two commands: WATCH, and an MGET whose reply `parse` understands.

        In this order: a fence raised after the MGET must void the transaction.
        """
        return self._arm_one[next(iter(shards))] if len(shards) == 1 else self._arm(shards)

    def _arm(self, shards: Collection[int]) -> bytes:
        fences, pairs = [self._fence[shard] for shard in shards], [self._pair[shard] for shard in shards]
        return b"".join(
            [command_prefix("WATCH", len(shards)), *fences, command_prefix("MGET", 2 * len(shards)), *pairs]
        )

    def parse(self, shards: Collection[int], reply: Sequence[bytes | None]) -> dict[int, Fence]:
        epochs, holders = reply[::2], reply[1::2]
        return {
            shard: read_fence(epoch, holder)
            for shard, epoch, holder in zip(shards, epochs, holders, strict=True)
        }

    def set(self, epochs: Mapping[int, int], holder: str | None = None) -> list[bytes]:
        """Return the commands that raise fences to these epochs; `holder=""` releases them."""
        by = self.holder if holder is None else holder
        return [
            pack(
                ("MSET", self._keys.fence(shard, self.owner), epoch, self._keys.holder(shard, self.owner), by)
            )
            for shard, epoch in epochs.items()
        ]

    def expected(self, shards: Collection[int]) -> list[bytes]:
        """Return the reply to the MGET while no other process has taken these shards."""
        return [value for shard in shards for value in (b"%d" % self.held[shard], self._holder)]

    def check(self, found: Mapping[int, Fence]) -> list[int]:
        """Return the held shards whose fence is missing or older. Fenced if another process took one over."""
        taken = {
            shard: fence
            for shard, fence in found.items()
            # both are always set together: a higher epoch of our own, or one of no process, is not a takeover
            if fence.holder != self.holder
            and (not fence.holder or _HOLDER.fullmatch(fence.holder))
            and (fence.epoch > self.held[shard] or (fence.epoch == self.held[shard] and fence.holder))
        }
        if taken:
            shard, fence = next(iter(taken.items()))
            raise Fenced(
                f"{self.owner}: fenced by epoch {fence.epoch}, this process had epoch {self.held[shard]};"
                " its pending entries are not merged",
                taken,
            )
        return [shard for shard, fence in found.items() if fence != (self.held[shard], self.holder)]
