"""Wants in Redis: how a holder keeps them alive, and how a gateway reads them.

All keys of a feed's wants live in one slot: a sorted set of holders, whose scores rise with every change, and
a hash per holder, which Redis ends by itself. So a look costs one command, and one more for each holder, all
sent at once; a hash is read only when it changed. docs/decisions/0021-wants.md has the figures.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tickbus.protocol.names import Keys
from tickbus.protocol.wants import WANT_TTL_MS, Topic
from tickbus.redis.link import Connection, Reply, ReplyError
from tickbus.redis.resp import Command, pairs
from tickbus.sanitize import clean

log = logging.getLogger("tickbus")

MARK = "#read"
"""A member of the sorted set that the gateway puts there: if it is gone, Redis lost the wants. No holder has
such a name."""
MAX_HOLDERS = 10_000
MAX_WANTS = 10_000
"""Of one holder. More holders are not read, and a holder with more wants not at all; either is logged."""

_PIECE = 500
"""Commands sent at once: about a millisecond of the event loop."""

_GONE, _ENDLESS = -2, -1
"""Replies to PTTL."""


def next_score(before: int) -> int:
    """Return the score after a change: greater than the one before, and than that of an earlier holder of the
    same name, unless the clock was set back."""
    return max(before + 1, time.time_ns() // 1_000_000)


def put_wants(
    keys: Keys, feed: str, holder: str, wants: Mapping[Topic, int], score: int, ttl_ms: int
) -> list[Command]:
    """Return the commands that add to what a holder wants. The score comes last: who sees it sees all.

    wants: since when each is wanted, in ms. score: from `next_score`. ttl_ms: how long it lives.
    """
    key = keys.wants(feed, holder)
    fields = [part for topic, since in wants.items() for part in (topic.field, since)]
    return [
        ("HSET", key, *fields),
        ("PEXPIRE", key, ttl_ms),
        ("ZADD", keys.holders(feed), score, holder),
    ]


def take_wants(keys: Keys, feed: str, holder: str, topics: Iterable[Topic], score: int) -> list[Command]:
    """Return the commands that take some from what a holder wants."""
    fields = [topic.field for topic in topics]
    return [("HDEL", keys.wants(feed, holder), *fields), ("ZADD", keys.holders(feed), score, holder)]


def renew_wants(keys: Keys, feed: str, holder: str, score: int, ttl_ms: int) -> list[Command]:
    """Return the commands that renew them. The first reply is 0 if they are gone: put them again then."""
    return [("PEXPIRE", keys.wants(feed, holder), ttl_ms), ("ZADD", keys.holders(feed), score, holder)]


def drop_wants(keys: Keys, feed: str, holder: str) -> list[Command]:
    """Return the commands that end them at once."""
    return [("DEL", keys.wants(feed, holder)), ("ZREM", keys.holders(feed), holder)]


@dataclass
class FoundWants:
    """What changed since the last look."""

    changed: dict[str, dict[Topic, int]] = field(default_factory=dict)
    """What these holders want now, and since when, in ms."""
    ended: list[str] = field(default_factory=list)
    """Holders whose wants are gone."""
    were_lost: bool = False
    """Whether Redis lost all of them since; also true at the first look of the first gateway ever."""


class WantsReader:
    """Reads the wants of one feed, and only what changed since the last look."""

    def __init__(self, keys: Keys, feed: str) -> None:
        self._keys = keys
        self._feed = feed
        self._scores: dict[str, bytes] = {}
        self._reported: set[str] = set()

    def read_all_again(self) -> None:
        """Let all holders count as changed at the next look."""
        self._scores = dict.fromkeys(self._scores, b"")

    async def read(self, link: Connection) -> FoundWants:
        """Look once. Puts MARK back if it is gone, and removes holders that are. RedisError if Redis is away.

        What some other program wrote there is skipped, and logged once.
        """
        found = FoundWants()
        (flat,) = await link.ask_each(
            [("ZRANGE", self._keys.holders(self._feed), 0, MAX_HOLDERS, "WITHSCORES")]
        )
        if isinstance(flat, ReplyError):
            key = self._keys.holders(self._feed)
            self._report("holders", f"{key}: {flat}; no wants can be read: fix: redis-cli DEL '{key}'")
            flat = []
        scores = {name.decode(errors="replace"): score for name, score in pairs(flat)}
        found.were_lost = scores.pop(MARK, None) is None
        if found.were_lost:
            await link.ask_each([("ZADD", self._keys.holders(self._feed), 0, MARK)])
        if len(scores) >= MAX_HOLDERS:
            self._report("many", f"more than {MAX_HOLDERS} holders of wants: the rest is not read")
        names = list(scores)
        ttls = await _in_pieces(link, [("PTTL", self._keys.wants(self._feed, name)) for name in names])
        gone = [name for name, ttl in zip(names, ttls, strict=True) if ttl == _GONE]
        endless = [name for name, ttl in zip(names, ttls, strict=True) if ttl == _ENDLESS]
        # a holder that died between two commands of its own leaves a hash that would never end
        await _in_pieces(
            link,
            [("PEXPIRE", self._keys.wants(self._feed, name), WANT_TTL_MS) for name in endless]
            + ([("ZREM", self._keys.holders(self._feed), *gone)] if gone else []),
        )
        alive = {name: scores[name] for name in set(names) - set(gone)}
        found.ended = [name for name in self._scores if name not in alive]
        await self._read_changed(
            link, [name for name, score in alive.items() if self._scores.get(name) != score], found
        )
        self._scores = alive
        return found

    async def _read_changed(self, link: Connection, changed: list[str], found: FoundWants) -> None:
        sizes = await _in_pieces(link, [("HLEN", self._keys.wants(self._feed, name)) for name in changed])
        readable = []
        for name, size in zip(changed, sizes, strict=True):
            if isinstance(size, int) and size <= MAX_WANTS:
                readable.append(name)
                continue
            why = f"{size} wants, at most {MAX_WANTS} are read" if isinstance(size, int) else str(size)
            self._report(name, f"wants of {clean(name[:128])} are not read: {why}")
            found.changed[name] = {}
        for name in readable:
            (flat,) = await link.ask_each([("HGETALL", self._keys.wants(self._feed, name))])
            found.changed[name] = {} if isinstance(flat, ReplyError) else self._parse(name, flat)

    def _parse(self, holder: str, flat: list[bytes]) -> dict[Topic, int]:
        wants = {}
        for raw, value in pairs(flat):
            try:
                topic = Topic.parse(raw)
            except ValueError as error:
                self._report(
                    f"{holder} field", f"wants of {clean(holder[:128])}: {clean(str(error))}; ignored"
                )
                continue
            wants[topic] = int(value) if value.isdigit() and len(value) < 16 else 0
        return wants

    def _report(self, what: str, text: str) -> None:
        """Log something once."""
        if what not in self._reported and len(self._reported) < MAX_HOLDERS:
            self._reported.add(what)
            log.warning("%s", text)


async def _in_pieces(link: Connection, commands: Sequence[Command]) -> list[Reply]:
    """Ask many commands, and let the ticks through meanwhile."""
    replies: list[Reply] = []
    for first in range(0, len(commands), _PIECE):
        replies += await link.ask_each(commands[first : first + _PIECE])
    return replies
