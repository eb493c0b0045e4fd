"""The messages that every part of tickbus reads and writes; docs/wire-format.md for other languages.

Each is one MessagePack array, fields in the order below; new fields only at the end, with a default. Prices
and sizes are stored as the vendor's own digits (the `..._text` fields) and read as exact `Decimal`s
(`trade.price`). Times are integers, nanoseconds since the epoch, UTC: `ts_event` is the vendor's clock,
`ts_recv` the gateway's.
"""

from decimal import Decimal
from enum import IntEnum, IntFlag
from typing import Union

import msgspec


class Side(IntEnum):
    """Who crossed the spread: the aggressor (taker), never the resting order."""

    UNKNOWN = 0
    BUY = 1
    SELL = 2

    @classmethod
    def _missing_(cls, value: object) -> "Side":
        """Return UNKNOWN for a value from a newer writer."""
        return cls.UNKNOWN


class Flag(IntFlag):
    """What is special about a trade or quote; several may be set in `flags`."""

    LATE = 1
    """Arrived after ticks with a higher vendor id: fills a hole that a Gap has reported."""
    REPLAYED = 2
    """Sent again from a recording, not live."""
    OFF_BOOK = 4
    """Printed off the order book: does not affect bars."""
    CORRECTED = 8
    CANCELLED = 16
    FUTURE_TIME = 32
    """ts_event is further in the future than clocks differ: must not be used as a clock."""
    BACKFILLED = 64
    """Fetched later from the vendor's history."""
    BAD_TIME = 128
    """The vendor gave no time, or an impossible one: ts_event is ts_recv."""
    DOUBTFUL_ID = 256
    """Its id is that of another trade, or far ahead of all others: without effect on the sequence of ids."""


class GapKind(IntEnum):
    """How ticks got lost."""

    DISCONNECT = 0
    """Lost while the upstream connection, or the gateway, was down."""
    SEQUENCE = 1
    """The vendor's ids jumped on a live connection."""
    RESET = 2
    """The vendor's ids went backwards; the sequence continues from there."""
    STALE = 3
    """The feed was connected but silent."""
    OVERFLOW = 4
    """More ticks than memory (and disk) may buffer while Redis was unavailable."""
    REJECTED = 5
    """Arrived but could not be decoded."""
    TRIMMED = 6
    """Removed by retention before this service read it."""
    VOID = 7
    """Ids that never existed: nothing of the range is missing. Always with repaired = true."""
    UNSUBSCRIBED = 8
    """The symbol was not subscribed: never counted as missing, never repairable."""
    UNKNOWN = 255
    """From a newer writer. Never written."""

    @classmethod
    def _missing_(cls, value: object) -> "GapKind":
        return cls.UNKNOWN


class StreamKind(IntEnum):
    """The kind of stream in which a Gap stands."""

    TRADE = 0
    QUOTE = 1
    BAR = 2
    SIGNAL = 3


class SignalState(IntEnum):
    """What a signal says: a value at a cadence, or that an episode begins or ends."""

    INDICATOR = 0
    START = 1
    END = 2

    @classmethod
    def _missing_(cls, value: object) -> "SignalState":
        """Return INDICATOR for a value from a newer writer."""
        return cls.INDICATOR


class _Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """gc=False: messages hold only text and numbers, so no cycle can include them: nothing to collect."""


class Trade(_Message, frozen=True):
    """One trade, as the vendor printed it.

    symbol: canonical, like `BTC-USDT` or `AAPL.US`.
    price, size: exact Decimals, size in units of the base; `price_text`, `size_text`: the vendor's digits.
    side: the aggressor.
    trade_id: the vendor's; None if it has none.
    ts_event, ts_recv: ns since the epoch; equal where the vendor gives no time.
    flags: of `Flag`.

        if trade.side is Side.BUY and not trade.flags & Flag.OFF_BOOK:
            bought += trade.size
    """

    symbol: str
    price_text: str
    size_text: str
    side: Side
    trade_id: str | None
    ts_event: int
    ts_recv: int
    bid_text: str | None = None
    ask_text: str | None = None
    flags: int = 0

    @property
    def price(self) -> Decimal:
        return Decimal(self.price_text)

    @property
    def size(self) -> Decimal:
        return Decimal(self.size_text)

    @property
    def bid(self) -> Decimal | None:
        """Best bid known when the trade arrived; None without quotes, or until one follows a disconnect."""
        return _decimal(self.bid_text)

    @property
    def ask(self) -> Decimal | None:
        return _decimal(self.ask_text)


class Quote(_Message, frozen=True):
    """Best bid and ask.

    bid, ask, bid_size, ask_size: exact Decimals, each None if that side of the book is empty or the vendor
        does not say.
    ts_event, ts_recv: ns since the epoch.
    flags: of `Flag`.

        if quote.bid is not None and quote.ask is not None:
            spread = quote.ask - quote.bid
    """

    symbol: str
    bid_text: str | None
    bid_size_text: str | None
    ask_text: str | None
    ask_size_text: str | None
    ts_event: int
    ts_recv: int
    flags: int = 0

    @property
    def bid(self) -> Decimal | None:
        return _decimal(self.bid_text)

    @property
    def bid_size(self) -> Decimal | None:
        return _decimal(self.bid_size_text)

    @property
    def ask(self) -> Decimal | None:
        return _decimal(self.ask_text)

    @property
    def ask_size(self) -> Decimal | None:
        return _decimal(self.ask_size_text)


class Gap(_Message, frozen=True):
    """A hole in a stream, reported in that stream before the first tick after it.

    Exact where the vendor has contiguous ids (from_id, to_id, count), else a time range with count None. A
    repaired Gap reports that ticks which an earlier Gap reported as missing are in the stream now.

        if isinstance(tick, Gap) and not tick.repaired:
            print(f"{tick.symbol}: {tick.count or 'unknown'} missing ({tick.kind.name.lower()})")
    """

    stream: StreamKind
    source: str
    """`gateway`, or the name of the service that lost the ticks."""
    kind: GapKind
    from_ts: int
    """Start of the time range in which ticks may be missing, ns."""
    to_ts: int
    from_id: str | None = None
    """First and last missing vendor id, inclusive; None where the vendor has no contiguous ids."""
    to_id: str | None = None
    count: int | None = None
    """How many ticks are missing; None if that cannot be known."""
    repairable: bool = False
    """Whether the vendor has a history from which it could be filled."""
    repaired: bool = False
    """Whether this range was reported missing before, and its ticks are in the stream now."""
    symbol: str = ""


class Bar(_Message, frozen=True):
    """A bar, closed; a later revision replaces it.

    spec: `time:1m`, `tick:100`, ...
    start, end: ns since the epoch; a time bar holds start <= ts_event < end.
    open, high, low, close, volume, value, vwap, buy_volume, sell_volume: exact Decimals.
    trades: how many.
    revision: 0 when it closed, then 1, 2, ...
    quality: empty means complete.

        bars[bar.symbol, bar.start] = bar  # the last revision wins
    """

    spec: str
    start: int
    end: int
    open_text: str
    high_text: str
    low_text: str
    close_text: str
    volume_text: str
    value_text: str
    vwap_text: str | None
    trades: int
    buy_volume_text: str
    sell_volume_text: str
    revision: int = 0
    quality: tuple[str, ...] = ()
    """Any of `partial`, `has_gap`, `repaired`, `clock_ahead`; empty = complete."""
    symbol: str = ""

    @property
    def open(self) -> Decimal:
        return Decimal(self.open_text)

    @property
    def high(self) -> Decimal:
        return Decimal(self.high_text)

    @property
    def low(self) -> Decimal:
        return Decimal(self.low_text)

    @property
    def close(self) -> Decimal:
        return Decimal(self.close_text)

    @property
    def volume(self) -> Decimal:
        return Decimal(self.volume_text)

    @property
    def value(self) -> Decimal:
        """Sum of price x size, in the quote currency."""
        return Decimal(self.value_text)

    @property
    def vwap(self) -> Decimal | None:
        """value / volume, half-even at 18 places; None at zero volume."""
        return _decimal(self.vwap_text)

    @property
    def buy_volume(self) -> Decimal:
        return Decimal(self.buy_volume_text)

    @property
    def sell_volume(self) -> Decimal:
        return Decimal(self.sell_volume_text)


class Signal(_Message, frozen=True):
    """What a signal service or an app has to say of a symbol.

    name: which signal, like `sigma.price`.
    value, threshold: exact Decimals; an indicator has no threshold: 0.
    window: over what it was measured.
    message: for people.
    ts_event: ns since the epoch.
    state: an alert's episode starts and ends; anything else is an indicator.
    direction: 1 up or bought, -1 down or sold, 0 neither.
    unit: of `value`: `sd`, `ratio`, `bp`, ...
    quality: empty means complete.
    episode: ts_event of its start, ns; 0 for an indicator.
    cause: ID of the entry that caused it.
    params: number of the parameters in force.
    details: more numbers, as (name, decimal text).

        Signal("spread", "0.02", "0.01", "1m", "spread above 1 %", "BTC-USDT", trade.ts_event)
    """

    name: str
    value_text: str
    threshold_text: str
    window: str
    message: str
    symbol: str = ""
    ts_event: int = 0
    state: SignalState = SignalState.INDICATOR
    direction: int = 0
    unit: str = ""
    quality: tuple[str, ...] = ()
    """Any of `has_gap`, `partial`."""
    episode: int = 0
    cause: str = ""
    params: int = 0
    details: tuple[tuple[str, str], ...] = ()

    @property
    def value(self) -> Decimal:
        return Decimal(self.value_text)

    @property
    def threshold(self) -> Decimal:
        return Decimal(self.threshold_text)


Message = Union[Trade, Quote, Gap, Bar, Signal]
Tick = Union[Trade, Quote]


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def as_json(message: Message) -> dict[str, object]:
    """Return a message as one flat JSON object.

    Field names of the contract, decimals as text, times in ns, enums and flags by name.
    """
    row: dict[str, object] = {}
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if isinstance(value, IntEnum):
            value = value.name.lower()
        elif name == "flags":
            value = [flag.name.lower() for flag in Flag if flag.name and flag in Flag(value)]
        row[name.removesuffix("_text")] = value
    return row
