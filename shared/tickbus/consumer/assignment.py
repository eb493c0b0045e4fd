"""Which replica of a service owns which shard. Pure.

Every replica computes the same answer independently: rendezvous hashing over the live members. A member that
leaves moves only its own shards, one that joins only takes. The answer says who should own a shard; the
fences of the shards say who may.
"""

from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from typing import NamedTuple


def assign(members: Collection[str], shards: Collection[int]) -> dict[int, str]:
    """Return shard -> the member that should own it; the same in every process. Empty without members."""
    if not members:
        return {}
    return {shard: max(members, key=lambda member: (_weight(member, shard), member)) for shard in shards}


def _weight(member: str, shard: int) -> bytes:
    return blake2b(f"{member} {shard}".encode(), digest_size=8).digest()


class Watch:
    """Which members are alive, judged by the heartbeats that this process has seen itself.

    A heartbeat is the bus time until which its member counts as alive; negative: it announced its end. A
    member is alive while its heartbeat changes at least once per `ttl`. A missing heartbeat proves nothing,
    as a failover of Redis may have lost it: a member is dead only after watching for a whole `ttl` without
    interruption.
    """

    def __init__(self, me: str, ttl: float) -> None:
        """`ttl`: seconds."""
        self._me = me
        self._ttl = ttl
        self._heartbeats: dict[str, int] = {}
        self._last_change: dict[str, float] = {}
        """When a member's heartbeat last changed."""
        self._ended: set[str] = set()
        self._watching_since = self._refreshed_at = float("-inf")

    def interrupt(self) -> None:
        """The connection was lost: what happened in the meantime was not observed."""
        self._refreshed_at = float("-inf")

    def observe(self, heartbeats: Mapping[str, int], bus_ms: int, now: float) -> None:
        """Take in all current heartbeats. `now`: monotonic seconds."""
        if now - self._refreshed_at > self._ttl / 2:  # a stalled process has not been watching either
            self._watching_since = now
            self._last_change = dict.fromkeys(self._last_change, now)
        self._refreshed_at = now
        for member, until in heartbeats.items():
            previous = self._heartbeats.get(member)
            self._heartbeats[member] = until
            if until < 0:
                self._ended.add(member)
                self._last_change.pop(member, None)
            elif until != previous and (previous is not None or until > bus_ms):
                self._last_change[member] = now
        self._last_change = {member: at for member, at in self._last_change.items() if now - at < self._ttl}
        self._heartbeats = {
            member: until
            for member, until in self._heartbeats.items()
            if member in heartbeats or member in self._last_change
        }
        self._ended &= self._heartbeats.keys()

    @property
    def alive(self) -> frozenset[str]:
        """The live members, including this process."""
        return frozenset(self._last_change) | {self._me}

    def free(self, holder: str) -> bool:
        """Return whether a shard with this holder may be taken over."""
        if holder in ("", self._me) or holder in self._ended:
            return True
        return holder not in self._last_change and self._refreshed_at - self._watching_since >= self._ttl


class Plan(NamedTuple):
    """What a replica has to do next."""

    taken: frozenset[int]
    """Owned until now, but another process has already taken them over."""
    release: frozenset[int]
    """Owned, and to be released."""
    claim: frozenset[int]
    """To be taken over: assigned to us, and free."""
    orphaned: frozenset[int]
    """Neither owned nor wanted, yet we are their holder: releasing them failed."""

    def __bool__(self) -> bool:
        return any(self)


def plan(
    me: str, wanted: Collection[int], owned: Mapping[int, int], fences: Mapping[int, tuple[int, str]],
    free: Callable[[str], bool],
) -> Plan:  # fmt: skip
    """Return what replica `me` has to do.

    `owned`: shard -> epoch under which we own it; `fences`: shard -> epoch and holder as last seen. These
    may be older than `owned`; an epoch older than ours takes nothing away.
    """
    taken = frozenset(
        shard
        for shard, epoch in owned.items()
        if fences[shard][0] > epoch or (fences[shard][0] == epoch and fences[shard][1] not in ("", me))
    )
    return Plan(
        taken,
        frozenset(owned.keys() - taken - set(wanted)),
        frozenset(shard for shard in wanted if shard not in owned and free(fences[shard][1])),
        frozenset(
            shard
            for shard, (_, holder) in fences.items()
            if holder == me and shard not in owned and shard not in wanted
        ),
    )
