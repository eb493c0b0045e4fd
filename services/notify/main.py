"""`tickbus notify`: alerts from the signal streams to one receiver, by webhook or through apprise."""

from functools import partial
from pathlib import Path
from typing import Annotated

from services.notify.metrics import expose
from services.notify.receiver import Receiver, load_receiver
from services.notify.sending import open_sender
from services.notify.service import NotifyService
from tickbus.consumer.consumer import ShardConsumer
from tickbus.protocol.names import Keys, StreamId, check_name
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.reader.reads import FROM_START, parse_start
from tickbus.redis.topology import locate
from tickbus.service.consumer_service import running
from tickbus.service.options import MirrorGroups, Option, OwnerOptions
from tickbus.service.runner import Service, run

ABOUT = """Send alerts to one receiver: a webhook (JSON, signed as in Standard Webhooks), or mail, Slack,
Telegram and others through apprise. One service per receiver, each at its own pace."""
POSITIONALS = ()


class Options(OwnerOptions, frozen=True, kw_only=True):
    receiver: Annotated[
        Path, Option("TOML file with the receiver's name, url and secret: see docs/notify.md")
    ]
    name: Annotated[
        str, Option("name of the receiver instead of the one in its file; the service is notify-<name>")
    ] = ""
    feeds: Annotated[tuple[str, ...], Option("services whose signals are read; default all")] = ()
    from_: Annotated[str, Option("where to start without a committed position: start, now or a time")] = (
        FROM_START
    )
    mirror_groups: MirrorGroups = False


def start(options: Options) -> int:
    begin = parse_start(options.from_, "--from")
    for feed in options.feeds:
        check_name(feed)
    receiver = load_receiver(options.receiver, options.name)
    return run(partial(_run, options, receiver, begin), options, receiver.service)


async def _run(options: Options, receiver: Receiver, begin: "str | StreamId", service: Service) -> None:
    sender = open_sender(receiver)
    try:
        (await locate(options.redis).open_checked()).close()
        consumer = ShardConsumer(
            options.redis, Keys(options.prefix, options.shards), receiver.service,
            StreamFilter.of(("signal",), options.feeds), options.lease_ttl, start=begin,
            mirror_groups=options.mirror_groups,
        )  # fmt: skip
        notify = NotifyService(consumer, receiver, sender)
        expose(service.meters, notify, receiver.service)
        async with running(service, consumer, fault=lambda: notify.fault, report=notify.report):
            await service.until_stopping(notify.run())
    finally:
        await sender.close()
