"""A bar under construction, and after its close for as long as it can still change. Pure."""

import msgspec

from services.bars.ohlcv import Ohlcv
from tickbus.fixed_point import to_text
from tickbus.protocol.messages import Bar

PARTIAL, HAS_GAP, REPAIRED, CLOCK_AHEAD = 1, 2, 4, 8
_NAMES = {PARTIAL: "partial", HAS_GAP: "has_gap", REPAIRED: "repaired", CLOCK_AHEAD: "clock_ahead"}

LATE, MISSED = 16, 32
"""Not emitted. LATE: it took a late trade, and no Gap has said yet that this was a repair. MISSED: a trade of
its interval came too late for it.
"""
QUALITY_BITS = 6
_QUALITY = tuple(
    tuple(name for bit, name in _NAMES.items() if bits & bit) for bits in range(1 << QUALITY_BITS)
)

OPEN = -1
"""The revision of a bar that has not been emitted yet."""


class OpenBar(msgspec.Struct, gc=False):
    start: int
    end: int
    quality: int = 0
    """Bits: PARTIAL, HAS_GAP, REPAIRED, CLOCK_AHEAD, LATE, MISSED."""
    revision: int = OPEN
    ohlcv: Ohlcv | None = None
    """None only between the opening of the bar and the end of the run of trades that opened it."""
    packed: bytes | None = None
    """Cache of a closed bar's encoded state: it seldom changes, and there is one per second of the horizon.
    """

    def add(self, run: Ohlcv) -> None:
        self.ohlcv = run if self.ohlcv is None else self.ohlcv.merge(run)

    def emit(self, symbol: str, spec: str) -> Bar:
        """Return the next revision."""
        self.revision += 1
        self.packed = None
        ohlcv = self.ohlcv
        assert ohlcv is not None, "a bar has at least one trade"
        scale = ohlcv.size_scale
        return Bar(
            spec, self.start, self.end, ohlcv.open, ohlcv.high, ohlcv.low, ohlcv.close,
            to_text(ohlcv.volume, scale), ohlcv.value_text(), ohlcv.vwap_text(), ohlcv.trades,
            to_text(ohlcv.buys, scale) if ohlcv.buys else "0",
            to_text(ohlcv.sells, scale) if ohlcv.sells else "0",
            self.revision, _QUALITY[self.quality], symbol,
        )  # fmt: skip
