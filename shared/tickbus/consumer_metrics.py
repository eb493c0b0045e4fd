"""A consumer's integers -> its metrics, at each scrape. The lag has its own meter, tickbus.lag."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from tickbus import metrics as m
from tickbus.consumer import Consumer
from tickbus.metrics import Meters

if TYPE_CHECKING:
    from tickbus.service import Service

_READY_SECONDS = 0.2


class ConsumerMeters:
    def __init__(self, meters: Meters, consumer: Consumer) -> None:
        self._consumer = consumer
        self._read = meters.total(m.CONSUMER_READ, consumer.service)
        self._commits = meters.total(m.CONSUMER_COMMITS, consumer.service)
        self._lost = meters.total(m.CONSUMER_LOST, consumer.service)
        self._reconnects = meters.total(m.REDIS_RECONNECTS)
        self._members = meters.gauge(m.MEMBERS).labels(consumer.service)
        self._shards = meters.gauge(m.SHARDS_OWNED).labels(consumer.service)
        self._rebalances = meters.total(m.REBALANCES, consumer.service)
        self._up = meters.gauge(m.REDIS_UP)
        self._epoch = meters.gauge(m.EPOCH).labels(consumer.service)
        meters.before_scrape(self.refresh)

    def refresh(self) -> None:
        consumer = self._consumer
        self._read.bring_to(consumer.read)
        self._commits.bring_to(consumer.commits)
        self._lost.bring_to(consumer.lost)
        self._reconnects.bring_to(consumer.reconnects)
        self._members.set(len(consumer.members.alive))
        self._shards.set(len(consumer.epochs))
        self._rebalances.bring_to(consumer.rebalances)
        self._up.set(consumer.publisher.up)
        self._epoch.set(consumer.publisher.epoch)


async def tell_readiness(service: "Service", consumer: Consumer, fault: Callable[[], str] = lambda: "") -> None:
    """Ready: a member that works its part. `fault`: what else keeps the service from its job, if anything."""
    while True:
        trouble = fault()
        service.ready = consumer.ready and not trouble
        service.why_not_ready = trouble or "waiting for the shards of a process that has not given them back"
        await asyncio.sleep(_READY_SECONDS)
