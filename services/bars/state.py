"""The state of a stream's bars as bytes: MessagePack arrays that begin with a version number. Pure.

Scaled integers are written as text: MessagePack integers end at 64 bits, sums do not.
"""

from typing import Annotated, Final

import msgspec

from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import HAS_GAP, PARTIAL, QUALITY_BITS, REPAIRED, OpenBar
from tickbus.errors import WireError
from tickbus.fixed_point import TENS

VERSION: Final = 1

_OLD_BITS = PARTIAL | HAS_GAP | REPAIRED
_ALL_BITS = (1 << QUALITY_BITS) - 1


_MAX_SCALE = len(TENS) // 2 - 1


class OtherVersion(WireError):
    """The state was written by another version of this program."""


_Time = Annotated[int, msgspec.Meta(ge=-(1 << 63) + (1 << 60), le=(1 << 63) - 1)]
"""In ns. An interval before and after it still fits 64 bits, whoever wrote the state."""
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class OpenBarState(msgspec.Struct, array_like=True, frozen=True):
    start: _Time
    end: _Time
    quality: int
    revision: Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]
    price_scale: int
    size_scale: int
    first_ts: _Time
    last_ts: _Time
    open: str
    high: str
    low: str
    close: str
    highest: str
    lowest: str
    trades: _Count
    volume: str
    value: str
    buys: str
    sells: str
    more_quality: int = 0
    """The bits of the quality from the fourth on, shifted down: older versions know only three."""


class TimeState(msgspec.Struct, array_like=True, frozen=True):
    open: list[msgspec.Raw]
    """One OpenBarState each, encoded separately."""
    closed: list[msgspec.Raw]
    holes: list[tuple[_Time, _Time]]
    voids: list[tuple[_Time, _Time]]
    partial_until: _Time | None
    subscribed: _Count = 0
    """Until the first trade: since when no trade is missing before it, ns; 0 if unknown."""


class CountState(msgspec.Struct, array_like=True, frozen=True):
    open: list[msgspec.Raw]
    """One OpenBarState or none."""
    quality: int
    began: bool


class StreamState(msgspec.Struct, array_like=True, frozen=True):
    version: int
    newest: _Time
    newest_at: _Time
    price_scale: int
    size_scale: int
    time: dict[str, TimeState]
    """By the spec's text; `counts` too."""
    counts: dict[str, CountState]
    ahead: _Count = 0
    """As in Watermark; `timed` too."""
    timed: bool | None = None
    first_ahead: _Time | None = None
    """Until the first usable ts_event: the lowest one so far."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StreamState).decode
_decode_bar = msgspec.msgpack.Decoder(OpenBarState).decode
_decode_head = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def pack(bar: OpenBar) -> msgspec.Raw:
    """Return the encoded bar, from its cache where it did not change."""
    if bar.packed is None or bar.revision < 0:
        ohlcv = bar.ohlcv
        assert ohlcv is not None, "a run of trades ends before the state is taken"
        bar.packed = _encode(
            OpenBarState(
                bar.start, bar.end, bar.quality & _OLD_BITS, bar.revision,
                ohlcv.price_scale, ohlcv.size_scale, ohlcv.first_ts, ohlcv.last_ts,
                ohlcv.open, ohlcv.high, ohlcv.low, ohlcv.close,
                str(ohlcv.highest), str(ohlcv.lowest), ohlcv.trades, str(ohlcv.volume), str(ohlcv.value),
                str(ohlcv.buys), str(ohlcv.sells), bar.quality >> _OLD_BITS.bit_length(),
            )
        )  # fmt: skip
    return msgspec.Raw(bar.packed)


def unpack(raw: msgspec.Raw) -> OpenBar:
    """WireError if it cannot be decoded."""
    try:
        state = _decode_bar(raw)
        _check_scales(state.price_scale, state.size_scale)
        ohlcv = Ohlcv(
            state.price_scale, state.size_scale, state.first_ts, state.last_ts,
            state.open, state.high, state.low, state.close,
            int(state.highest), int(state.lowest), state.trades, int(state.volume), int(state.value),
            int(state.buys), int(state.sells),
        )  # fmt: skip
    except (msgspec.MsgspecError, ValueError) as error:
        raise _undecodable(error) from None
    quality = (state.quality & _OLD_BITS | state.more_quality << _OLD_BITS.bit_length()) & _ALL_BITS
    return OpenBar(state.start, state.end, quality, state.revision, ohlcv, bytes(raw))


def dump(state: StreamState) -> bytes:
    return _encode(state)


def load(data: bytes) -> StreamState:
    """WireError if it cannot be decoded, OtherVersion if another version wrote it."""
    try:
        head = _decode_head(data)
        version = msgspec.msgpack.decode(head[0], type=int) if head else 0
        if version == VERSION:
            state = _decode(data)
            _check_scales(state.price_scale, state.size_scale)
            return state
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _undecodable(error) from None
    raise OtherVersion(
        f"bar state has version {version}, this program reads {VERSION}: run the version that wrote it"
    )


def _check_scales(*scales: int) -> None:
    if not all(0 <= scale <= _MAX_SCALE for scale in scales):
        raise ValueError(f"invalid scale, one of {scales}: expected 0 to {_MAX_SCALE}")


def _undecodable(error: Exception) -> WireError:
    return WireError(f"cannot decode the stored bar state: {error}")
