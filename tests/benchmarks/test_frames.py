"""The synthetic market of the benchmarks, and its frames."""

import json
from collections import Counter
from pathlib import Path

from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.protocol import State
from websockets.uri import parse_uri

from benchmarks.frames import FIRST_ID, binance_text, frame, json_text, market, read_chunks, render, symbols


def received(data: bytes) -> list[bytes]:
    """Return what a WebSocket client decodes from the bytes that a server sends after the handshake."""
    client = ClientProtocol(parse_uri("ws://localhost"), state=State.OPEN, max_size=None)
    client.receive_data(data)
    assert client.parser_exc is None
    return [bytes(event.data) for event in client.events_received() if isinstance(event, Frame)]


def test_file_contains_the_market_in_whole_frames(tmp_path: Path) -> None:
    names = symbols(7)
    file = render(tmp_path / "frames", names, 3000)
    data = file.path.read_bytes()
    chunks = read_chunks(file.path)
    assert chunks[-1] == len(data)
    assert len(chunks) > 1
    texts = [
        text for begin, end in zip([0, *chunks], chunks, strict=False) for text in received(data[begin:end])
    ]
    trades = list(market(names, 3000))
    assert [
        (event["s"], event["t"], event["p"], event["q"], event["m"])
        for event in (json.loads(text)["data"] for text in texts)
    ] == [
        (trade.symbol.replace("-", ""), trade.id, trade.price, trade.size, trade.seller) for trade in trades
    ]
    assert file.counts == Counter(trade.symbol for trade in trades)
    assert file.last == trades[-1]
    assert file.sample == [trade for trade in trades if trade.symbol == trades[-1].symbol]


def test_ids_are_contiguous_and_the_market_is_deterministic() -> None:
    trades = list(market(symbols(3), 500))
    for name in symbols(3):
        ids = [trade.id for trade in trades if trade.symbol == name]
        assert ids == list(range(FIRST_ID, FIRST_ID + len(ids)))
    assert trades == list(market(symbols(3), 500))


def test_both_dialects_encode_the_same_trade() -> None:
    trade = next(market(symbols(1), 1))
    binance = json.loads(binance_text(trade, 1_723_161_255_343_000))
    assert binance["stream"] == "s00000usdt@trade"
    assert binance["data"]["T"] == binance["data"]["E"] == 1_723_161_255_343_000
    assert json.loads(json_text(trade, 5)) == {
        "trades": [{"symbol": "S00000-USDT", "price": trade.price, "volume": trade.size, "time": 5}]
    }


def test_frames_of_every_length_are_decoded() -> None:
    texts = [b"x" * length for length in (0, 1, 125, 126, 65535)]
    assert received(b"".join(map(frame, texts))) == texts
