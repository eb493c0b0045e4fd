"""The metrics of one process, as Prometheus objects. Needs the extra `tickbus[service]` (prometheus-client).

No metric has a label per symbol: `tickbus status` shows the values per symbol.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from tickbus.monitoring.metrics import Metric

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Meters:
    """The metrics of one process, created on first use in one registry."""

    def __init__(self, registry: "CollectorRegistry") -> None:
        self.registry = registry
        self._created: dict[str, object] = {}
        self._before_scrape: list[Callable[[], None]] = []

    def follow(self, metric: Metric, value: Callable[[], float], *labels: str) -> None:
        """Expose a number that is kept elsewhere: it is read at each scrape, in the scraping thread. Hot
        loops count in plain integers.

        A counter never decreases: if its total does, the highest value seen is exposed.
        """
        expose = self._exposed(metric, labels)
        self.before_scrape(lambda: expose(value()))

    def follow_each(
        self, metric: Metric, counts: Callable[[], Mapping[str, float]], values: Iterable[str], *labels: str
    ) -> None:
        """`follow` for each value of the metric's last label. All exist from the start, as 0, so that an
        alert's `increase()` sees the first event."""
        exposed = {value: self._exposed(metric, (*labels, value)) for value in values}

        def refresh() -> None:
            current = counts()
            for value, expose in exposed.items():
                expose(current.get(value, 0))

        self.before_scrape(refresh)

    def _exposed(self, metric: Metric, labels: Sequence[str]) -> Callable[[float], None]:
        """Return a function that sets one series to a value."""
        if metric.kind == "counter":
            counter = self.counter(metric)
            return _Total(counter.labels(*labels) if labels else counter).set
        gauge = self.gauge(metric)
        return (gauge.labels(*labels) if labels else gauge).set

    def counter(self, metric: Metric) -> "Counter":
        from prometheus_client import Counter

        return cast(
            Counter,
            self._get_or_create(
                metric,
                "counter",
                lambda: Counter(metric.name, metric.meaning, metric.labels, registry=self.registry),
            ),
        )

    def gauge(self, metric: Metric) -> "Gauge":
        from prometheus_client import Gauge

        return cast(
            Gauge,
            self._get_or_create(
                metric,
                "gauge",
                lambda: Gauge(metric.name, metric.meaning, metric.labels, registry=self.registry),
            ),
        )

    def histogram(self, metric: Metric) -> "Histogram":
        from prometheus_client import Histogram

        def create() -> Histogram:
            return Histogram(
                metric.name, metric.meaning, metric.labels, registry=self.registry, buckets=metric.buckets
            )

        return cast(Histogram, self._get_or_create(metric, "histogram", create))

    def before_scrape(self, refresh: Callable[[], None]) -> None:
        """Run `refresh` before each scrape, in the scraping thread: for what a single number cannot show."""
        self._before_scrape.append(refresh)

    def refresh(self) -> None:
        """Bring all metrics up to date, as before a scrape."""
        for refresh in self._before_scrape:
            refresh()

    def _get_or_create(self, metric: Metric, kind: str, create: Callable[[], object]) -> object:
        if metric.kind != kind:
            raise TypeError(f"{metric.name} is a {metric.kind}, not a {kind}")
        if metric.name not in self._created:
            self._created[metric.name] = create()
        return self._created[metric.name]


class _Total:
    """A counter that follows a total kept elsewhere."""

    def __init__(self, counter: "Counter") -> None:
        self._counter = counter
        self._counted = 0.0

    def set(self, total: float) -> None:
        if total > self._counted:
            self._counter.inc(total - self._counted)
            self._counted = total
