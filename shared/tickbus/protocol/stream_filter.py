"""Which streams a service or subscription reads. Pure.

Each service stores its filter as JSON in `tickbus:meta`, so that others can compute its lag.
"""

from collections.abc import Collection

import msgspec

from tickbus.protocol.names import Stream


class StreamFilter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Empty means all. Called with a Stream, it returns whether the stream matches."""

    kinds: frozenset[str] = frozenset()
    feeds: frozenset[str] = frozenset()
    symbols: frozenset[str] = frozenset()
    specs: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        kinds: Collection[str] = (),
        feeds: Collection[str] = (),
        symbols: Collection[str] = (),
        specs: Collection[str] = (),
    ) -> "StreamFilter":
        """Return the filter for these; empty means all."""
        return cls(frozenset(kinds), frozenset(feeds), frozenset(symbols), frozenset(specs))

    def __call__(self, stream: Stream) -> bool:
        """Whether the stream matches."""
        return (
            (not self.kinds or stream.kind in self.kinds)
            and (not self.feeds or stream.feed in self.feeds)
            and (not self.symbols or stream.symbol in self.symbols)
            and (not self.specs or stream.spec in self.specs)
        )

    def overlaps(self, other: "StreamFilter") -> bool:
        """Whether a stream may match both."""
        pairs = (
            (self.kinds, other.kinds),
            (self.feeds, other.feeds),
            (self.symbols, other.symbols),
            (self.specs, other.specs),
        )
        return all(not ours or not theirs or ours & theirs for ours, theirs in pairs)


encode_filter = msgspec.json.Encoder(order="deterministic").encode
decode_filter = msgspec.json.Decoder(StreamFilter).decode
