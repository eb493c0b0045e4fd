"""The symbols of the bus, as vendors spell them: what a vendor's client may name.

A spelling is looked up in this order: the symbols that the bus has, `--symbol-map`, the vendor's own rule.
"""

import asyncio
import time
from collections.abc import Mapping

from services.relay.bus_access import ROWS_AT_ONCE, BusAccess
from services.vendors.feed import Feed
from tickbus.errors import RedisError
from tickbus.protocol.names import FEED_KINDS, Stream, is_stream

_REFRESH_SECONDS = 2.0


class Registry:
    def __init__(
        self, access: BusAccess, exceptions: Mapping[str, str], preferred: Mapping[str, str]
    ) -> None:
        """exceptions: canonical -> the vendors' spelling. preferred: vendor -> the feed that answers it."""
        self._access = access
        self._exceptions = {spelling: symbol for symbol, spelling in exceptions.items()}
        self._preferred = preferred
        self._feeds: dict[tuple[str, str], set[str]] = {}
        """(kind, symbol) -> feeds that have it."""
        self._symbols: frozenset[str] = frozenset()
        self._spellings: dict[type[Feed], dict[str, str]] = {}
        self._read_at = -_REFRESH_SECONDS
        self.version = 0
        """Changes with the streams that there are."""
        self.users = 0
        """How many clients look things up."""

    async def run(self) -> None:
        """Keep it fresh while somebody uses it, until cancelled."""
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            if self.users:
                try:
                    await self.refresh()
                except RedisError:
                    continue  # the old one stands; the hub reports the outage

    async def look(self) -> None:
        """Refresh what is older than a look of `run`. RedisError if Redis does not answer."""
        if time.monotonic() - self._read_at >= _REFRESH_SECONDS:
            await self.refresh()

    async def refresh(self) -> None:
        """Read which streams there are. RedisError if Redis does not answer."""
        keys = self._access.keys
        replies = await self._access.ask_all([("HKEYS", keys.last(shard)) for shard in range(keys.shards)])
        feeds: dict[tuple[str, str], set[str]] = {}
        for names in replies:
            for number, raw in enumerate(names):
                if number % ROWS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                name = raw.decode(errors="replace")
                if is_stream(name) and (stream := Stream.parse(name)).kind in FEED_KINDS:
                    feeds.setdefault((stream.kind, stream.symbol), set()).add(stream.feed)
        self._read_at = time.monotonic()
        if feeds == self._feeds:
            return
        self._feeds = feeds
        self.version += 1
        if (symbols := frozenset(symbol for _, symbol in feeds)) != self._symbols:
            self._symbols = symbols
            self._spellings.clear()

    @property
    def symbols(self) -> frozenset[str]:
        """All symbols that a gateway writes."""
        return self._symbols

    def symbol(self, vendor: type[Feed], spelling: str) -> str:
        """Return the canonical symbol of a vendor's spelling."""
        known = self._spellings.get(vendor)
        if known is None:
            known = self._spellings[vendor] = {
                vendor.to_vendor_symbol(symbol): symbol for symbol in sorted(self._symbols)
            }
        upper = spelling.upper()
        return (
            known.get(spelling)
            or known.get(upper)
            or self._exceptions.get(spelling)
            or self._exceptions.get(upper)
            or vendor.from_vendor_symbol(upper)
        )

    def stream(self, vendor_name: str, kind: str, symbol: str) -> Stream | None:
        """Return the stream that a client of this vendor gets; None if no feed has it, or several have."""
        feeds = self._feeds.get((kind, symbol), set())
        preferred = self._preferred.get(vendor_name)
        if preferred is not None:
            return Stream(kind, preferred, symbol) if preferred in feeds else None
        return Stream(kind, next(iter(feeds)), symbol) if len(feeds) == 1 else None

    def preferred(self, vendor_name: str) -> str | None:
        """Return the feed that answers a vendor's clients, if the operator chose one."""
        return self._preferred.get(vendor_name)

    def knows(self, vendor_name: str, vendor: type[Feed], spelling: str) -> bool:
        """Whether a client of this vendor can get trades or quotes of this symbol."""
        symbol = self.symbol(vendor, spelling)
        return any(self.stream(vendor_name, kind, symbol) is not None for kind in FEED_KINDS)
