"""What is specific to AllTick: requests, answers, refusals, heartbeats, and times in two units."""

import json

import pytest
from vendors.examples import ALLTICK, RECV, feed, mapper, subscribe_frames

from services.vendors.alltick.client import AllTick
from services.vendors.feed import Refused, Rejected, SubscribeAck
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Flag, Side, Trade
from tickbus.units import SECOND

TRADE = (
    '{"cmd_id":22998,"data":'
    '{"code":"GOLD","seq":"1","tick_time":%s,"price":"1","volume":"2","trade_direction":%s}}'
)


def trade(when: object = '"1781166146694"', direction: object = 1) -> bytes:
    return (TRADE % (when, direction)).encode()


def test_one_subscribe_request_per_kind() -> None:
    trades, depth = (json.loads(frame) for frame in subscribe_frames(feed("alltick")))
    codes = ["1288.HK", "AAPL.US", "GOLD", "BTCUSDT"]
    assert (trades["cmd_id"], trades["data"]) == (22004, {"symbol_list": [{"code": code} for code in codes]})
    assert (depth["cmd_id"], depth["data"]) == (
        22002,
        {"symbol_list": [{"code": code, "depth_level": 1} for code in codes]},
    )
    (only,) = subscribe_frames(feed("alltick", ("quote",)))
    assert json.loads(only)["cmd_id"] == 22002


def test_requests_have_all_four_fields_and_unique_numbers() -> None:
    one = feed("alltick")
    frames = [json.loads(frame) for frame in (*subscribe_frames(one), one.heartbeat(), one.heartbeat())]
    assert all(set(frame) == {"cmd_id", "seq_id", "trace", "data"} for frame in frames)
    assert [frame["seq_id"] for frame in frames] == [1, 2, 3, 4]
    assert len({frame["trace"] for frame in frames}) == 4 and all(
        0 < len(frame["trace"]) <= 64 for frame in frames
    )
    assert frames[-1]["cmd_id"] == 22000 and frames[-1]["data"] == {}


def test_documented_limits() -> None:
    assert AllTick.request_interval > SECOND
    assert AllTick.heartbeat_interval == 10 * SECOND and AllTick.acks_heartbeat
    assert AllTick.reconnect_interval >= 3 * SECOND
    assert not AllTick.sequenced and not AllTick.allows_overlap and not AllTick.repairable


def test_token_is_escaped_in_the_url_and_absent_from_logs() -> None:
    one = feed("alltick", token="a&b=c+d")
    assert one.url() == "wss://quote.alltick.co/quote-b-ws-api?token=a%26b%3Dc%2Bd"
    assert one.address() == "wss://quote.alltick.co/quote-b-ws-api"
    assert feed("alltick", url="wss://me:secret@h/p", token="t").address() == "wss://***@h/p"
    assert (
        feed("alltick", url="wss://quote.alltick.co/quote-stock-b-ws-api", token="t").url()
        == "wss://quote.alltick.co/quote-stock-b-ws-api?token=t"
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://quote.alltick.co/quote-b-api",
        "https://quote.alltick.io/quote-stock-b-api/kline?token=secret",
        "http://quote.tradeswitcher.com/quote-b-api/trade-tick",
        "wss://quote.alltick.co/quote-stock-b-api",
        "wss://quote.alltick.io/quote-b-api/",
        "ws://proxy.example:8080/quote-b-api/depth-tick",
        "https://quote.alltick.co/quote-b-ws-api",
        "https://quote.alltick.io",
    ],
)
def test_address_of_the_rest_api_is_a_config_error_with_the_remedy(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^invalid --url .* reads its WebSocket: use wss://") as raised:
        feed("alltick", url=url).url()
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "wss://quote.alltick.co/quote-stock-b-ws-api",
        "wss://quote.alltick.io",
        "ws://127.0.0.1:8080",
        "ws://proxy.example/alltick/quote-b-ws-api",
    ],
)
def test_address_of_the_websocket_or_a_proxy_is_accepted(url: str) -> None:
    assert feed("alltick", url=url).url().startswith(url)


@pytest.mark.parametrize(
    ("ret", "fatal", "wait"),
    [
        (401, True, 0), (603, True, 0), (604, True, 0), (429, False, 10), (605, False, 10), (606, False, 10),
        (201, False, 5), (400, False, 5), (402, False, 5), (600, False, 5), (601, False, 5),
    ],
)  # fmt: skip
def test_error_code_is_fatal_or_retried_later(ret: int, fatal: bool, wait: int) -> None:
    for command in (0, 22005, 22001):
        one = mapper("alltick")
        assert (
            one.map(
                f'{{"ret":{ret},"msg":"why","cmd_id":{command},"seq_id":0,"trace":"","data":{{}}}}'.encode(),
                RECV,
            )
            == ()
        )
        (refused,) = one.notices
        assert isinstance(refused, Refused)
        assert (refused.fatal, refused.wait) == (fatal, wait * SECOND)
        assert f"{ret} why" in refused.text
        assert ("/quote-stock-b-ws-api" in refused.text) is (fatal or ret == 600)


@pytest.mark.parametrize("data", ['""', "[]", "null", '"no"', "5"])
def test_answers_are_understood_whatever_their_data(data: str) -> None:
    one = mapper("alltick")
    one.map(f'{{"ret":200,"msg":"ok","cmd_id":22005,"seq_id":1,"trace":"t","data":{data}}}'.encode(), RECV)
    one.map(f'{{"ret":401,"msg":"why","cmd_id":22005,"seq_id":1,"trace":"t","data":{data}}}'.encode(), RECV)
    acknowledged, refused = one.notices
    assert acknowledged == SubscribeAck(1)
    assert isinstance(refused, Refused) and refused.fatal


def test_object_over_several_lines_is_one_tick() -> None:
    ((tick, _),) = mapper("alltick").map(
        json.dumps(json.loads(ALLTICK.golden[0][0]), indent=2).encode(), RECV
    )
    assert tick == ALLTICK.golden[0][1][0]


def test_refusal_without_the_envelope_is_fatal() -> None:
    one = mapper("alltick")
    one.map(b'{"msg":"token is required","ret":401}', RECV)
    (refused,) = one.notices
    assert isinstance(refused, Refused) and refused.fatal and "token is required" in refused.text


@pytest.mark.parametrize(
    ("when", "ns"),
    [
        ("1605509068", 1605509068 * SECOND),
        ('"1605509068"', 1605509068 * SECOND),
        ("1781166146694", 1781166146694 * 1_000_000),
        ('"1781166146694"', 1781166146694 * 1_000_000),
        ("null", RECV),
        ('""', RECV),
        ("0", RECV),
        ('"0"', RECV),
    ],
)
def test_times_in_seconds_and_milliseconds(when: str, ns: int) -> None:
    ((tick, _),) = mapper("alltick").map(trade(when), RECV)
    assert tick.ts_event == ns


@pytest.mark.parametrize(
    "when", ["99999999999", '"99999999999999"', "-5", '"soon"', "1.5", "1e3", "true", "[1]", "9" * 30]
)
def test_invalid_time_is_the_receive_time(when: str) -> None:
    one = mapper("alltick")
    ((tick, _),) = one.map(trade(when), RECV)
    assert (tick.ts_event, tick.flags, one.notices) == (RECV, Flag.BAD_TIME, [])


@pytest.mark.parametrize(
    ("direction", "side"),
    [
        ("0", Side.UNKNOWN),
        ("1", Side.BUY),
        ("2", Side.SELL),
        ('"1"', Side.BUY),
        ('"2"', Side.SELL),
        ("null", Side.UNKNOWN),
        ('""', Side.UNKNOWN),
        ("3", Side.UNKNOWN),
    ],
)
def test_direction_is_the_side_of_the_aggressor(direction: str, side: Side) -> None:
    ((tick, _),) = mapper("alltick").map(trade(direction=direction), RECV)
    assert isinstance(tick, Trade) and tick.side is side


def test_repeated_ids_are_kept_and_drop_nothing() -> None:
    one = mapper("alltick")
    found = [one.map(trade(), RECV) for _ in range(3)]
    assert [
        (tick.trade_id, vendor_id) for ticks in found for tick, vendor_id in ticks if isinstance(tick, Trade)
    ] == [("1", -1)] * 3


def test_broken_object_costs_no_other_object_of_its_frame() -> None:
    one = mapper("alltick")
    frame = b"\n".join(
        [trade(), b"{broken", trade(), b"", trade("1,"), b'{"ret":200,"cmd_id":22001}', trade()]
    )
    ticks = one.map(frame, RECV)
    assert [tick.ts_recv for tick, _ in ticks] == [RECV, RECV + 1, RECV + 2]
    assert [type(notice).__name__ for notice in one.notices] == ["Rejected", "Rejected", "HeartbeatAck"]


def test_unreadable_field_names_the_stream_that_lost_a_tick() -> None:
    one = mapper("alltick")
    one.map(b'{"cmd_id":22999,"data":{"code":"GOLD","tick_time":1,"bids":5}}', RECV)
    one.map(b'{"cmd_id":22998,"data":{"code":5,"price":"1"}}', RECV)
    first, second = one.notices
    assert isinstance(first, Rejected) and (first.kind, first.symbol) == ("quote", "GOLD")
    assert isinstance(second, Rejected) and (second.kind, second.symbol, second.lost) == (None, None, True)
