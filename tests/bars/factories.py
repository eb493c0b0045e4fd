"""Streams for the tests: single entries by hand, and random ones for Hypothesis."""

from bars.reference import Entry
from hypothesis import strategies as st

from services.bars.builder import StreamBars
from tickbus.protocol.bar_specs import parse
from tickbus.protocol.messages import Flag, Gap, GapKind, Side, StreamKind, Trade
from tickbus.protocol.names import StreamId
from tickbus.units import DAY, MILLISECOND, SECOND

T0 = 1_700_000_000 * SECOND
"""An instant in 2023, a multiple of ten seconds."""
T0_MS = T0 // MILLISECOND
SYMBOL = "BTC-USDT"


LONG_BEFORE = T0 - DAY
"""When the symbol was subscribed, unless a test says otherwise."""


def trade(
    at: float,
    price: str = "100",
    size: str = "1",
    side: Side = Side.UNKNOWN,
    flags: int = 0,
    received: float | None = None,
) -> Trade:
    """`at`: seconds after T0, by the vendor's clock; `received`: by ours, the same unless given."""
    ts, recv = (T0 + round(seconds * SECOND) for seconds in (at, at if received is None else received))
    return Trade(SYMBOL, price, size, side, None, ts, recv, None, None, int(flags))


def gap(start: float, end: float, repaired: bool = False, kind: GapKind = GapKind.DISCONNECT) -> Gap:
    low, high = T0 + round(start * SECOND), T0 + round(end * SECOND)
    return Gap(StreamKind.TRADE, "gateway", kind, low, high, repaired=repaired, symbol=SYMBOL)


def entry_id(at: float, seq: int = 2) -> StreamId:
    """`at`: seconds after T0, by the bus clock."""
    return StreamId(T0_MS + round(at * 1000), seq)


def ms(at: float) -> int:
    return T0_MS + round(at * 1000)


def builder(
    *specs: str,
    grace: float = 2,
    horizon: float = 60,
    state: bytes | None = None,
    subscribed: int = LONG_BEFORE,
) -> StreamBars:
    return StreamBars(
        SYMBOL,
        [parse(spec) for spec in specs],
        round(grace * SECOND),
        round(horizon * SECOND),
        state,
        subscribed,
    )


decimals = st.one_of(
    st.integers(1, 9).map(str),
    st.decimals("0.001", "1000", places=3).map(lambda number: format(number, "f")),
    st.sampled_from(
        [
            "0.02000000",
            "61837.63000000",
            "12.5",
            "12.50",
            "0.0000000000000000000001",
            "123456789012345678901234567890.5",
        ]
    ),
)
prices = st.one_of(decimals, st.sampled_from(["-37.63", "0", "0.00"]))
sizes = st.one_of(decimals, st.just("0"))
flags = st.sampled_from(
    [
        *[0] * 12,
        *[Flag.LATE] * 3,
        Flag.LATE | Flag.BACKFILLED,
        Flag.CORRECTED,
        Flag.OFF_BOOK,
        Flag.CANCELLED,
        Flag.FUTURE_TIME,
        Flag.FUTURE_TIME | Flag.LATE,
        Flag.BAD_TIME,
        Flag.DOUBTFUL_ID,
    ]
).map(int)
"""As decoded from the wire: a plain integer."""


subscriptions = st.one_of(
    st.sampled_from([0, LONG_BEFORE, T0]), st.integers(-2000, 2000).map(lambda ms: T0 + ms * MILLISECOND)
)
gap_kinds = st.sampled_from(
    [
        (GapKind.SEQUENCE, False),
        (GapKind.SEQUENCE, True),
        (GapKind.UNSUBSCRIBED, False),
        (GapKind.VOID, True),
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> list[Entry]:
    """Up to 30 entries over a few seconds of bus time: late, out of order, bursts in one ms, pauses, Gaps,
    equal times, a vendor's clock that is ahead for a while or from the start.
    """
    now, seq = T0_MS, draw(st.sampled_from([1, 7]))
    entries: list[Entry] = []
    lag = st.one_of(st.integers(-300, 300), st.integers(-300, 6000))
    ahead = draw(st.sampled_from([0, 0, 0, 1, 9]))
    """In tenths: how often the vendor's clock goes from right to ahead, or back."""
    is_ahead = bool(ahead) and draw(st.booleans())
    ts = T0
    for _ in range(draw(st.integers(0, 30))):
        now += draw(st.one_of(st.just(0), st.integers(0, 20), st.integers(0, 3000)))
        if draw(st.integers(0, 4)):
            ts = now * MILLISECOND - draw(lag) * MILLISECOND + draw(st.sampled_from([0, 0, 1, -1]))
        is_ahead ^= bool(ahead) and draw(st.integers(0, 9)) < ahead
        message: Trade | Gap
        if draw(st.integers(0, 9)) == 0:
            kind, repaired = draw(gap_kinds)
            message = Gap(
                StreamKind.TRADE,
                "gateway",
                kind,
                ts,
                ts + draw(st.integers(0, 2500)) * MILLISECOND,
                repaired=repaired,
                symbol=SYMBOL,
            )
        else:
            recv, bits = now * MILLISECOND + draw(st.integers(0, 999_999)), draw(flags)
            at = recv if bits & Flag.BAD_TIME else ts
            if is_ahead and not bits & Flag.BAD_TIME:
                at, bits = ts + 8 * SECOND, bits | int(Flag.FUTURE_TIME)
            side = draw(st.sampled_from(Side))
            message = Trade(SYMBOL, draw(prices), draw(sizes), side, None, at, recv, None, None, bits)
        entries.append((StreamId(now, seq), message))
        seq += 1
    return entries


@st.composite
def calm_streams(draw: st.DrawFn) -> list[Entry]:
    """Trades in order of time, mostly in runs, with price and size: what the builder processes as columns."""
    count = draw(st.integers(12, 60))
    steps = draw(
        st.lists(
            st.one_of(st.just(0), st.integers(0, 60), st.integers(0, 1500)), min_size=count, max_size=count
        )
    )
    lags = draw(st.lists(st.one_of(st.just(100), st.integers(0, 400)), min_size=count, max_size=count))
    texts = st.sampled_from(["1", "2", "12.5", "12.50", "-3"])
    numbers = draw(
        st.lists(
            st.tuples(texts, st.sampled_from(["1", "0.5", "10"]), st.sampled_from(Side)),
            min_size=count,
            max_size=count,
        )
    )
    special_index = draw(st.one_of(st.none(), st.integers(0, count - 1)))
    now, ts = T0_MS, 0
    entries: list[Entry] = []
    for index, (step, lag, (price, size, side)) in enumerate(zip(steps, lags, numbers, strict=True)):
        now += step
        ts = max(ts, (now - lag) * MILLISECOND)
        special = draw(flags) if index == special_index else 0
        entries.append(
            (StreamId(now, index + 1), Trade(SYMBOL, price, size, side, None, ts, ts, None, None, special))
        )
    return entries
