"""A raw capture of Binance frames as a market. The file is read as the market goes on; decimals stay the text they are."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from services.simulator.files import existing, pieces
from services.simulator.source import Recorded
from services.simulator.tick import Kind, Tick
from tickbus.errors import ConfigError
from tickbus.units import epoch_ns

_HEAD = b'{"stream":"'
_NAME_AT = len(_HEAD)


class _TradeData(msgspec.Struct, gc=False):
    s: str
    t: int
    p: str
    q: str
    T: int
    m: bool


class _Trade(msgspec.Struct, gc=False):
    data: _TradeData


class _BookData(msgspec.Struct, gc=False):
    u: int
    s: str
    b: str
    B: str
    a: str
    A: str


class _Book(msgspec.Struct, gc=False):
    data: _BookData


_trade = msgspec.json.Decoder(_Trade).decode
_book = msgspec.json.Decoder(_Book).decode


class Capture(Recorded):
    """`<ns> <frame>` lines, the frames wrapped as on /stream; plain or gzip, in the order given.

    Lines with another frame (an answer, a snapshot fetched by HTTP) are left out. A line that is none is a ConfigError.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._paths = existing(paths)

    def __iter__(self) -> Iterator[Tick]:
        streams: dict[bytes, tuple[Kind, str] | None] = {}
        for path in self._paths:
            done = 0
            for lines in pieces(path):
                for number, line in enumerate(lines, done + 1):
                    try:
                        tick = _captured(line, streams)
                    except (ValueError, UnicodeDecodeError) as error:
                        raise ConfigError(f"{path}, line {number}: {error}; a capture has lines of `<ns> <frame>`") from None
                    if tick is not None:
                        yield tick
                done += len(lines)


def _captured(line: bytes, streams: dict[bytes, tuple[Kind, str] | None]) -> Tick | None:
    """`streams`: what a frame's beginning says, kept by the caller: there are few of them, and this runs for every line."""
    receipt, _, frame = line.partition(b" ")
    at = int(receipt)
    head = frame[: frame.find(b'"', _NAME_AT)]
    known = streams[head] if head in streams else streams.setdefault(head, _stream(head))
    if known is None:
        return None
    kind, stream = known
    if kind == "trade":
        it = _trade(frame).data
        return Tick(kind, stream, it.s, it.t, epoch_ns(it.T), at, it.p, it.q, "sell" if it.m else "buy", None, None, None, None, frame)
    if kind == "quote":
        of = _book(frame).data
        # a bookTicker has no time of its own: the recorder's clock is all there is
        return Tick(kind, stream, of.s, of.u, at, at, "", "", None, of.b, of.B, of.a, of.A, frame)
    return Tick(kind, stream, stream.partition("@")[0].upper(), 0, at, at, raw=frame)


def _stream(head: bytes) -> tuple[Kind, str] | None:
    """`{"stream":"btcusdt@trade` -> the kind and the stream's name; None for a frame that begins otherwise."""
    if not head.startswith(_HEAD):
        return None
    stream = head[_NAME_AT:].decode()
    return ("trade" if stream.endswith("@trade") else "quote" if stream.endswith("@bookTicker") else "other"), stream
