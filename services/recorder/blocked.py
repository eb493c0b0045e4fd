"""Shards that cannot be recorded now, and why. Pure but for the log."""

import logging
from collections.abc import Callable, Collection

log = logging.getLogger("tickbus.recorder")

_TOLD = 4
"""So many shards are told one by one; a full disk stops all of them, and that is one more line."""


class BlockedShards:
    """Their entries wait on the bus, what was read of them stays buffered and spooled; the others go on."""

    def __init__(self, tag: Callable[[int], str]) -> None:
        """`tag`: a shard's number as in names."""
        self._tag = tag
        self._reasons: dict[int, str] = {}

    def __contains__(self, shard: int) -> bool:
        return shard in self._reasons

    def __len__(self) -> int:
        return len(self._reasons)

    def __str__(self) -> str:
        """For readiness; empty if there are none."""
        if not self._reasons:
            return ""
        shard, reason = next(iter(self._reasons.items()))
        others = f" (and {len(self._reasons) - 1} more shards)" if len(self._reasons) > 1 else ""
        return f"cannot record shard {self._tag(shard)}{others}: {reason}"

    def block(self, shard: int, error: Exception) -> None:
        known = shard in self._reasons
        self._reasons[shard] = str(error)
        if known:
            return
        if len(self._reasons) <= _TOLD:
            log.error(
                "shard %s: cannot record it: %s; its entries wait on the bus, retrying; fix: %s",
                self._tag(shard),
                error,
                _remedy(error),
            )
        elif len(self._reasons) == _TOLD + 1:
            log.error("more shards cannot be recorded; their number is tickbus_recorder_blocked_shards")

    def unblock(self, shard: int) -> None:
        if self._reasons.pop(shard, None) is None:
            return
        log.debug("shard %s is recorded again", self._tag(shard))
        if not self._reasons:
            log.info("all shards are recorded again")

    def forget(self, shards: Collection[int]) -> None:
        """Another process owns these now."""
        for shard in shards:
            self._reasons.pop(shard, None)


def _remedy(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "restore the folder, or restart if it is gone for good"
        case PermissionError():
            return "let this user write there"
        case OSError():
            return "free disk space, or mend the disk or the folder"
        case _:
            return "as it says, or wait"
