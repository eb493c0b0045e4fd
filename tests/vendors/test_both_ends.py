"""Client and server of one vendor understand each other: one suite over all vendors that have both."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from vendors.test_frames import HOSTILE, JSON_BYTES

from services.vendors import VENDORS, Vendor
from services.vendors.dialect import Answer, Dialect, HttpRefusal, VendorLimits
from services.vendors.feed import Closing, FeedSetup, HeartbeatAck, Mapper, Refused, SubscribeAck
from services.vendors.options import VendorOptions
from services.vendors.symbols import SymbolMap
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import DAY, SECOND, Duration

RECV = 1_900_000_000 * SECOND
SYMBOLS = ("BTC-USDT", "AAPL.US", "GOLD")
BOTH = {name: vendor for name, vendor in VENDORS.items() if vendor.open_dialect is not None}

vendors = pytest.mark.parametrize("name", BOTH)

decimals = st.decimals(min_value="0.00000001", max_value=10**9, places=8).map(
    lambda number: format(number, "f")
)
times = st.integers(1_600_000_000 * SECOND, RECV - 10 * SECOND)
trades = st.builds(
    Trade,
    st.sampled_from(SYMBOLS),
    decimals,
    decimals,
    st.sampled_from(Side),
    st.none(),
    times,
    st.just(0),
    st.none() | decimals,
    st.none() | decimals,
)
PriceAndSize = tuple[str | None, str | None]


def _quote(symbol: str, bid: PriceAndSize, ask: PriceAndSize, time: int) -> Quote:
    return Quote(symbol, *bid, *ask, time, 0)


sides = st.tuples(st.none(), st.none()) | st.tuples(decimals, st.none() | decimals)
quotes = st.builds(_quote, st.sampled_from(SYMBOLS), sides, sides, times)


class Conversation:
    """A vendor's feed and the dialect that answers it, without a network between them."""

    def __init__(self, name: str, **options: Any) -> None:
        vendor: Vendor = BOTH[name]
        symbols = SymbolMap(SYMBOLS, vendor.feed.to_vendor_symbol, {})
        self.feed = vendor.feed(
            FeedSetup(symbols, vendor.feed.kinds, "ws://127.0.0.1:1", "a-token", vendor.options())
        )
        self.spelling = symbols.vendor
        self.mapper: Mapper = self.feed.mapper(Duration(DAY))
        self.dialect = self._open(vendor, vendor.server_options(**options))
        self.now = 0
        for frame in self.feed.subscribe(self.feed.topics):
            self.send(frame.encode())

    def _open(self, vendor: Vendor, options: VendorOptions) -> Dialect:
        assert vendor.open_dialect is not None
        path, _, query = self.feed.url().partition("//")[2].partition("/")[2].partition("?")
        dialect = vendor.open_dialect(
            f"/{path}", dict(pair.split("=") for pair in query.split("&") if pair), VendorLimits(), options, 0
        )
        assert dialect is not None and not isinstance(dialect, HttpRefusal)
        return dialect

    def send(self, frame: bytes) -> Answer:
        """Send a frame to the dialect and its replies to the mapper, which must not see ticks in them."""
        self.now += 2 * SECOND
        answer = self.dialect.receive(frame, self.now)
        for reply in answer.replies:
            assert list(self.mapper.map(reply, RECV)) == []
        return answer

    def receive(self, *ticks: tuple[Trade | Quote, int]) -> Sequence[Trade | Quote]:
        """Return the feed's ticks when the vendor sends these (tick, id) pairs."""
        items = [self.dialect.render(message, self.spelling[message.symbol], id) for message, id in ticks]
        return [tick for payload in self.dialect.pack(items) for tick, _ in self.mapper.map(payload, RECV)]


def as_received(message: Any, recv: int) -> Any:
    """Return a projected tick with its receive time, which is the event time too if the protocol has none."""
    return replace(message, ts_recv=recv, ts_event=message.ts_event or recv)


@vendors
def test_subscriptions_are_acknowledged_and_cover_every_topic(name: str) -> None:
    talk = Conversation(name)
    assert not [notice for notice in talk.mapper.notices if isinstance(notice, Refused)]
    acknowledged = [notice for notice in talk.mapper.notices if isinstance(notice, SubscribeAck)]
    assert len(acknowledged) == (
        len(talk.feed.subscribe(talk.feed.topics)) if talk.feed.acks_subscribe else 0
    )
    assert all(talk.dialect.wants(topic.kind, talk.spelling[topic.symbol]) for topic in talk.feed.topics)
    assert set(talk.dialect.symbols()) == set(talk.spelling.values())


@pytest.mark.parametrize(
    "name", [name for name in BOTH if name != "json"]
)  # the tutorials' servers only add: a shorter list ends no subscription
def test_unsubscribe_keeps_the_other_subscriptions(name: str) -> None:
    talk = Conversation(name)
    remaining = [topic for topic in talk.feed.topics if topic.symbol != "GOLD"]
    for request in talk.feed.change(remaining, talk.feed.topics):
        talk.send(request.frame.encode())
    assert [talk.dialect.wants(topic.kind, talk.spelling[topic.symbol]) for topic in talk.feed.topics] == [
        topic in remaining for topic in talk.feed.topics
    ]


@vendors
def test_heartbeats_are_acknowledged(name: str) -> None:
    talk = Conversation(name)
    if talk.feed.acks_heartbeat:
        talk.mapper.notices.clear()
        talk.send(talk.feed.heartbeat().encode())
        assert [type(notice) for notice in talk.mapper.notices] == [HeartbeatAck]


@vendors
@given(message=trades, id=st.integers(1, 10**15))
def test_trade_survives_the_round_trip(name: str, message: Trade, id: int) -> None:
    talk = Conversation(name)
    expected = as_received(talk.dialect.project(message, id), RECV)
    assert talk.receive((message, id)) == [expected]
    assert expected.price == message.price
    assert expected.size == message.size


@vendors
@given(message=quotes, id=st.integers(1, 10**15))
def test_quote_survives_the_round_trip(name: str, message: Quote, id: int) -> None:
    talk = Conversation(name)
    assert talk.receive((message, id)) == [as_received(talk.dialect.project(message, id), RECV)]


@vendors
def test_trade_carries_the_previous_quote(name: str) -> None:
    talk = Conversation(name)
    quote = Quote("GOLD", "1.5", "2", "1.6", "3", 1_700_000_000 * SECOND, 0)
    trade = Trade("GOLD", "1.5", "2", Side.SELL, None, 1_700_000_000 * SECOND, 0)
    _, received = talk.receive((quote, 1), (trade, 2))
    assert isinstance(received, Trade)
    assert (received.bid_text, received.ask_text) == ("1.5", "1.6")


OTHER_FORMS: list[tuple[str, dict[str, Any]]] = [
    ("alltick", {"alltick_numbers": True}),
    ("alltick", {"alltick_join": 3}),
    ("json", {"json_numbers": True}),
    ("json", {"json_batch": 3}),
    ("json", {"json_time": "iso"}),
    ("json", {"json_time": "us"}),
]


@pytest.mark.parametrize(("name", "options"), OTHER_FORMS)
@given(messages=st.lists(trades, min_size=1, max_size=7))
def test_client_understands_every_form_of_the_server(
    name: str, options: dict[str, Any], messages: list[Trade]
) -> None:
    talk = Conversation(name, **options)
    received = talk.receive(*((message, number) for number, message in enumerate(messages, 1)))
    expected = [talk.dialect.project(message, number) for number, message in enumerate(messages, 1)]
    assert [replace(tick, ts_recv=0) for tick in received] == expected


@vendors
def test_client_understands_the_servers_refusal_and_shutdown_notice(name: str) -> None:
    talk = Conversation(name)
    talk.mapper.notices.clear()
    for reply in talk.dialect.slow_down().replies:
        assert list(talk.mapper.map(reply, RECV)) == []
    (notice,) = talk.mapper.notices
    assert isinstance(notice, Refused)
    assert not notice.fatal
    talk.mapper.notices.clear()
    for reply in talk.dialect.shutdown_notice(RECV).replies:
        assert list(talk.mapper.map(reply, RECV)) == []
        assert [type(notice) for notice in talk.mapper.notices] == [Closing]


GARBAGE: dict[str, Callable[[Any], bool]] = {
    "alltick": lambda reply: reply["ret"] in (400, 600),
    "binance": lambda reply: "error" in reply,
    "json": lambda reply: "error" in reply,
}
"""The documented answer of each vendor to garbage."""


@vendors
@given(garbage=st.binary(max_size=200))
def test_server_answers_garbage_as_documented(name: str, garbage: bytes) -> None:
    talk = Conversation(name)
    answer = talk.dialect.receive(garbage, talk.now + 5 * SECOND)
    assert answer.close is None
    assert all(GARBAGE[name](msgspec.json.decode(reply)) for reply in answer.replies)


@vendors
@given(data=st.data())
def test_server_survives_whatever_a_client_sends(name: str, data: st.DataObject) -> None:
    talk = Conversation(name)
    requests = [frame.encode() for frame in talk.feed.subscribe(talk.feed.topics)]
    part = st.sampled_from([*requests, *HOSTILE]) | JSON_BYTES
    for _ in range(data.draw(st.integers(1, 4))):
        frame = bytearray(data.draw(st.sampled_from(requests)))
        match data.draw(st.sampled_from(["replaced", "changed", "other", "wrapped"])):
            case "replaced":  # one value of a request
                value = json.loads(frame)
                key = data.draw(st.sampled_from(sorted(value)))
                value[key] = "\0here"
                frame[:] = json.dumps(value).encode().replace(b'"\\u0000here"', data.draw(part))
            case "changed":
                frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
            case "other":
                frame[:] = data.draw(part)
            case "wrapped":
                frame[:] = b"[" + data.draw(part) + b"," + bytes(frame) + b"]"
        talk.now += 5 * SECOND
        answer = talk.dialect.receive(bytes(frame), talk.now)
        for reply in answer.replies:
            msgspec.json.decode(reply)
            assert list(talk.mapper.map(reply, RECV)) == []
