"""The bar service's counters and gauges as metrics."""

from collections.abc import Callable, Mapping

from services.bars.service import BarService
from tickbus.monitoring import metrics as m
from tickbus.monitoring.meters import Meters
from tickbus.monitoring.metrics import Metric

_REASONS = ("too_late", "off_book", "zero", "cancelled", "unreadable")


def expose(meters: Meters, bars: BarService) -> None:
    specs = [spec.text for spec in bars.specs]
    meters.follow_each(m.BARS_EMITTED, lambda: bars.emitted, specs)
    meters.follow_each(m.BARS_REVISED, lambda: bars.revised, specs)
    meters.follow_each(m.BARS_IGNORED, lambda: bars.ignored, _REASONS)
    meters.follow(m.BARS_OPEN, lambda: bars.open_bars)
    _follow_feeds(meters, m.BARS_STREAMS, lambda: bars.feeds.trades)
    _follow_feeds(meters, m.BARS_CLOCK_AHEAD, lambda: bars.clock_ahead)


def _follow_feeds(meters: Meters, metric: Metric, values: Callable[[], Mapping[str, float]]) -> None:
    """Expose one series per feed that is known now."""
    gauge, exposed = meters.gauge(metric), set[str]()

    def refresh() -> None:
        current = dict(values())
        for feed in exposed - current.keys():
            gauge.remove(feed)
        for feed, value in current.items():
            gauge.labels(feed).set(value)
        exposed.clear()
        exposed.update(current)

    meters.before_scrape(refresh)
