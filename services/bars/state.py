"""The state of a stream's bars as bytes: MessagePack arrays, behind a version number. Pure.

Scaled integers are written as text: MessagePack ends at 64 bits, sums do not.
"""

from typing import Final

import msgspec

from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import OpenBar
from tickbus.errors import WireError

VERSION: Final = 1


class CellState(msgspec.Struct, array_like=True, frozen=True):
    start: int
    end: int
    quality: int
    revision: int
    price_scale: int
    size_scale: int
    first_ts: int
    last_ts: int
    open: str
    high: str
    low: str
    close: str
    highest: str
    lowest: str
    trades: int
    volume: str
    value: str
    buys: str
    sells: str


class TimeState(msgspec.Struct, array_like=True, frozen=True):
    open: list[msgspec.Raw]
    """CellState, packed by itself."""
    closed: list[msgspec.Raw]
    holes: list[tuple[int, int]]
    repairs: list[tuple[int, int]]
    partial_until: int | None


class CountState(msgspec.Struct, array_like=True, frozen=True):
    open: list[msgspec.Raw]
    """One CellState or none."""
    quality: int
    began: bool


class StreamState(msgspec.Struct, array_like=True, frozen=True):
    version: int
    newest: int
    newest_at: int
    price_scale: int
    size_scale: int
    time: dict[str, TimeState]
    """By the spec's text, and so are the count bars."""
    counts: dict[str, CountState]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StreamState).decode
_decode_cell = msgspec.msgpack.Decoder(CellState).decode
_decode_head = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def pack(cell: OpenBar) -> msgspec.Raw:
    if cell.packed is None or cell.revision < 0:
        tally = cell.tally
        assert tally is not None, "a run of trades ends before the state is taken"
        cell.packed = _encode(
            CellState(
                cell.start, cell.end, cell.quality, cell.revision,
                tally.price_scale, tally.size_scale, tally.first_ts, tally.last_ts, tally.open, tally.high, tally.low, tally.close,
                str(tally.highest), str(tally.lowest), tally.trades, str(tally.volume), str(tally.value), str(tally.buys), str(tally.sells),
            )
        )  # fmt: skip
    return msgspec.Raw(cell.packed)


def unpack(raw: msgspec.Raw) -> OpenBar:
    try:
        cell = _decode_cell(raw)
        tally = Ohlcv(
            cell.price_scale, cell.size_scale, cell.first_ts, cell.last_ts, cell.open, cell.high, cell.low, cell.close,
            int(cell.highest), int(cell.lowest), cell.trades, int(cell.volume), int(cell.value), int(cell.buys), int(cell.sells),
        )  # fmt: skip
    except (msgspec.MsgspecError, ValueError) as error:
        raise _unreadable(error) from None
    return OpenBar(cell.start, cell.end, cell.quality, cell.revision, tally, bytes(raw))


def dump(state: StreamState) -> bytes:
    return _encode(state)


def load(data: bytes) -> StreamState:
    """WireError if another version, or nobody, wrote it."""
    try:
        head = _decode_head(data)
        version = msgspec.msgpack.decode(head[0], type=int) if head else 0
        if version == VERSION:
            return _decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _unreadable(error) from None
    raise WireError(
        f"the stored state of the bars has version {version}, this program knows {VERSION}; run the version that wrote it"
    )


def _unreadable(error: Exception) -> WireError:
    return WireError(f"the stored state of the bars cannot be read: {error}")
