"""The bar service's counters and gauges as metrics."""

from services.bars.service import BarService
from tickbus.monitoring import metrics as m
from tickbus.monitoring.meters import Meters

_REASONS = ("too_late", "off_book", "zero", "cancelled", "unreadable")


def expose(meters: Meters, bars: BarService) -> None:
    specs = [spec.text for spec in bars.specs]
    meters.follow_each(m.BARS_EMITTED, lambda: bars.emitted, specs)
    meters.follow_each(m.BARS_REVISED, lambda: bars.revised, specs)
    meters.follow_each(m.BARS_IGNORED, lambda: bars.ignored, _REASONS)
    meters.follow(m.BARS_OPEN, lambda: bars.open_bars)
