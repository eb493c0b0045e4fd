"""What anybody may send to a relay: requests, query strings, vendors' frames, tokens, raw bytes."""

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs, quote_from_bytes

from support.processes import Process
from support.redis_server import RedisServer
from websockets.frames import Opcode
from websockets.sync.client import connect

from fuzz.engine import Pieces, Run, Target, pure
from fuzz.hostile import (
    TEXTS,
    damaged_bytes,
    damaged_json,
    damaged_msgpack,
    pack,
    some_of,
    text_of_json,
    to_bytes,
)
from services.relay.api import Api
from services.relay.documents import documents
from services.relay.registry import Registry
from services.relay.requests import (
    MAX_LAST,
    BadRequest,
    Last,
    Subscribe,
    parse_begin,
    parse_json,
    parse_msgpack,
    parse_rate,
    parse_symbols,
)
from services.relay.selection import Glob, Scope, Selection, Symbols
from services.relay.tokens import ANONYMOUS, Tokens, hash_token
from services.vendors import VENDORS, open_dialect
from services.vendors.dialect import Dialect, VendorLimits
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Side, Trade
from tickbus.protocol.names import FEED_KINDS, Keys, Stream
from tickbus.units import SECOND

# requests of /v1

_BEGINS: tuple[Any, ...] = (
    "now", "start", "last:5", "last:00000000" + "1" * 9, "last:00000000" + "1" * 5000, "last:²", "1700000000",
    (1 << 64) - 1, -1, "9" * 400, "2024-01-01T00:00:00Z", {"trade:binance:BTC-USDT": "1700000000000-5"},
    {"trade:binance:BTC-USDT": "1700000000000-5@0123456789abcdef"}, {"trade:x:A": "1-" + "9" * 5000},
    {"trade:x:A": "@"}, {"": ""}, {},
)  # fmt: skip
_SYMBOLS: tuple[Any, ...] = (
    "BTC-USDT", "BTC-*", "*", "*A*", "**", "*A*B*", "a", "", "A" * 65, "A" * 63 + "*", ".", "É",
    "A\n",
)  # fmt: skip
_REQUESTS: tuple[dict[str, Any], ...] = (
    {"op": "auth", "token": "x"},
    {"op": "ping", "id": 1},
    {"op": "unsubscribe", "id": "a"},
)


def make_requests(chance: Random) -> Pieces:
    return [_request(chance) for _ in range(chance.randint(1, 4))]


def _request(chance: Random) -> bytes:
    request = chance.choice(_REQUESTS) if chance.random() < 0.1 else _subscribe(chance)
    if chance.random() < 0.5:
        return damaged_json(chance, request) if chance.random() < 0.7 else to_bytes(text_of_json(chance))
    packed = pack(request)
    return damaged_msgpack(chance, packed) if chance.random() < 0.6 else packed


def _subscribe(chance: Random) -> dict[str, Any]:
    request: dict[str, Any] = {"op": "subscribe", "id": chance.choice((1, -1, 1 << 60, "x", "y" * 70))}
    request["kind"] = chance.choice(("trade", "quote", "bar", "signal"))
    request["symbols"] = some_of(chance, _SYMBOLS, 3)
    request["policy"] = chance.choice(("lossless", "drop", "conflate"))
    request["from"] = chance.choice(_BEGINS)
    for name, values in (
        ("rate", (0, 0.1, 4, 20, 20.01, 1e308, -1)),
        ("feeds", (["binance"], ["X!"], [""])),
        ("specs", (["time:1m"], ["time:0s"], ["x"], ["tick:" + "9" * 5000])),
        ("want", (True, False)),
    ):
        if chance.random() < 0.3:
            request[name] = chance.choice(values)
    return request


def run_requests(pieces: Pieces) -> None:
    """A request is carried out with sane values, or refused by BadRequest in one short line."""
    for piece in pieces:
        for parse in (parse_json, parse_msgpack):
            with suppress(UnicodeDecodeError):
                _carry_out(parse, piece.decode() if parse is parse_json else piece)


def _carry_out(parse: Any, message: str | bytes) -> None:
    try:
        request = parse(message)
        if not isinstance(request, Subscribe):
            return
        begin = parse_begin(request.from_, request.kind)
        if isinstance(begin, Last):
            assert 0 < begin.count <= MAX_LAST, f"last: {begin.count}"
        assert 0.1 <= parse_rate(request) <= 20, "rate"
        symbols = parse_symbols(request)
    except BadRequest as error:
        assert len(str(error)) < 1_000, f"an answer of {len(str(error))} characters"
        return
    selection = Selection(request.kind, symbols, frozenset(), frozenset(), Scope())
    for name in ("BTC-USDT", "A", "AAB", "BAAB"):
        found = any(_matches(text, name) for text in request.symbols) or not request.symbols
        stream = Stream(request.kind, "binance", name, "time:1m" if request.kind == "bar" else "")
        assert selection(stream) == found, f"{name} in {request.symbols}"


def _matches(glob: str, name: str) -> bool:
    return re.fullmatch(re.escape(glob).replace(r"\*", ".*"), name) is not None


# globs, beside the regular expression that they stand for


def make_globs(chance: Random) -> Pieces:
    return ["".join(chance.choices("AB*", k=chance.randint(0, 6))).encode() for _ in range(4)]


def run_globs(pieces: Pieces) -> None:
    texts = [piece.decode("latin-1") for piece in pieces]
    for text in texts:
        try:
            glob = Glob(text)
        except ValueError:
            continue
        for name in (*texts, "ABAB"):
            if "*" not in name:
                assert glob.matches(name) == _matches(text, name), f"{text} and {name}"
    with suppress(ValueError):
        Symbols.parse(texts)


# what vendors' clients send

_TARGETS = (
    b"/ws", b"/stream", b"/ws/btcusdt@trade", b"/stream?streams=btcusdt@trade/ethusdt@bookTicker", b"/",
    b"/stock/ws", b"/quote-b-ws-api?token=x", b"/quote-stock-b-ws-api?token=x", b"/ws/\xff%ff%00/@/@@",
    b"/stream?streams=" + b"a/" * 3000, b"/ws?timeUnit=microsecond",
)  # fmt: skip
_FRAMES: tuple[dict[str, Any], ...] = (
    {"method": "SUBSCRIBE", "params": ["btcusdt@trade"], "id": 1},
    {"method": "UNSUBSCRIBE", "params": ["btcusdt@trade"], "id": None},
    {"method": "SET_PROPERTY", "params": ["combined", True], "id": "x"},
    {"cmd_id": 22004, "seq_id": 1, "trace": "t", "data": {"symbol_list": [{"code": "BTC-USDT"}]}},
    {"cmd_id": 22002, "seq_id": 1, "trace": "t", "data": {"symbol_list": [{"code": "A", "depth_level": 5}]}},
    {"cmd_id": 22006, "seq_id": 1, "trace": "t", "data": {"cancel_type": 0}},
    {"action": "subscribe", "symbols": ["AAPL", "BTC-USDT"], "quotes": True},
    {"action": "unsubscribe", "symbols": ["AAPL"]},
)
_TRADE = Trade("BTC-USDT", "1.5", "2", Side.BUY, "7", 1_700_000_000 * SECOND, 1_700_000_000 * SECOND)


def make_vendor_client(chance: Random) -> Pieces:
    target = chance.choice(_TARGETS)
    target = damaged_bytes(chance, target) if chance.random() < 0.3 else target
    frames = [
        damaged_json(chance, chance.choice(_FRAMES))
        if chance.random() < 0.8
        else to_bytes(text_of_json(chance))
        for _ in range(chance.randint(1, 6))
    ]
    return [target, *frames]


def run_vendor_client(pieces: Pieces) -> None:
    """A dialect answers or closes, and never raises; each symbol that it names can be looked up."""
    options = {name: vendor.relay_options for name, vendor in VENDORS.items() if vendor.relay_options}
    now = time.monotonic_ns()
    registry = Registry(None, {"BTC-USDT": "XBT"}, {})  # type: ignore[arg-type]  # asks nothing here
    target = pieces[0].decode("latin-1") if pieces else "/"
    for vendor in VENDORS.values():
        if vendor.answer_get is not None:
            vendor.answer_get(target, (), now)
    dialect = open_dialect(target, VendorLimits(), options, now)
    if not isinstance(dialect, Dialect):
        return
    feed = VENDORS[dialect.vendor].feed
    for piece in pieces[1:]:
        now += SECOND
        for answer in (dialect.receive(piece, now), dialect.on_pong(piece[:125], now), dialect.on_timer(now)):
            assert all(isinstance(reply, bytes) for reply in answer.replies)
        for spelling in dialect.symbols():
            for kind in FEED_KINDS:
                if dialect.wants(kind, spelling):
                    registry.stream(dialect.vendor, kind, registry.symbol(feed, spelling))
            dialect.render(_TRADE, spelling, 1)
    assert dialect.slow_down().close is not None


# the HTTP API

_PATHS = ("/api/symbols", "/api/snapshot", "/api/history", "/api/bars", "/api/status", "/openapi.json", "/x")
_NAMES = ("kind", "symbols", "feeds", "specs", "stream", "from", "after", "limit", "symbol", "spec", "feed",
          "to", "token", "x")  # fmt: skip
_VALUES = (
    *TEXTS, "trade:binance:BTC-USDT", "start", "now", "1700000000", "1700000000000-5", "time:1m", "1000", "0",
    "00000000" + "1" * 5000, "²", "BTC-*,*", "5m",
)  # fmt: skip


class _Nothing:
    """Stands for the bus: it holds nothing."""

    keys = Keys()

    async def find(self, *_: object) -> list[Any]:
        return []

    async def page(self, *_: object) -> list[Any]:
        return []


def make_query(chance: Random) -> Pieces:
    pairs = [
        f"{chance.choice(_NAMES)}=".encode() + quote_from_bytes(to_bytes(chance.choice(_VALUES))).encode()
        for _ in range(chance.randint(0, 4))
    ]
    query = b"&".join(pairs)
    return [chance.choice(_PATHS).encode(), damaged_bytes(chance, query) if chance.random() < 0.3 else query]


async def _no_status(_: object) -> dict[str, object]:
    return {}


@contextmanager
def open_api(folder: Path) -> Iterator[Run]:
    api = Api(_Nothing(), _no_status, documents())  # type: ignore[arg-type]
    with asyncio.Runner() as runner:
        runner.get_loop().set_debug(False)

        def run(pieces: Pieces) -> None:
            path, query = [*(piece.decode("latin-1") for piece in pieces), "", ""][:2]
            asked = parse_qs(query, keep_blank_values=True)
            code, _, body = runner.run(api.get(path, asked, ANONYMOUS))
            assert code in (200, 400, 403, 404), f"status {code}"
            assert code == 200 or len(body) < 2_000, f"an error of {len(body)} bytes"

        yield run


# the file of tokens, and tokens


def make_tokens(chance: Random) -> Pieces:
    row = (
        f'[[token]]\nname = "desk"\nsha256 = "{"0" * 64}"\nkinds = ["trade"]\nsymbols = ["BTC-*"]\n'
        "history = true\nmax_connections = 5\n"
    ).encode()
    text = row * chance.randint(1, 2)
    return [damaged_bytes(chance, text) if chance.random() < 0.9 else text, to_bytes(chance.choice(TEXTS))]


@contextmanager
def open_tokens(folder: Path) -> Iterator[Run]:
    path = folder / "tokens.toml"

    def run(pieces: Pieces) -> None:
        """A file is used or refused in one line; no token is found that is not in it."""
        path.write_bytes(pieces[0] if pieces else b"")
        token = b"".join(pieces[1:]).decode("utf-8", "surrogateescape")
        hash_token(token)
        try:
            tokens = Tokens(path)
        except ConfigError as error:
            assert "\n" not in str(error), "an error of several lines"
            return
        assert tokens.find(token) is None, "a token is accepted that is not in the file"

    yield run


# bytes for the port of a real relay

_LINES = (
    b"GET /v1 HTTP/1.1", b"GET / HTTP/1.1", b"GET /ws HTTP/1.1", b"GET /stream?streams=a@trade HTTP/1.1",
    b"GET /quote-b-ws-api?token=x HTTP/1.1", b"GET /api/symbols HTTP/1.1", b"HEAD /api/status HTTP/1.1",
    b"OPTIONS * HTTP/1.1", b"POST /v1 HTTP/1.1", b"GET //[ HTTP/1.1", b"GET http://[ HTTP/1.1",
    b"GET /v1?token=%ff&token=x HTTP/1.1", b"GET /api/v3/exchangeInfo HTTP/1.1", b"GET /\xff HTTP/1.1",
    b"PRI * HTTP/2.0", b"\x16\x03\x01\x02\x00",
)  # fmt: skip
_HEADERS = (
    b"Host: localhost", b"Host: 127.0.0.1", b"Host: [::1", b"Host:", b"Host: evil.example", b"Origin: http://[",
    b"Origin: null", b"Origin: http://localhost", b"Upgrade: websocket", b"Upgrade: h2c",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: x", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Protocol: tickbus.msgpack", b"Sec-WebSocket-Protocol: ,,",
    b"Sec-WebSocket-Protocol: tickbus.token.====", b"Sec-WebSocket-Extensions: permessage-deflate; x=\xff",
    b"Authorization: Bearer", b"Authorization: Bearer \xff", b"Content-Length: 5", b"X: " + b"y" * 9_000,
    b"X",
)  # fmt: skip
_HANDSHAKE = [b"Host: localhost", *_HEADERS[8:9], *_HEADERS[10:12], _HEADERS[13]]
_READ_SECONDS = 0.05


def make_bytes(chance: Random) -> Pieces:
    good = chance.random() < 0.7
    lines = [chance.choice(_LINES[:5]), *_HANDSHAKE] if good else [chance.choice(_LINES)]
    if not good or chance.random() < 0.2:
        lines += some_of(chance, _HEADERS, 5)
    request = b"\r\n".join(lines) + b"\r\n\r\n"
    if not good and chance.random() < 0.4:
        request = damaged_bytes(chance, request)
    return [request, *(_frame(chance) for _ in range(chance.randint(0, 6)))]


def _frame(chance: Random) -> bytes:
    opcode = chance.choice(list(Opcode))
    data = chance.choice((_request(chance), damaged_json(chance, chance.choice(_FRAMES)), b"", b"\x03\xe8x"))
    if opcode.value >= 8:
        data = data[:125]
    first = opcode | (0 if chance.random() < 0.2 else 0x80)  # or not the last of its message
    size = len(data)
    length = bytes((size,)) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    if size >= 1 << 16:
        length = b"\x7f" + size.to_bytes(8, "big")
    frame = bytes((first,)) + length + data  # without a mask, which is an error
    if chance.random() < 0.95:
        mask = chance.randbytes(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        frame = bytes((first, length[0] | 0x80)) + length[1:] + mask + masked
    return damaged_bytes(chance, frame, 2) if chance.random() < 0.2 else frame


@contextmanager
def open_relay(folder: Path) -> Iterator[Run]:
    server = RedisServer(folder / "redis")
    server.start()
    relay = Process(folder / "relay.log", "relay", "--redis", server.url, "--port", "0")
    try:
        url = relay.wait_for(r"serving (ws://[^/]+)/v1")[1]
        with connect(f"{url}/v1") as good:
            yield partial(_attack, relay, url, good)
    finally:
        relay.close()
        server.close()


def _attack(relay: Process, url: str, good: Any, pieces: Pieces) -> None:
    """Whatever is sent gets an answer, none of the server's own faults; a good client is served on."""
    host, port = url.removeprefix("ws://").split(":")
    with suppress(OSError), socket.create_connection((host, int(port)), 10) as client:
        client.sendall(b"".join(pieces))
        client.settimeout(_READ_SECONDS)
        answer = client.recv(65_536)
        assert not re.match(rb"HTTP/1.1 500", answer), f"status 500: {answer[:200]!r}"
        with suppress(TimeoutError):
            while piece := client.recv(65_536):
                answer = piece
        assert b"\x03\xf3" not in answer[:8], "closed with 1011: an error of the relay"
    time.sleep(0.06)  # the good client may ask 20 times a second
    good.send('{"op":"ping","id":1}')
    assert good.recv(10) == '{"op":"pong","id":1}', "the good client"
    assert relay.process.poll() is None, "the relay has ended"
    assert "Traceback" not in relay.output, f"the relay logs a traceback: {relay.output[-2000:]}"


TARGETS = [
    Target("relay-request", make_requests, partial(pure, run_requests)),
    Target("relay-glob", make_globs, partial(pure, run_globs)),
    Target("relay-vendor", make_vendor_client, partial(pure, run_vendor_client)),
    Target("relay-query", make_query, open_api),
    Target("relay-tokens", make_tokens, open_tokens, short=150),
    Target("relay-port", make_bytes, open_relay, short=25),
]
