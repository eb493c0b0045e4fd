"""A bar in the making, and afterwards for as long as it can still change. Pure."""

import msgspec

from services.bars.fixed_point import to_text
from services.bars.ohlcv import Ohlcv
from tickbus.protocol.messages import Bar

PARTIAL, HAS_GAP, REPAIRED = 1, 2, 4
_NAMES = {PARTIAL: "partial", HAS_GAP: "has_gap", REPAIRED: "repaired"}
_QUALITY = tuple(tuple(name for bit, name in _NAMES.items() if bits & bit) for bits in range(8))

OPEN = -1
"""The revision of a bar that was not emitted yet."""


class OpenBar(msgspec.Struct, gc=False):
    start: int
    end: int
    quality: int = 0
    """Bits: PARTIAL, HAS_GAP, REPAIRED."""
    revision: int = OPEN
    tally: Ohlcv | None = None
    """None only between the opening and the end of the run of trades that opened it."""
    packed: bytes | None = None
    """A closed bar as it stands in the state; it seldom changes, and there is one for every second of the horizon."""

    def add(self, run: Ohlcv) -> None:
        self.tally = run if self.tally is None else self.tally.merge(run)

    def emit(self, symbol: str, spec: str) -> Bar:
        """The next revision."""
        self.revision += 1
        self.packed = None
        tally = self.tally
        assert tally is not None, "a bar has at least one trade"
        scale = tally.size_scale
        return Bar(
            spec, self.start, self.end, tally.open, tally.high, tally.low, tally.close,
            to_text(tally.volume, scale), tally.value_text(), tally.vwap_text(), tally.trades,
            to_text(tally.buys, scale) if tally.buys else "0", to_text(tally.sells, scale) if tally.sells else "0", self.revision, _QUALITY[self.quality], symbol,
        )  # fmt: skip
