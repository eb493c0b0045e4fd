"""What can be read and how it is asked for: the same from Redis (`tickbus.bus`) and from a relay
(`tickbus.remote`)."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack, overload
from weakref import WeakSet

from tickbus.errors import ConfigError
from tickbus.protocol.bar_specs import parse_all
from tickbus.protocol.messages import Bar, Gap, Message, Quote, Signal, Trade
from tickbus.protocol.names import KINDS, Stream, StreamId, check_name, check_symbol
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.protocol.wants import SubscriptionState, Topic
from tickbus.reader.reads import FROM_START, NOW, Start, parse_start
from tickbus.subscription import PollReader, Subscription, parse_cursor
from tickbus.units import MILLISECOND, parse_duration
from tickbus.wants import Lease, Want, make_topics


class _Choice(TypedDict, total=False):
    """The options of `Bus.read` that do not change the type of its messages."""

    symbols: Collection[str] | None
    feeds: Collection[str] | None
    specs: Collection[str] | None
    start: Start | None
    cursor: Mapping[str, str] | None
    late: bool
    want: bool


class _Streams(TypedDict, total=False):
    """The options of `Bus.snapshot`."""

    symbols: Collection[str] | None
    feeds: Collection[str] | None
    specs: Collection[str] | None


class Readable(ABC):
    """Streams of messages to read, and snapshots of them. Leaving it ends all its subscriptions."""

    def __init__(self) -> None:
        # weak: a subscription that nobody uses any more must not live as long as the bus
        self._subscriptions: WeakSet[Subscription[Any]] = WeakSet()

    @overload
    def read(
        self, kind: Literal["trade"] = ..., *, gaps: Literal[False], **choice: Unpack[_Choice]
    ) -> Subscription[Trade]: ...
    @overload
    def read(
        self, kind: Literal["trade"] = ..., *, gaps: bool = ..., **choice: Unpack[_Choice]
    ) -> Subscription[Trade | Gap]: ...
    @overload
    def read(
        self, kind: Literal["quote"], *, gaps: Literal[False], **choice: Unpack[_Choice]
    ) -> Subscription[Quote]: ...
    @overload
    def read(
        self, kind: Literal["quote"], *, gaps: bool = ..., **choice: Unpack[_Choice]
    ) -> Subscription[Quote | Gap]: ...
    @overload
    def read(
        self, kind: Literal["bar"], *, gaps: Literal[False], **choice: Unpack[_Choice]
    ) -> Subscription[Bar]: ...
    @overload
    def read(
        self, kind: Literal["bar"], *, gaps: bool = ..., **choice: Unpack[_Choice]
    ) -> Subscription[Bar | Gap]: ...
    @overload
    def read(
        self, kind: Literal["signal"], *, gaps: Literal[False], **choice: Unpack[_Choice]
    ) -> Subscription[Signal]: ...
    @overload
    def read(
        self, kind: Literal["signal"], *, gaps: bool = ..., **choice: Unpack[_Choice]
    ) -> Subscription[Signal | Gap]: ...
    @overload
    def read(self, kind: str, *, gaps: bool = ..., **choice: Unpack[_Choice]) -> Subscription[Message]: ...
    def read(
        self,
        kind: str = "trade",
        *,
        symbols: Collection[str] | None = None,
        feeds: Collection[str] | None = None,
        specs: Collection[str] | None = None,
        start: Start | None = None,
        cursor: Mapping[str, str] | None = None,
        gaps: bool = True,
        late: bool = True,
        want: bool = False,
    ) -> Subscription[Any]:
        """Return messages of one kind to iterate over, in order per stream, forever and over reconnects.

        kind: `trade`, `quote`, `bar` or `signal`.
        symbols, feeds, specs (of bars, like `time:1m`): which streams; None means all. Streams that appear
            later are read from their first entry.
        start: `"now"` (the default), `"start"` (the oldest entry retained) or a time: a number since the
            epoch in s, ms, us or ns, a datetime or ISO text, UTC unless it says otherwise.
        cursor: from `Subscription.cursor` or `snapshot`: resume exactly there. Streams that are not in it
            begin at `start`, which then defaults to `"start"`: they are new.
        gaps: whether Gap messages are delivered too: holes that the gateway reported, and entries that were
            trimmed before they were read.
        late: whether ticks that arrived out of order, and the Gaps that report them as repaired, are
            delivered too.
        want: whether the gateway is asked to subscribe to these symbols while the iteration runs, as by
            `want`; then `symbols` must be given, and `feeds` unless the bus has only one.

        Errors: ConfigError for invalid arguments; while iterating, those of `Subscription`.

            async for tick in bus.read("trade", symbols=["BTC-USDT"]):
                match tick:
                    case Trade():
                        print(tick.price, tick.size)
                    case Gap():
                        print("missing:", tick.count)
        """
        streams = make_filter((kind,), symbols, feeds, specs)
        begin = parse_start(start if start is not None else NOW if cursor is None else FROM_START)
        topics = make_topics(kind, symbols or ()) if want else ()
        if want and feeds is not None and len(feeds) != 1:
            raise ConfigError(f"invalid feeds {feeds!r}: with want=True expected one, which is asked")
        subscription: Subscription[Any] = Subscription(
            partial(self._open_reader, kind, streams, want),
            begin,
            parse_cursor(kind, cursor or {}),
            kind,
            gaps,
            late,
            self._wanting(streams, topics) if want else None,
        )
        self._subscriptions.add(subscription)
        return subscription

    @overload
    async def snapshot(
        self, kind: Literal["trade"] = ..., **streams: Unpack[_Streams]
    ) -> dict[Stream, tuple[StreamId, Trade]]: ...
    @overload
    async def snapshot(
        self, kind: Literal["quote"], **streams: Unpack[_Streams]
    ) -> dict[Stream, tuple[StreamId, Quote]]: ...
    @overload
    async def snapshot(
        self, kind: Literal["bar"], **streams: Unpack[_Streams]
    ) -> dict[Stream, tuple[StreamId, Bar]]: ...
    @overload
    async def snapshot(
        self, kind: Literal["signal"], **streams: Unpack[_Streams]
    ) -> dict[Stream, tuple[StreamId, Signal]]: ...
    @overload
    async def snapshot(
        self, kind: str, **streams: Unpack[_Streams]
    ) -> dict[Stream, tuple[StreamId, Message]]: ...
    async def snapshot(
        self,
        kind: str = "trade",
        *,
        symbols: Collection[str] | None = None,
        feeds: Collection[str] | None = None,
        specs: Collection[str] | None = None,
    ) -> dict[Stream, tuple[StreamId, Any]]:
        """Return the newest message of each stream that has one, with the ID up to which it is then known.

        Message and ID of a stream are read in one step, so reading on from there has neither a hole nor a
        duplicate. What this version cannot read is left out, and logged. The arguments are those of `read`.

        Errors: ConfigError for invalid arguments; RedisError.

            newest = await bus.snapshot("quote", symbols=["BTC-USDT"])
            cursor = {stream.name: str(id) for stream, (id, _) in newest.items()}
            async for tick in bus.read("quote", symbols=["BTC-USDT"], cursor=cursor):
                ...
        """
        return await self._snapshot(kind, make_filter((kind,), symbols, feeds, specs))

    def want(
        self,
        kind: str | Collection[str] = "trade",
        *,
        symbols: Collection[str],
        feed: str,
        name: str = "",
        lease: str = "15s",
    ) -> Want:
        """Return what makes the gateway of a feed subscribe to symbols, while the program is inside of it.

        kind: `trade`, `quote` or both.
        symbols: canonical symbols: `BTC-USDT`, `AAPL.US`.
        feed: the name of the feed.
        name: begins the name under which the want stands in Redis, for the operator's rules (`--wants`);
            behind a relay it stands under the relay's.
        lease: after this time without a sign of life of this process its wants end: 1s to 30s.

        Errors: ConfigError for invalid arguments. While the bus is away, it is told later.

            async with bus.want("trade", symbols=["ETH-USDT"], feed="binance"):
                print(await bus.subscriptions("binance"))
        """
        try:
            ttl_ms = parse_duration(lease) // MILLISECOND
        except ValueError as error:
            raise ConfigError(f"lease: {error}") from None
        return Want(self._lease(feed, name, ttl_ms), make_topics(kind, symbols))

    async def subscriptions(self, feed: str) -> dict[Stream, SubscriptionState]:
        """Return what the gateway of a feed is subscribed to, or asked for and why it is not.

        Errors: ConfigError for an invalid name; RedisError, or RelayError of a relay.

            for stream, state in (await bus.subscriptions("binance")).items():
                print(stream.kind, stream.symbol, state.state, state.reason)
        """
        return await self._read_subscriptions(check_name(feed))

    @abstractmethod
    def _lease(self, feed: str, name: str, ttl_ms: int) -> Lease:
        """Return a lease for checked arguments."""

    @abstractmethod
    async def _read_subscriptions(self, feed: str) -> dict[Stream, SubscriptionState]:
        """Return the states of a feed with a valid name."""

    def _wanting(
        self, streams: StreamFilter, topics: Sequence[Topic]
    ) -> "Callable[[], Awaitable[Want]] | None":
        """Return what asks for topics while they are read; None if the reader itself does."""
        return None

    @abstractmethod
    async def _open_reader(
        self,
        kind: str,
        streams: StreamFilter,
        want: bool,
        start: str | StreamId,
        positions: Mapping[str, StreamId],
    ) -> PollReader:
        """Return a reader for checked arguments. want: whether its symbols are asked for meanwhile."""

    @abstractmethod
    async def _snapshot(self, kind: str, streams: StreamFilter) -> dict[Stream, tuple[StreamId, Any]]:
        """Return the newest messages for checked arguments."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.close()


def make_filter(
    kinds: Collection[str],
    symbols: Collection[str] | None,
    feeds: Collection[str] | None,
    specs: Collection[str] | None,
) -> StreamFilter:
    """Return the filter. ConfigError for invalid arguments."""
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"invalid kind {kind!r}: expected one of {', '.join(KINDS)}")
    for name, chosen in (("symbols", symbols), ("feeds", feeds), ("specs", specs)):
        if isinstance(chosen, str):
            raise ConfigError(f"invalid {name} {chosen!r}: expected a list, e.g. {name}=[{chosen!r}]")
        if chosen is not None and not chosen:
            raise ConfigError(f"invalid {name} {chosen!r}: expected at least one, or leave it out for all")
    for symbol in symbols or ():
        check_symbol(symbol)
    for feed in feeds or ():
        check_name(feed)
    if specs is not None and set(kinds) != {"bar"}:
        raise ConfigError(f"invalid specs: only bars have a spec; leave it out for {' and '.join(kinds)}")
    return StreamFilter.of(kinds, feeds or (), symbols or (), [spec.text for spec in parse_all(specs or ())])
