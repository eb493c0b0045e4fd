"""Client and server of one vendor understand each other: one suite over all vendors that have both."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

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
sides = st.tuples(st.none(), st.none()) | st.tuples(decimals, st.none() | decimals)
quotes = st.builds(
    lambda symbol, bid, ask, time: Quote(symbol, *bid, *ask, time, 0),
    st.sampled_from(SYMBOLS),
    sides,
    sides,
    times,
)


class Talk:
    """A feed of a vendor and the dialect that answers it, without a network between them."""

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
            self.say(frame.encode())

    def _open(self, vendor: Vendor, options: VendorOptions) -> Dialect:
        assert vendor.open_dialect is not None
        path, _, query = self.feed.url().partition("//")[2].partition("/")[2].partition("?")
        found = vendor.open_dialect(
            f"/{path}", dict(pair.split("=") for pair in query.split("&") if pair), VendorLimits(), options, 0
        )
        assert found is not None and not isinstance(found, HttpRefusal)
        return found

    def say(self, frame: bytes) -> Answer:
        self.now += 2 * SECOND
        answer = self.dialect.receive(frame, self.now)
        for reply in answer.replies:
            assert list(self.mapper.map(reply, RECV)) == []
        return answer

    def told(self, *ticks: tuple[Trade | Quote, int]) -> Sequence[Trade | Quote]:
        """What the feed makes of ticks that the vendor sends."""
        items = [self.dialect.render(message, self.spelling[message.symbol], id) for message, id in ticks]
        return [tick for payload in self.dialect.pack(items) for tick, _ in self.mapper.map(payload, RECV)]


def as_received(message: Any, recv: int) -> Any:
    """A projected tick with its time of receipt; of a protocol that carries no time, that is the event's too."""
    return replace(message, ts_recv=recv, ts_event=message.ts_event or recv)


@vendors
def test_subscriptions_are_acknowledged_and_cover_every_topic(name: str) -> None:
    talk = Talk(name)
    assert not [notice for notice in talk.mapper.notices if isinstance(notice, Refused)]
    acknowledged = [notice for notice in talk.mapper.notices if isinstance(notice, SubscribeAck)]
    assert len(acknowledged) == (len(talk.feed.subscribe(talk.feed.topics)) if talk.feed.acknowledged else 0)
    assert all(talk.dialect.wants(topic.kind, talk.spelling[topic.symbol]) for topic in talk.feed.topics)
    assert set(talk.dialect.symbols()) == set(talk.spelling.values())


@pytest.mark.parametrize(
    "name", [name for name in BOTH if name != "json"]
)  # the tutorial's servers add: a shorter list ends nothing
def test_unsubscribing_leaves_the_others(name: str) -> None:
    talk = Talk(name)
    gone = [topic for topic in talk.feed.topics if topic.symbol == "GOLD"]
    left = [topic for topic in talk.feed.topics if topic.symbol != "GOLD"]
    frames = talk.feed.subscribe(left) if talk.feed.replaces else talk.feed.unsubscribe(gone)
    for frame in frames:
        talk.say(frame.encode())
    assert [talk.dialect.wants(topic.kind, talk.spelling[topic.symbol]) for topic in talk.feed.topics] == [
        topic in left for topic in talk.feed.topics
    ]


@vendors
def test_heartbeats_are_answered(name: str) -> None:
    talk = Talk(name)
    if talk.feed.heartbeat_answers:
        talk.mapper.notices.clear()
        talk.say(talk.feed.heartbeat().encode())
        assert [type(notice) for notice in talk.mapper.notices] == [HeartbeatAck]


@vendors
@given(message=trades, id=st.integers(1, 10**15))
def test_a_trade_comes_back_as_it_was(name: str, message: Trade, id: int) -> None:
    talk = Talk(name)
    expected = as_received(talk.dialect.project(message, id), RECV)
    assert talk.told((message, id)) == [expected]
    assert expected.price == message.price
    assert expected.size == message.size


@vendors
@given(message=quotes, id=st.integers(1, 10**15))
def test_a_quote_comes_back_as_it_was(name: str, message: Quote, id: int) -> None:
    talk = Talk(name)
    assert talk.told((message, id)) == [as_received(talk.dialect.project(message, id), RECV)]


@vendors
def test_a_trade_carries_the_quote_before_it(name: str) -> None:
    talk = Talk(name)
    quote = Quote("GOLD", "1.5", "2", "1.6", "3", 1_700_000_000 * SECOND, 0)
    trade = Trade("GOLD", "1.5", "2", Side.SELL, None, 1_700_000_000 * SECOND, 0)
    _, found = talk.told((quote, 1), (trade, 2))
    assert isinstance(found, Trade)
    assert (found.bid_text, found.ask_text) == ("1.5", "1.6")


OTHER_FORMS: list[tuple[str, dict[str, Any]]] = [
    ("alltick", {"alltick_numbers": True}), ("alltick", {"alltick_join": 3}),
    ("json", {"json_numbers": True}), ("json", {"json_batch": 3}), ("json", {"json_time": "iso"}), ("json", {"json_time": "us"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), OTHER_FORMS)
@given(messages=st.lists(trades, min_size=1, max_size=7))
def test_every_form_that_the_vendor_writes_is_understood(
    name: str, options: dict[str, Any], messages: list[Trade]
) -> None:
    talk = Talk(name, **options)
    found = talk.told(*((message, number) for number, message in enumerate(messages, 1)))
    expected = [talk.dialect.project(message, number) for number, message in enumerate(messages, 1)]
    assert [replace(tick, ts_recv=0) for tick in found] == expected


@vendors
def test_the_vendors_refusal_and_its_shutdown_are_understood(name: str) -> None:
    talk = Talk(name)
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
"""What each vendor's documentation says to nonsense."""


@vendors
@given(noise=st.binary(max_size=200))
def test_the_server_answers_garbage_as_documented(name: str, noise: bytes) -> None:
    talk = Talk(name)
    answer = talk.dialect.receive(noise, talk.now + 5 * SECOND)
    assert answer.close is None
    assert all(GARBAGE[name](msgspec.json.decode(reply)) for reply in answer.replies)
