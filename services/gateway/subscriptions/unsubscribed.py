"""Streams that a gateway no longer subscribes to end with a Gap of kind `unsubscribed`, stored at its start.

Without it a symbol taken out of --symbols, or missing in those of a standby that took over, looks like a
quiet market for ever.
"""

from collections.abc import Collection, Mapping

from tickbus.errors import WireError
from tickbus.protocol.codec import Head, decode, encode
from tickbus.protocol.messages import Gap, GapKind, StreamKind
from tickbus.protocol.names import FEED_KINDS, Keys, Stream
from tickbus.redis.link import Connection
from tickbus.units import MILLISECOND
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.heads import HeadBuilder

_LABEL = GapKind.UNSUBSCRIBED.name.lower()


async def find_dropped(
    link: Connection, keys: Keys, feed: str, heads: Mapping[str, Head], subscribed: Collection[str]
) -> dict[str, Head]:
    """Return the heads of the feed's streams that have entries, are not subscribed, and do not say so yet."""
    dropped = {}
    for name, head in heads.items():
        stream = Stream.parse(name)
        if stream.feed != feed or stream.kind not in FEED_KINDS or name in subscribed or head.id == "0-0":
            continue
        # unless it was, its newest entry needs no look
        if not head.gaps.get(_LABEL) or not await _ends_so(link, keys.stream(stream)):
            dropped[name] = head
    return dropped


async def find_returning(
    link: Connection, keys: Keys, heads: Mapping[str, Head], subscribed: Collection[str]
) -> set[str]:
    """Return the names of subscribed streams that were not subscribed until now."""
    return {
        name
        for name in subscribed
        if name in heads
        and heads[name].gaps.get(_LABEL)
        and await _ends_so(link, keys.stream(Stream.parse(name)))
    }


async def _ends_so(link: Connection, key: str) -> bool:
    """Return whether the newest entry of a stream is such a Gap, or was trimmed."""
    rows = await link.ask("XREVRANGE", key, "+", "-", "COUNT", 1)
    if not rows:
        return True
    (_, (field, payload, *_)) = rows[0]
    try:
        message = decode(field, payload)
    except WireError:
        return True
    return isinstance(message, Gap) and message.kind is GapKind.UNSUBSCRIBED


def end(
    keys: Keys, name: str, head: Head, now_ns: int, epochs: Mapping[int, int], source: str
) -> tuple[Entry, HeadBuilder]:
    """Return the Gap as the next entry of a stream, and its head after that.

    epochs: the epoch of this writer by shard.
    """
    stream = Stream.parse(name)
    writer, builder = StreamWriter(keys, stream), HeadBuilder(head)
    builder.begin(epochs[writer.shard])
    kind = StreamKind.TRADE if stream.kind == "trade" else StreamKind.QUOTE
    gap = Gap(
        kind, source, GapKind.UNSUBSCRIBED, now_ns, now_ns, None, None, None, False, False, stream.symbol
    )
    entry = Entry(
        writer, max(now_ns // MILLISECOND, builder.ms), builder.seq + 1, b"g", encode(gap), builder.vendor_id,
        now_ns,
    )  # fmt: skip
    builder.add(entry, gap)
    return entry, builder
