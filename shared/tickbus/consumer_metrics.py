"""A consumer's integers -> its metrics, at each scrape. The lag has its own meter, tickbus.lag."""

from tickbus import metrics as m
from tickbus.consumer import Consumer
from tickbus.metrics import Meters


class ConsumerMeters:
    def __init__(self, meters: Meters, consumer: Consumer) -> None:
        self._consumer = consumer
        self._read = meters.total(m.CONSUMER_READ, consumer.service)
        self._commits = meters.total(m.CONSUMER_COMMITS, consumer.service)
        self._lost = meters.total(m.CONSUMER_LOST, consumer.service)
        self._reconnects = meters.total(m.REDIS_RECONNECTS)
        self._up = meters.gauge(m.REDIS_UP)
        self._epoch = meters.gauge(m.EPOCH).labels(consumer.service)
        meters.before_scrape(self.refresh)

    def refresh(self) -> None:
        consumer = self._consumer
        self._read.bring_to(consumer.read)
        self._commits.bring_to(consumer.commits)
        self._lost.bring_to(consumer.lost)
        self._reconnects.bring_to(consumer.publisher.reconnects + (consumer.reader.reconnects if consumer.reader is not None else 0))
        self._up.set(consumer.publisher.up)
        self._epoch.set(consumer.publisher.epoch)
