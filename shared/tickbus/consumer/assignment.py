"""Which replica of a service works which shard. Pure.

Every replica comes to the same answer by itself: rendezvous hashing over the members that are alive. A member that leaves moves
only its own shards, one that joins only takes. The answer says who should; the fences of the shards say who may.
"""

from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from typing import NamedTuple


def assign(members: Collection[str], shards: Collection[int]) -> dict[int, str]:
    """Shard -> the member that should work it; the same in every process. Empty without members."""
    if not members:
        return {}
    return {shard: max(members, key=lambda member: (_weight(member, shard), member)) for shard in shards}


def _weight(member: str, shard: int) -> bytes:
    return blake2b(f"{member} {shard}".encode(), digest_size=8).digest()


class Watch:
    """Who is alive, by the heartbeats that this process has seen itself.

    A heartbeat is the bus time until which its member counts as alive; negative: it said that it ended. A member is alive
    while its heartbeat changes at least once per `ttl`. One that cannot be found proves nothing, as a failover of Redis may
    have lost it: only after watching for a whole `ttl` without a break nobody is there.
    """

    def __init__(self, me: str, ttl: float) -> None:
        """`ttl`: seconds."""
        self._me = me
        self._ttl = ttl
        self._heartbeats: dict[str, int] = {}
        self._changed: dict[str, float] = {}
        """When a member's heartbeat was last seen to change."""
        self._ended: set[str] = set()
        self._since = self._looked = float("-inf")

    def interrupt(self) -> None:
        """The connection was lost: what happened meanwhile was not seen."""
        self._looked = float("-inf")

    def see(self, heartbeats: Mapping[str, int], bus_ms: int, now: float) -> None:
        """All heartbeats as they stand. `now`: monotonic seconds."""
        if now - self._looked > self._ttl / 2:  # a process that stood still has not watched either
            self._since = now
            self._changed = dict.fromkeys(self._changed, now)
        self._looked = now
        for member, until in heartbeats.items():
            before = self._heartbeats.get(member)
            self._heartbeats[member] = until
            if until < 0:
                self._ended.add(member)
                self._changed.pop(member, None)
            elif until != before and (before is not None or until > bus_ms):
                self._changed[member] = now
        self._changed = {member: at for member, at in self._changed.items() if now - at < self._ttl}
        self._heartbeats = {
            member: until
            for member, until in self._heartbeats.items()
            if member in heartbeats or member in self._changed
        }
        self._ended &= self._heartbeats.keys()

    @property
    def alive(self) -> frozenset[str]:
        """This process among them."""
        return frozenset(self._changed) | {self._me}

    def free(self, holder: str) -> bool:
        """Whether a shard that stands in this name may be taken."""
        if holder in ("", self._me) or holder in self._ended:
            return True
        return holder not in self._changed and self._looked - self._since >= self._ttl


class Plan(NamedTuple):
    """What a replica does next."""

    taken: frozenset[int]
    """Held until now, and somebody else's already."""
    leave: frozenset[int]
    """Held, and to be given back."""
    claim: frozenset[int]
    """To be taken over: ours by assignment, and free."""
    stray: frozenset[int]
    """Not held and not wanted, yet they stand in our name: giving them back did not work."""

    def __bool__(self) -> bool:
        return any(self)


def plan(
    me: str, wanted: Collection[int], held: Mapping[int, int], fences: Mapping[int, tuple[int, str]], free: Callable[[str], bool],
) -> Plan:  # fmt: skip
    """`held`: shard -> epoch under which we hold it; `fences`: shard -> epoch and holder as they were seen last.

    What was seen may be older than what is held; an older epoch than ours takes nothing away.
    """
    taken = frozenset(
        shard
        for shard, epoch in held.items()
        if fences[shard][0] > epoch or (fences[shard][0] == epoch and fences[shard][1] not in ("", me))
    )
    return Plan(
        taken,
        frozenset(held.keys() - taken - set(wanted)),
        frozenset(shard for shard in wanted if shard not in held and free(fences[shard][1])),
        frozenset(
            shard
            for shard, (_, holder) in fences.items()
            if holder == me and shard not in held and shard not in wanted
        ),
    )
