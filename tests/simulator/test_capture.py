import contextlib
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.simulator.capture import Capture
from services.simulator.tick import RecordedFrame, Tick
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Quote, Side, Trade

TRADE = (
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":2,"s":"BTCUSDT","t":5,'
    b'"p":"61837.63000000","q":"0.02000000","T":1723161255342,"m":true}}'
)
BOOK = b'{"stream":"btcusdt@bookTicker","data":{"u":9,"s":"BTCUSDT","b":"1.10","B":"2","a":"1.20","A":"3"}}'
DEPTH = b'{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","b":[["1","0"]],"a":[]}}'
LINES = b"10 " + TRADE + b"\n12 " + BOOK + b'\n13 {"lastUpdateId":5}\n14 ' + DEPTH + b"\n"


def expected(quotes_before: int = 0) -> list[Tick]:
    """Return the ticks of LINES. A quote has no time of its own, only the recorder's; its ids are counted."""
    trade = Trade(
        "BTCUSDT",
        "61837.63000000",
        "0.02000000",
        Side.SELL,
        "5",
        1723161255342 * 10**6,
        10,
        bid_text="1.10" if quotes_before else None,
        ask_text="1.20" if quotes_before else None,
    )
    quote = Quote("BTCUSDT", "1.10", "2", "1.20", "3", 12, 12)
    return [
        Tick("trade:BTCUSDT", "BTCUSDT", 5, 10, trade, RecordedFrame("binance", "btcusdt@trade", TRADE)),
        Tick(
            "quote:BTCUSDT",
            "BTCUSDT",
            quotes_before + 1,
            12,
            quote,
            RecordedFrame("binance", "btcusdt@bookTicker", BOOK),
        ),
        Tick(
            "binance:btcusdt@depth@100ms",
            "BTCUSDT",
            0,
            14,
            None,
            RecordedFrame("binance", "btcusdt@depth@100ms", DEPTH),
        ),
    ]


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\n\n"])
def test_capture_yields_ticks_with_their_frames(tmp_path: Path, end: bytes) -> None:
    plain, compressed = tmp_path / "c.txt", tmp_path / "c.gz"
    plain.write_bytes(LINES.rstrip(b"\n") + end)
    compressed.write_bytes(gzip.compress(LINES))
    ticks = list(Capture([plain, compressed]))
    for tick in ticks:
        assert tick.recorded_frame is not None
        tick.recorded_frame = replace(tick.recorded_frame, frame=tick.recorded_frame.frame.rstrip(b"\r"))
    assert ticks == expected() + expected(quotes_before=1)


@pytest.mark.parametrize(
    "line",
    [
        b"no number {}",
        b'1 {"stream":"a@trade","data":{"s":1}}',
        b'1 {"stream":"a@trade"',
        b'1 {"stream":"\xff@trade","data":{}}',
    ],
)
def test_error_names_the_invalid_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(LINES + line)
    with pytest.raises(ConfigError, match=r"c\.txt, line 5: "):
        list(Capture([path]))


@given(st.binary())
def test_any_file_is_accepted_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "c.txt"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        list(Capture([path]))


def test_truncated_gzip_file_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "c.gz"
    path.write_bytes(gzip.compress(LINES)[:-20])
    with pytest.raises(ConfigError, match="cannot read"):
        list(Capture([path]))


@pytest.mark.data
def test_real_capture_has_every_trade(data: Path) -> None:
    ticks = list(Capture([data / "spot_btcusdt_20240808.gz", data / "spot_btcusdt_20240809.gz"]))
    assert [tick.id for tick in ticks if tick.kind == "trade"] == list(range(3735683259, 3735703163))
    assert sum(tick.kind == "quote" for tick in ticks) == 73_174
    for tick in ticks[::500]:
        if isinstance(tick.message, Trade):
            assert tick.recorded_frame is not None
            frame, trade = json.loads(tick.recorded_frame.frame)["data"], tick.message
            assert (trade.price_text, trade.size_text, trade.ts_event) == (
                frame["p"],
                frame["q"],
                frame["T"] * 10**6,
            )
            assert trade.side is (Side.SELL if frame["m"] else Side.BUY)
