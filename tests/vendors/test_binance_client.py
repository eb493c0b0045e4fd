"""What is specific to Binance: request limits, answers, refusals, ids, and quotes across connections."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vendors.examples import RECV, TOLERANCE, feed, mapper, subscribe_frames

from services.vendors.binance.client import Binance
from services.vendors.feed import FeedSetup, Refused, Rejected, SubscribeAck
from services.vendors.symbols import SymbolMap
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Flag, Quote, Side, Trade
from tickbus.units import HOUR, MILLISECOND, SECOND

TRADE = '{"e":"trade","E":1672515782136,"s":"BNBBTC","t":%s,"p":"0.001","q":"100","T":%s,"m":%s,"M":true}'


def trade(t: object = 5, when: object = 1672515782136, m: object = "true") -> bytes:
    return (TRADE % (t, when, m)).encode()


def quote(update: int, symbol: str = "BNBUSDT", bid: str = "1") -> bytes:
    return f'{{"u":{update},"s":"{symbol}","b":"{bid}","B":"1","a":"2","A":"1"}}'.encode()


def binance(
    symbols: list[str], kinds: tuple[str, ...] = ("trade", "quote"), url: str | None = "ws://127.0.0.1:1"
) -> Binance:
    return Binance(FeedSetup(SymbolMap(symbols, Binance.to_vendor_symbol, {}), kinds, url))


# requests


def test_stream_names_are_lower_case() -> None:
    (frame,) = subscribe_frames(feed("binance"))
    assert json.loads(frame) == {
        "method": "SUBSCRIBE",
        "params": ["bnbbtc@trade", "bnbbtc@bookTicker", "bnbusdt@trade", "bnbusdt@bookTicker"],
        "id": 1,
    }


@given(
    st.lists(
        st.from_regex(r"[A-Z0-9\u5e01\u5b89]{1,64}", fullmatch=True), min_size=1, max_size=300, unique=True
    ),
    st.sampled_from([("trade",), ("trade", "quote")]),
)
def test_requests_fit_the_servers_message_limit(symbols: list[str], kinds: tuple[str, ...]) -> None:
    spellings = {f"S{number}": symbol for number, symbol in enumerate(symbols)}
    one = Binance(
        FeedSetup(SymbolMap(spellings, Binance.to_vendor_symbol, spellings), kinds, "ws://127.0.0.1:1")
    )
    texts = subscribe_frames(one)
    frames = [json.loads(text) for text in texts]
    assert all(len(text.encode()) <= 4000 for text in texts)
    names = [name for frame in frames for name in frame["params"]]
    suffixes = {"trade": "trade", "quote": "bookTicker"}
    assert sorted(names) == sorted(
        f"{symbol.lower()}@{suffixes[kind]}" for symbol in symbols for kind in kinds
    )
    assert len({frame["id"] for frame in frames}) == len(frames) == one.requests


def test_documented_limits() -> None:
    assert Binance.request_interval >= SECOND // 5  # five messages a second
    assert Binance.reconnect_interval >= SECOND  # 300 connections in five minutes
    assert Binance.lifetime is not None and 23 * HOUR <= Binance.lifetime < 24 * HOUR
    assert Binance.sequenced and Binance.allows_overlap
    symbols = [f"S{at}" for at in range(600)]
    binance(symbols, ("trade",), None)
    with pytest.raises(ConfigError, match="too many streams: 1200, Binance allows 1024"):
        binance(symbols, url=None)
    assert feed("binance").url() == "wss://stream.binance.com:9443/stream"
    assert (
        feed("binance", url="wss://data-stream.binance.vision/stream?timeUnit=MICROSECOND")
        .url()
        .endswith("/stream?timeUnit=MICROSECOND")
    )


# answers


@pytest.mark.parametrize(
    ("frame", "wait"),
    [
        ('{"code":0,"msg":"Unknown property","id":1}', 5),
        ('{"code":1,"msg":"Invalid value type: expected Boolean"}', 5),
        (
            '{"code":2,"msg":"Invalid request: unknown variant X, '
            'expected one of `SUBSCRIBE`, ... at line 1 column 28"}',
            5,
        ),
        ('{"code":3,"msg":"Invalid JSON: expected value at line 1 column 1"}', 5),
        ('{"error":{"code":2,"msg":"Invalid request: too many parameters"},"id":1}', 5),
        (
            '{"error":{"code":3,"msg":"Invalid JSON: '
            'EOF while parsing a string at line 1 column 4096"},"id":null}',
            5,
        ),
        ('{"error":{"code":4,"msg":"Too many subscriptions"}}', 30),
        ('{"code":4,"msg":"Too many subscriptions"}', 30),
    ],
)
def test_errors_in_both_forms_are_refusals(frame: str, wait: int) -> None:
    one = mapper("binance")
    assert one.map(frame.encode(), RECV) == ()
    (refused,) = one.notices
    assert isinstance(refused, Refused)
    assert (refused.fatal, refused.wait) == (False, wait * SECOND)
    assert "Binance answered" in refused.text


@pytest.mark.parametrize("error", ["null", "false", "0", '""', "{}"])
def test_empty_error_is_not_a_refusal(error: str) -> None:
    one = mapper("binance")
    assert one.map(f'{{"result":null,"error":{error},"id":1}}'.encode(), RECV) == ()
    assert one.notices == [SubscribeAck(1)]


# other families of addresses


@pytest.mark.parametrize(
    "url",
    [
        "wss://fstream.binance.com",
        "wss://fstream.binance.com/market/stream",
        "wss://fstream-auth.binance.com/private",
        "wss://dstream.binance.com:443/ws",
        "wss://vstream.binance.com/stream",
        "wss://nbstream.binance.com/eoptions/ws",
        "wss://pstream.binance.com/pm/ws",
        "wss://stream.binancefuture.com/stream",
        "wss://fstream.binancefuture.com",
        "wss://testnet.binanceops.com/eoptions/ws",
        "wss://FSTREAM.BINANCE.COM",
        "ws://127.0.0.1:8080/public/ws",
        "ws://proxy.example/market/stream",
        "wss://ws-api.binance.com/ws-api/v3",
        "wss://ws-fapi.binance.com/ws-fapi/v1",
        "wss://stream-sbe.binance.com",
        "https://api.binance.com",
        "https://api3.binance.com/api/v3/trades",
        "wss://data-api.binance.vision",
        "https://fapi.binance.com/fapi/v1/trades",
        "ws://proxy.example/api/v3/trades",
    ],
)
def test_address_of_another_family_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match="speaks the JSON streams of spot: use wss:"):
        feed("binance", url=url).url()


@pytest.mark.parametrize(
    "url",
    [
        "wss://stream.binance.com:443",
        "wss://stream.binance.com/ws",
        "wss://data-stream.binance.vision",
        "wss://testnet.binance.vision/ws",
        "wss://stream.testnet.binance.vision/stream",
        "wss://demo-stream.binance.com",
        "wss://stream.binance.us:9443",
        "ws://127.0.0.1:8765",
        "ws://stream-proxy.internal:80/binance/stream",
        "ws://stream-proxy.internal/api/stream",
        "ws://upstream.example",
    ],
)
def test_address_of_spot_or_a_proxy_is_accepted(url: str) -> None:
    assert feed("binance", url=url).url().startswith(url)


@pytest.mark.parametrize(
    "frame",
    [
        trade().replace(b'"m"', b'"X":"MARKET","m"'),
        trade().replace(b'"m"', b'"X":"INSURANCE_FUND","m"'),
        b'{"stream":"bnbbtc@trade","data":' + trade().replace(b'"m"', b'"X":"ADL","m"') + b"}",
        b"[" + trade().replace(b'"m"', b'"X":"NA","m"') + b"]",
        b'{"e":"bookTicker","u":4,"s":"BNBUSDT","b":"1","B":"1","a":"2","A":"1","T":1568014460891,"E":1}',
        b'{"stream":"bnbusdt@bookTicker","data":{"e":"bookTicker","u":4,"s":"BNBUSDT","ps":"BNBUSDT","b":"1"}}',
    ],
)
def test_frame_of_another_family_is_refused_for_good(frame: bytes) -> None:
    one = mapper("binance")
    assert list(one.map(frame, RECV)) == []
    (refused,) = one.notices
    assert isinstance(refused, Refused) and refused.fatal
    assert "this address sends futures" in refused.text and "--url" in refused.text


def test_quote_with_a_time_has_it() -> None:
    frame = quote(10).replace(b"}", b',"T":1672515782136}')
    ((tick, _),) = mapper("binance").map(frame, RECV)
    assert (tick.ts_event, tick.flags) == (1672515782136 * MILLISECOND, 0)


# trades


@pytest.mark.parametrize(("m", "side"), [("true", Side.SELL), ("false", Side.BUY), ("null", Side.UNKNOWN)])
def test_aggressor_is_the_side_that_was_not_the_maker(m: str, side: Side) -> None:
    ((tick, _),) = mapper("binance").map(trade(m=m), RECV)
    assert isinstance(tick, Trade) and tick.side is side


def test_trade_without_a_side_is_accepted() -> None:
    frame = trade().replace(b'"m":true,', b"")
    ((tick, _),) = mapper("binance").map(frame, RECV)
    assert isinstance(tick, Trade) and tick.side is Side.UNKNOWN


@pytest.mark.parametrize(
    ("when", "ns"),
    [(1672515782136, 1672515782136 * MILLISECOND), (1672515782136789, 1672515782136789000)],
)
def test_times_in_milliseconds_and_microseconds(when: int, ns: int) -> None:
    ((tick, _),) = mapper("binance").map(trade(when=when), RECV)
    assert tick.ts_event == ns


@pytest.mark.parametrize(
    "when", [0, -1, 1, 10**19, "null", '"x"', '""', "1.5", "true", "[1]", '"1672515782136"', "9" * 400]
)
def test_trade_without_a_usable_time_is_stored_as_received_now(when: object) -> None:
    one = mapper("binance")
    ((tick, vendor_id),) = one.map(trade(5, when), RECV)
    assert isinstance(tick, Trade) and (vendor_id, tick.trade_id) == (5, "5")
    assert (tick.ts_event, tick.flags, one.bad_times, one.notices) == (RECV, Flag.BAD_TIME, 1, [])


@pytest.mark.parametrize("t", ["null", '""'])
def test_trade_without_an_id_is_no_part_of_the_sequence(t: str) -> None:
    one = mapper("binance")
    without = trade().replace(b'"t":5,', b"")
    for frame in (trade(t), trade(t, '"x"'), without):
        ((tick, vendor_id),) = one.map(frame, RECV)
        assert isinstance(tick, Trade) and (tick.trade_id, vendor_id) == (None, -1)
    assert one.notices == []


def test_first_id_of_a_symbol_is_0() -> None:
    ((tick, vendor_id),) = mapper("binance").map(trade(0), RECV)
    assert isinstance(tick, Trade) and (tick.trade_id, vendor_id) == ("0", 0)


@pytest.mark.parametrize("t", [-1, 1 << 53, 1 << 63, '"1"', 1.5])
def test_invalid_id_is_rejected(t: object) -> None:
    one = mapper("binance")
    assert one.map(trade(t), RECV) == ()
    (notice,) = one.notices
    assert isinstance(notice, Rejected)
    assert (notice.kind, notice.symbol) == ("trade", "BNB-BTC")


@pytest.mark.parametrize(
    "damage", [(b'"0.001"', b'"x"'), (b'"0.001"', b"0.001"), (b'"100"', b'""'), (b'"p":"0.001",', b"")]
)
def test_rejected_trade_names_the_lost_id(damage: tuple[bytes, bytes]) -> None:
    one = mapper("binance")
    one.map(trade(77).replace(*damage), RECV)
    (notice,) = one.notices
    assert isinstance(notice, Rejected)
    assert (notice.reason, notice.kind, notice.symbol, notice.vendor_id) == ("field", "trade", "BNB-BTC", 77)


# quotes across connections


def test_quotes_of_the_previous_connection_are_dropped_per_symbol() -> None:
    first, second = mapper("binance"), feed("binance").mapper(TOLERANCE)
    for update in (10, 11):
        first.map(quote(update), RECV)
    second.follow(first)
    found = [second.map(quote(update, bid=str(update)), RECV) for update in (10, 11, 12, 13)]
    assert [tick.bid_text for ticks in found for tick, _ in ticks if isinstance(tick, Quote)] == ["12", "13"]
    assert second.map(quote(3, "BNBBTC"), RECV) != ()  # the other symbol had none
    assert second.notices == []


def test_quotes_of_one_connection_are_never_dropped() -> None:
    one = mapper("binance")
    assert sum(len(one.map(quote(update), RECV)) for update in (10, 10, 9)) == 3


def test_newest_quote_is_remembered_over_two_connections() -> None:
    mappers = [mapper("binance") for _ in range(3)]
    mappers[0].map(quote(10), RECV)
    mappers[1].follow(mappers[0])
    mappers[1].map(quote(10), RECV)  # only what the first one had delivered
    mappers[2].follow(mappers[1])
    assert mappers[2].map(quote(10), RECV) == ()
    assert len(mappers[2].map(quote(11), RECV)) == 1
