"""Compares this gateway with the running one of the same name, while it stands by.

The owner describes itself in `tickbus:meta`. A gateway of another vendor, or for other kinds, would write
other streams under the same name: it refuses to start. One with other symbols may stand by, because a
rolling change of symbols looks the same; but a takeover would then end some streams, so it says so.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection

import msgspec

from tickbus.errors import ConfigError, RedisError
from tickbus.protocol.names import Keys
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.registry import Standby, read_feed, write_standby
from tickbus.sanitize import clean

log = logging.getLogger("tickbus.gateway")

_SECONDS = 1.0
_TTL_MS = 5_000


class Description(msgspec.Struct, frozen=True):
    """What a gateway of some name writes."""

    feed: str
    kinds: list[str]
    symbols: int
    digest: str
    """Of the symbols."""

    @classmethod
    def of(cls, feed: str, kinds: Collection[str], symbols: Collection[str]) -> "Description":
        digest = hashlib.sha256("\n".join(sorted(symbols)).encode()).hexdigest()[:16]
        return cls(feed, sorted(kinds), len(symbols), digest)

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def decode(stored: bytes | None) -> Description | None:
    """Return a stored description; None if there is none, or an older version wrote it."""
    try:
        return msgspec.json.decode(stored or b"", type=Description)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


class StandbyCheck:
    """Compares with the owner until it is cancelled."""

    def __init__(
        self,
        name: str,
        keys: Keys,
        holder: str,
        own: Description,
        connect: Callable[[], Awaitable[Connection]],
    ) -> None:
        self._name = name
        self._keys = keys
        self._holder = holder
        self._own = own
        self._connect = connect
        self.differs = ""
        """In what the owner differs, if a takeover would change something; for status and metrics."""

    async def run(self) -> None:
        """ConfigError if a running gateway of this name has another feed or other kinds."""
        link: Connection | None = None
        try:
            while True:
                try:
                    if link is None or link.closed:
                        link = await self._connect()
                    await self._compare(link)
                except (RedisError, ReplyError) as error:  # the lease reports that Redis is away
                    log.debug("%s: cannot compare with the running gateway: %s", self._name, error)
                await asyncio.sleep(_SECONDS)
        finally:
            self.differs = ""
            if link is not None:
                link.close()

    async def _compare(self, link: Connection) -> None:
        held = await link.ask("GET", self._keys.lease(self._name))
        owner = decode(await read_feed(link, self._keys, self._name))
        if held is None or held == self._holder.encode() or owner is None:
            self.differs = ""
            return
        who = f"a gateway named {self._name!r} is running ({clean(held.decode(errors='replace'))})"
        if owner.feed != self._own.feed:
            raise ConfigError(
                f"{who} with --feed {clean(owner.feed)}, this one has {self._own.feed}; use another --name"
            )
        if owner.kinds != self._own.kinds:
            theirs, ours = clean(",".join(owner.kinds)), ",".join(self._own.kinds)
            raise ConfigError(
                f"{who} with --kinds {theirs}, this one has {ours}; use another --name, or stop it first"
            )
        differs = owner.digest != self._own.digest
        if differs and not self.differs:
            log.warning(
                "%s with other symbols (%d, this one has %d); a takeover would change which are subscribed",
                who,
                owner.symbols,
                self._own.symbols,
            )
        self.differs = f"symbols: {self._own.symbols}, running {owner.symbols}" if differs else ""
        await write_standby(link, self._keys, self._name, Standby(self._holder, self.differs), _TTL_MS)
