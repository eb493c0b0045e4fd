"""What the conformance suite knows about each feed: frames as the vendor documents them, and what they mean.

Golden frames are literal; their messages are written by hand. `mutable` are valid frames for the fuzzer to
damage.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from services.vendors import VENDORS
from services.vendors.feed import (
    Closing,
    Feed,
    FeedSetup,
    HeartbeatAck,
    Mapper,
    Rejected,
    Skipped,
    SubscribeAck,
    Unknown,
    VendorError,
)
from services.vendors.symbols import SymbolMap
from tickbus.protocol.messages import Flag, Quote, Side, Trade
from tickbus.units import SECOND, Duration

RECV = 1_800_000_000_000_000_123
"""The receive time of the frames: 2027, after every ts_event in them."""
TOLERANCE = Duration(5 * SECOND)


@dataclass
class Examples:
    """One feed's examples."""

    symbols: list[str]
    golden: list[tuple[str, list[Trade | Quote], list[int]]]
    """(frame, its ticks, their vendor ids); ts_recv is RECV, RECV + 1, ..."""
    notices: list[tuple[str, type[Any]]]
    """(frame without ticks, the type of its only notice)."""
    trade: str
    """A trade frame, with %(price)s and %(size)s instead of their JSON."""
    quote: str
    """A quote frame, with %(bid)s, %(bid_size)s, %(ask)s and %(ask_size)s."""
    accepts_numbers: bool = True
    """Whether prices may be JSON numbers too."""
    mutable: list[Any] = field(default_factory=list)
    """The JSON values of all frames above."""


def setup(vendor: str, kinds: tuple[str, ...] = ("trade", "quote"), **more: Any) -> FeedSetup:
    more.setdefault("options", VENDORS[vendor].options())
    return FeedSetup(
        SymbolMap(EXAMPLES[vendor].symbols, VENDORS[vendor].feed.to_vendor_symbol, {}), kinds, **more
    )


def feed(vendor: str, kinds: tuple[str, ...] = ("trade", "quote"), **more: Any) -> Feed:
    return VENDORS[vendor].feed(setup(vendor, kinds, **more))


def subscribe_frames(one: Feed) -> list[str]:
    """Return the frames that subscribe to everything that the feed is configured for."""
    return one.subscribe(one.topics)


def mapper(vendor: str) -> Mapper:
    return feed(vendor).mapper(TOLERANCE)


ALLTICK = Examples(
    symbols=["1288.HK", "AAPL.US", "GOLD", "BTCUSDT"],
    golden=[
        (  # the form until 2026-06: texts, seconds
            '{"cmd_id":22998,"data":{"code":"1288.HK","seq":"1605509068000001","tick_time":"1605509068",'
            '"price":"651.12","volume":"300","turnover":"12345.6","trade_direction":1}}',
            [Trade("1288.HK", "651.12", "300", Side.BUY, "1605509068000001", 1605509068 * SECOND, RECV)],
            [-1],
        ),
        (  # since then: integers
            '{"cmd_id":22998,"data":{"code":"1288.HK","seq":1605509068000001,"tick_time":1605509068,'
            '"price":"651.12","volume":"300","turnover":"12345.6","trade_direction":1}}',
            [Trade("1288.HK", "651.12", "300", Side.BUY, "1605509068000001", 1605509068 * SECOND, RECV)],
            [-1],
        ),
        (  # the object of a real REST sample: milliseconds, six decimals
            '{"cmd_id":22998,"data":{"code":"AAPL.US","seq":"27755950","tick_time":"1751068801000",'
            '"price":"201.187000","volume":"174","turnover":"35006.099000","trade_direction":"2"}}',
            [Trade("AAPL.US", "201.187000", "174", Side.SELL, "27755950", 1751068801 * SECOND, RECV)],
            [-1],
        ),
        (  # metals: no direction, no turnover
            '{"cmd_id":22998,"data":{"code":"GOLD","seq":"24618487","tick_time":"1781166146694",'
            '"price":"4123.45","volume":"1","turnover":"","trade_direction":0}}',
            [Trade("GOLD", "4123.45", "1", Side.UNKNOWN, "24618487", 1781166146694 * 1_000_000, RECV)],
            [-1],
        ),
        (  # `volumn`: the spelling in a table of the manual
            '{"cmd_id":22998,"data":{"code":"GOLD","seq":"1","tick_time":"1781166146694",'
            '"price":"4123.45","volumn":"2"}}',
            [Trade("GOLD", "4123.45", "2", Side.UNKNOWN, "1", 1781166146694 * 1_000_000, RECV)],
            [-1],
        ),
        (
            '{"cmd_id":22999,"data":{"code":"1288.HK","seq":1605509068000001,"tick_time":1605509068,'
            '"bids":[{"price":"9.12","volume":"9.12"}],"asks":[{"price":"147.12","volume":"147.12"}]}}',
            [Quote("1288.HK", "9.12", "9.12", "147.12", "147.12", 1605509068 * SECOND, RECV)],
            [-1],
        ),
        (  # forex: no sizes; one side empty at a limit; more levels than the top
            '{"cmd_id":22999,"data":{"code":"GOLD","seq":"7","tick_time":"1781166146694",'
            '"bids":[{"price":"1.1"},{"price":"1.0"}],"asks":[]}}',
            [Quote("GOLD", "1.1", None, None, None, 1781166146694 * 1_000_000, RECV)],
            [-1],
        ),
        (  # two objects in one frame
            '{"cmd_id":22998,"data":{"code":"GOLD","seq":"1","tick_time":"1781166146","price":"1","volume":"2"}}\n'
            '{"cmd_id":22998,"data":{"code":"GOLD","seq":"2","tick_time":"1781166146","price":"1","volume":"2"}}\n',
            [
                Trade("GOLD", "1", "2", Side.UNKNOWN, "1", 1781166146 * SECOND, RECV),
                Trade("GOLD", "1", "2", Side.UNKNOWN, "2", 1781166146 * SECOND, RECV + 1),
            ],
            [-1, -1],
        ),
        (  # no number, no time, no prices: nothing is made of zeros
            '[{"cmd_id":22998,"data":{"code":"GOLD","seq":0,"tick_time":0,"price":"1","volume":"2"}},'
            '{"cmd_id":22999,"data":{"code":"GOLD","tick_time":"1781166146",'
            '"bids":[{"price":"0","volume":"0"}],"asks":[{"price":"","volume":""}]}}]',
            [
                Trade("GOLD", "1", "2", Side.UNKNOWN, None, RECV, RECV, flags=Flag.BAD_TIME),
                Quote("GOLD", None, None, None, None, 1781166146 * SECOND, RECV + 1),
            ],
            [-1, -1],
        ),
    ],
    notices=[
        ('{"ret":200,"msg":"ok","cmd_id":22001,"seq_id":123,"trace":"asdfsdfa","data":{}}', HeartbeatAck),
        ('{"ret":200,"msg":"ok","cmd_id":22003,"seq_id":123,"trace":"asdfsdfa","data":{}}', SubscribeAck),
        (
            '{"ret":200,"msg":"ok","cmd_id":22005,"seq_id":106254124,'
            '"trace":"3baaa938-f92c-4a74-a228-fd49d5e2","data":{}}',
            SubscribeAck,
        ),
        ('{"ret":200,"msg":"ok","cmd_id":22007,"seq_id":2,"trace":"t2","data":{}}', SubscribeAck),
        ('{"cmd_id":23999,"data":{"code":"GOLD","anything":[1,{"a":null}]}}', Unknown),
        ('{"cmd_id":22998}', Unknown),
        ('{"type":"error","message":"maintenance at 22:00"}', VendorError),
    ],
    trade='{"cmd_id":22998,"data":{"code":"GOLD","seq":"1","tick_time":"1781166146694",'
    '"price":%(price)s,"volume":%(size)s,"trade_direction":1}}',
    quote='{"cmd_id":22999,"data":{"code":"GOLD","seq":"7","tick_time":"1781166146694",'
    '"bids":[{"price":%(bid)s,"volume":%(bid_size)s}],"asks":[{"price":%(ask)s,"volume":%(ask_size)s}]}}',
)

BINANCE = Examples(
    symbols=["BNB-BTC", "BNB-USDT"],
    golden=[
        (
            '{"e":"trade","E":1672515782136,"s":"BNBBTC","t":12345,"p":"0.001","q":"100",'
            '"T":1672515782136,"m":true,"M":true}',
            [Trade("BNB-BTC", "0.001", "100", Side.SELL, "12345", 1672515782136 * 1_000_000, RECV)],
            [12345],
        ),
        (  # combined, the buyer is the taker, timeUnit=MICROSECOND, with the order ids sent before June 2024
            '{"stream":"bnbbtc@trade","data":{"e":"trade","E":1672515782136555,"s":"BNBBTC","t":12346,'
            '"p":"0.00100000","q":"100.00","b":88,"a":50,"T":1672515782136444,"m":false,"M":true}}',
            [Trade("BNB-BTC", "0.00100000", "100.00", Side.BUY, "12346", 1672515782136444 * 1_000, RECV)],
            [12346],
        ),
        (
            '{"u":400900217,"s":"BNBUSDT","b":"25.35190000","B":"31.21000000",'
            '"a":"25.36520000","A":"40.66000000"}',
            [Quote("BNB-USDT", "25.35190000", "31.21000000", "25.36520000", "40.66000000", RECV, RECV)],
            [-1],
        ),
        (
            '{"stream":"bnbusdt@bookTicker","data":{"u":400900218,"s":"BNBUSDT",'
            '"b":"25.3","B":"31","a":"25.4","A":"40"}}',
            [Quote("BNB-USDT", "25.3", "31", "25.4", "40", RECV, RECV)],
            [-1],
        ),
        (  # an empty side of the book
            '{"u":400900219,"s":"BNBUSDT","b":"0.00000000","B":"0.00000000","a":"25.4","A":"40"}',
            [Quote("BNB-USDT", None, None, "25.4", "40", RECV, RECV)],
            [-1],
        ),
        (  # no time; the first trade of a symbol has the id 0
            '{"e":"trade","E":1,"s":"BNBBTC","t":0,"p":"1","q":"2","T":0,"m":false}',
            [Trade("BNB-BTC", "1", "2", Side.BUY, "0", RECV, RECV, flags=Flag.BAD_TIME)],
            [0],
        ),
        (  # several events in a frame, as some proxies send them
            '{"stream":"bnbbtc@trade","data":['
            '{"e":"trade","E":1,"s":"BNBBTC","t":7,"p":"1","q":"2","T":1672515782136,"m":false},'
            '{"u":400900217,"s":"BNBBTC","b":"1","B":"2","a":"3","A":"4"},'
            '{"e":"trade","E":1,"s":"BNBBTC","t":8,"p":"1","q":"2","T":1672515782136,"m":true}]}',
            [
                Trade("BNB-BTC", "1", "2", Side.BUY, "7", 1672515782136 * 1_000_000, RECV),
                Quote("BNB-BTC", "1", "2", "3", "4", RECV + 1, RECV + 1),
                Trade("BNB-BTC", "1", "2", Side.SELL, "8", 1672515782136 * 1_000_000, RECV + 2, "1", "3"),
            ],
            [7, -1, 8],
        ),
    ],
    notices=[
        ('{"result":null,"id":1}', SubscribeAck),
        ('{"result":null,"id":"a1b2"}', SubscribeAck),
        ('{"e":"serverShutdown","E":1770123456789}', Closing),
        ('{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}', Closing),
        (
            '{"e":"aggTrade","E":1672515782136,"s":"BNBBTC","a":12345,"p":"0.001","q":"100",'
            '"f":100,"l":105,"T":1672515782136,"m":true,"M":true}',
            Skipped,
        ),
        (
            '{"e":"blockTrade","E":1772506983582,"s":"BNBBTC","t":582,"p":"0.052","q":"5838",'
            '"T":1772506983321,"m":true}',
            Skipped,
        ),
        (
            '{"stream":"bnbbtc@depth@100ms","data":{"e":"depthUpdate","E":1772506983582,"s":"BNBBTC",'
            '"U":157,"u":160,"b":[["0.0024","10"]],"a":[["0.0026","100"]]}}',
            Skipped,
        ),
        (
            '{"stream":"bnbbtc@depth5","data":{"lastUpdateId":160,'
            '"bids":[["0.0024","10"]],"asks":[["0.0026","100"]]}}',
            Skipped,
        ),
        (
            '{"e":"kline","E":1672515782136,"s":"BNBBTC","k":{"t":1672515780000,"T":1672515839999,'
            '"s":"BNBBTC","i":"1m","f":100,"L":200,"o":"0.0010","c":"0.0020","h":"0.0025","l":"0.0015",'
            '"v":"1000","n":100,"x":false,"q":"1.0000","V":"500","Q":"0.500","B":"123456"}}',
            Skipped,
        ),
        (
            '{"e":"24hrTicker","E":1672515782136,"s":"BNBBTC","p":"0.0015","P":"250.00",'
            '"b":"0.0024","B":"10","a":"0.0026","A":"100"}',
            Skipped,
        ),
        ('{"stream":"!miniTicker@arr","data":[{"e":"24hrMiniTicker","s":"BNBBTC","c":"0.0025"}]}', Skipped),
        ('{"e":"outboundAccountPosition","E":1,"u":2,"B":[{"a":"ETH","f":"1","l":"0"}]}', Skipped),
        ('{"e":"somethingNew","s":{"base":"BNB"},"t":"text","T":[1]}', Unknown),
        ('{"tick":{"e":"trade","s":"BNBBTC","t":1}}', Rejected),
        ('{"type":"error","msg":"maintenance"}', VendorError),
    ],
    trade='{"e":"trade","E":1672515782136,"s":"BNBBTC","t":12345,"p":%(price)s,"q":%(size)s,'
    '"T":1672515782136,"m":true,"M":true}',
    quote='{"u":400900217,"s":"BNBUSDT","b":%(bid)s,"B":%(bid_size)s,"a":%(ask)s,"A":%(ask_size)s}',
    accepts_numbers=False,
)

_JSON_TIME = 1_723_210_200_123_456_789

JSON = Examples(
    symbols=["AAPL", "MSFT"],
    golden=[
        (
            '{"trades":[{"symbol":"AAPL","price":187.3,"volume":100,"time":1723210200},'
            '{"symbol":"MSFT","price":"411.20","volume":"5","time":"1723210200123"}]}',
            [
                Trade("AAPL", "187.3", "100", Side.UNKNOWN, None, 1723210200 * SECOND, RECV),
                Trade("MSFT", "411.20", "5", Side.UNKNOWN, None, 1723210200123 * 1_000_000, RECV + 1),
            ],
            [-1, -1],
        ),
        (
            '{"trades":[{"symbol":"AAPL","price":"1","volume":0.5,"time":"2024-08-09T13:30:00.123456789Z",'
            '"side":"Buy","id":77}]}',
            [Trade("AAPL", "1", "0.5", Side.BUY, "77", _JSON_TIME, RECV)],
            [-1],
        ),
        (  # seconds with a fraction, as a number, to the last digit
            '{"trades":[{"symbol":"AAPL","price":1,"volume":1,"time":1723210200.123456789,"side":"sell"}]}',
            [Trade("AAPL", "1", "1", Side.SELL, None, _JSON_TIME, RECV)],
            [-1],
        ),
        (
            '{"quotes":[{"symbol":"AAPL","bid":1.10,"bid_size":5,"ask":null,"time":1723210200123456789}]}',
            [Quote("AAPL", "1.10", "5", None, None, _JSON_TIME, RECV)],
            [-1],
        ),
        (  # the quotes of a frame come first: its trades carry them
            '{"trades":[{"symbol":"AAPL","price":1,"volume":1}],"quotes":[{"symbol":"AAPL","bid":1,"ask":2}]}',
            [
                Quote("AAPL", "1", None, "2", None, RECV, RECV, Flag.BAD_TIME),
                Trade("AAPL", "1", "1", Side.UNKNOWN, None, RECV + 1, RECV + 1, "1", "2", Flag.BAD_TIME),
            ],
            [-1, -1],
        ),
        (  # zeros that mean "none"
            '{"trades":[{"symbol":"AAPL","price":1,"volume":1,"time":0,"id":0}],'
            '"quotes":[{"symbol":"AAPL","bid":0,"bid_size":0,"ask":"2","ask_size":"","time":1723210200}]}',
            [
                Quote("AAPL", None, None, "2", None, 1723210200 * SECOND, RECV),
                Trade("AAPL", "1", "1", Side.UNKNOWN, None, RECV + 1, RECV + 1, None, "2", Flag.BAD_TIME),
            ],
            [-1, -1],
        ),
        (  # lists of frames, of ticks, of lists
            '[{"trades":[{"symbol":"AAPL","price":"1","volume":1.50,"time":1723210200}]},'
            '{"symbol":"MSFT","price":"2","volume":"1","time":1723210200},'
            '[{"symbol":"MSFT","bid":"3","ask":"4","time":1723210200}]]',
            [
                Trade("AAPL", "1", "1.50", Side.UNKNOWN, None, 1723210200 * SECOND, RECV),
                Trade("MSFT", "2", "1", Side.UNKNOWN, None, 1723210200 * SECOND, RECV + 1),
                Quote("MSFT", "3", None, "4", None, 1723210200 * SECOND, RECV + 2),
            ],
            [-1, -1, -1],
        ),
        ('{"trades":[]}', [], []),
    ],
    notices=[
        ('{"type":"welcome","version":3}', Skipped),
        ('{"status":"subscribed","symbols":["AAPL"]}', Skipped),
        ("{}", Skipped),
        ("[1,2]", Unknown),
        ('"hello"', Unknown),
        ('{"market":"open in 5 minutes"}', Unknown),
        ('{"type":"error","msg":"unknown symbol XX"}', VendorError),
        ('{"STATUS":"ERROR","reason":"too many symbols","code":17}', VendorError),
        ('[{"T":"error","code":406,"msg":"connection limit exceeded"}]', VendorError),
        ('{"event":"auth_failed","message":"no such key"}', VendorError),
        ('{"success":false,"ret_msg":"no such topic"}', VendorError),
        ('{"data":[{"symbol":"AAPL","price":"1","volume":"1"}]}', Rejected),
    ],
    trade='{"trades":[{"symbol":"AAPL","price":%(price)s,"volume":%(size)s,"time":1723210200}]}',
    quote='{"quotes":[{"symbol":"AAPL","bid":%(bid)s,"bid_size":%(bid_size)s,'
    '"ask":%(ask)s,"ask_size":%(ask_size)s,"time":1723210200}]}',
)

EXAMPLES: dict[str, Examples] = {"alltick": ALLTICK, "binance": BINANCE, "json": JSON}

KEEPALIVES = ["", "  ", "\r\n", "{}", "[]", "ping", "pong", "PONG", '"pong"', "ping 1723210200123",
              "primus::pong::1723210200123", "heartbeat", "hb", "~h~17", "h", "o", "2", "3",
              '{"ping":1723210200123}', '{"type":"heartbeat"}', '{"op":"pong","ts":1723210200123}',
              '{"event":"heartbeat","data":{}}']  # fmt: skip
"""Frames by which vendors, and the libraries that they use, keep a connection alive."""

for _vendor in EXAMPLES.values():
    _vendor.notices += [(frame, Skipped) for frame in KEEPALIVES]
    _vendor.notices += [("welcome to the feed", Unknown), ("null", Unknown), ('"AAPL,1.5,100"', Rejected)]
    _vendor.mutable = [
        json.loads(line) for frame, _, _ in _vendor.golden for line in frame.split("\n") if line
    ]
    _vendor.mutable += [json.loads(frame) for frame, _ in _vendor.notices if frame[:1] in ("{", "[")]
