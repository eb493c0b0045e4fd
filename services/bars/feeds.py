"""Which feeds there is something to build bars from. Pure: names of streams in, what to report out."""

from collections import Counter
from collections.abc import Collection, Iterable

from tickbus.protocol.names import FEED_KINDS, Stream


class FeedStreams:
    """The trade streams of each feed on the bus. A feed that has only quotes makes no bars."""

    def __init__(self, feeds: Collection[str] = ()) -> None:
        """`feeds`: those to build bars of; empty means all."""
        self._wanted = frozenset(feeds)
        self.trades: dict[str, int] = {}
        """Feed -> number of its trade streams, as of the last look at the registry."""
        self.only_quotes: dict[str, int] = {}
        """Feed without trade streams -> number of its quote streams."""

    def look(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Take the names of all streams on the bus. Return the feeds that have only quotes now, and those
        that have trades now and had none.
        """
        streams = {kind: Counter[str]() for kind in FEED_KINDS}
        for name in names:
            kind = name.partition(":")[0]
            if kind in streams:
                streams[kind][Stream.parse(name).feed] += 1
        trades, quotes = streams["trade"], streams["quote"]
        feeds = self._wanted or trades.keys() | quotes.keys()
        before = self.only_quotes
        self.trades = {feed: trades[feed] for feed in sorted(feeds)}
        self.only_quotes = {feed: quotes[feed] for feed in sorted(feeds) if quotes[feed] and not trades[feed]}
        return (
            [feed for feed in self.only_quotes if feed not in before],
            [feed for feed in before if self.trades.get(feed)],
        )

    @property
    def fault(self) -> str:
        """Why there is nothing to build bars from; empty if there is something, or nothing is known yet."""
        if not self.only_quotes or any(self.trades.values()):
            return ""
        return f"no bars: {', '.join(self.only_quotes)}: only quotes on the bus, no trades"
