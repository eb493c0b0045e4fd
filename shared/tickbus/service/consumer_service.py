"""What all consumer services share: membership, readiness, lag, retention of outputs, metrics.

A service with its own structure opens its ShardConsumer with `running`; a program that only iterates over
`bus.consume` becomes a service through `run_consumer`:

    async def work(batches: Consumer) -> None:
        async for batch in batches:
            ...
            await batch.commit()

    raise SystemExit(run_consumer("my-app", work, ServiceOptions(metrics_port=9105)))
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

from tickbus.bus import connect
from tickbus.consumer.consumer import ShardConsumer
from tickbus.monitoring import metrics as m
from tickbus.monitoring.lag import LagMeter
from tickbus.monitoring.meters import Meters
from tickbus.monitoring.reports import Reporter
from tickbus.monitoring.retention_metrics import expose_sweeps
from tickbus.protocol.names import StreamId
from tickbus.reader.reads import FROM_START, Start
from tickbus.redis.link import REFUSALS, Connection
from tickbus.service.options import ServiceOptions, WriterOptions
from tickbus.service.runner import Service, run
from tickbus.subscription import Consumer
from tickbus.writer.retention import Sweeper

_READY_SECONDS = 0.2


@asynccontextmanager
async def running(
    service: Service,
    consumer: ShardConsumer,
    *,
    options: WriterOptions | None = None,
    positions: Callable[[], Mapping[str, StreamId]] | None = None,
    fault: Callable[[], str] = lambda: "",
    report: Callable[[], Sequence[str]] = lambda: (),
) -> AsyncIterator[None]:
    """Open the consumer, and close it at the end of the block; in between report on it and sweep its outputs.

    options: if the service writes streams: how long their entries are kept.
    positions: what is committed, if the service stores that outside Redis.
    fault: what else keeps the service from its job, for /readyz; empty if nothing does.
    report: what `tickbus status` shows of this replica beside that, a line for each state.
    """
    _expose(service.meters, consumer)
    committed = positions or (lambda: consumer.shards.positions)
    lag = LagMeter(
        service.meters, consumer.service, consumer.keys, consumer.connect, consumer.owns, committed
    )
    try:
        await consumer.open()
        reporter = Reporter(consumer.keys, consumer.service, consumer.members.token, consumer.connect, report)
        background = [lag.run(), reporter.run(), _report_readiness(service, consumer, fault)]
        if options is not None:

            async def own_streams(_: Connection) -> Sequence[bytes]:
                return consumer.shards.outputs.keys

            sweeper = Sweeper(
                consumer.service,
                options.retention_policy,
                consumer.keys,
                consumer.connect,
                own_streams,
            )
            expose_sweeps(service.meters, sweeper)
            await sweeper.announce()
            background.append(sweeper.run())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in background]
            yield
            service.meters.refresh()
            for task in tasks:
                task.cancel()
    finally:
        await consumer.close()


def run_consumer(
    name: str,
    work: Callable[[Consumer], Awaitable[None]],
    options: ServiceOptions | None = None,
    *,
    kind: str | Collection[str] = "trade",
    symbols: Collection[str] | None = None,
    feeds: Collection[str] | None = None,
    specs: Collection[str] | None = None,
    start: Start = FROM_START,
    lease_ttl: str = "3s",
) -> int:
    """Run `work` as the service `name` until SIGTERM or Ctrl-C, and return the exit code.

    work: iterates over what `bus.consume` returns; it is cancelled when the service is asked to stop.
    options: where Redis is, and where /metrics, /healthz and /readyz are served.

    The other arguments are those of `Bus.consume`.
    """
    chosen = options or ServiceOptions()

    async def main(service: Service) -> None:
        async with connect(chosen.redis, prefix=chosen.prefix) as bus:
            batches = bus.consume(
                name, kind=kind, symbols=symbols, feeds=feeds, specs=specs, start=start, lease_ttl=lease_ttl
            )
            await service.until_stopping(_work_as_member(service, batches, work))

    return run(main, chosen, name)


async def _work_as_member(
    service: Service, batches: Consumer, work: Callable[[Consumer], Awaitable[None]]
) -> None:
    service.why_not_ready = "waiting for the first writer of this bus"
    async with running(service, await batches.shard_consumer()):
        await work(batches)


def _expose(meters: Meters, consumer: ShardConsumer) -> None:
    name, follow = consumer.service, meters.follow
    follow(m.CONSUMER_READ, lambda: consumer.read, name)
    follow(m.CONSUMER_COMMITS, lambda: consumer.commits, name)
    follow(m.CONSUMER_LOST, lambda: consumer.lost, name)
    follow(m.REDIS_RECONNECTS, lambda: consumer.reconnects)
    meters.follow_each(m.CONSUMER_FOREIGN, lambda: consumer.foreign, ("bell", "entry", "head"), name)
    follow(m.REDIS_UP, lambda: consumer.publisher.up)
    meters.follow_each(m.REDIS_REFUSES, lambda: {consumer.publisher.refusal.partition(" ")[0]: 1}, REFUSALS)
    follow(m.QUARANTINED_KEYS, lambda: len(consumer.faults))
    follow(m.HELD_ENTRIES, lambda: sum(len(lane.quarantine) for lane in consumer.publisher.lanes))
    follow(m.MEMBERS, lambda: len(consumer.members.alive), name)
    follow(m.SHARDS_OWNED, lambda: len(consumer.epochs), name)
    follow(m.REBALANCES, lambda: consumer.shards.rebalances, name)
    follow(m.EPOCH, lambda: consumer.publisher.epoch, name)


async def _report_readiness(service: Service, consumer: ShardConsumer, fault: Callable[[], str]) -> None:
    """Report ready while the process is a member that owns its share."""
    while True:
        refusal = consumer.publisher.refusal
        problem = fault() or (f"Redis refuses writes: {refusal}" if refusal else "")
        if not problem and (keys := consumer.faults):
            problem = f"some other program wrote to {', '.join(keys[:5])}: see the log or tickbus status"
        service.ready = consumer.ready and not problem
        service.why_not_ready = problem or "waiting for shards that another process has not released"
        await asyncio.sleep(_READY_SECONDS)
