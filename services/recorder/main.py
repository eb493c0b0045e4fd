"""`tickbus recorder`: writes every stream to Parquet files, exactly once."""

from functools import partial

from services.recorder import data_folder
from services.recorder.files import check_writable
from services.recorder.metrics import expose
from services.recorder.options import Options
from services.recorder.recorder import Recorder
from services.recorder.shard_stores import ShardStores
from tickbus.consumer.consumer import ShardConsumer
from tickbus.durable import set_umask
from tickbus.errors import ConfigError
from tickbus.protocol.names import Keys, StreamId, check_name
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.reader.reader import parse_start
from tickbus.redis.registry import check_meta, read_folder
from tickbus.redis.topology import locate
from tickbus.service.consumer_service import running
from tickbus.service.runner import Service, run

ABOUT = (
    "Write trades, quotes, bars, signals and gaps to Parquet, exactly once, for DuckDB, Polars and pandas."
)
POSITIONALS = ()

_KINDS = ("trade", "quote", "bar", "signal")

__all__ = ["ABOUT", "POSITIONALS", "Options", "start"]


def start(options: Options) -> int:
    for kind in options.kinds:
        if kind not in _KINDS:
            raise ConfigError(
                f"invalid --kinds {kind}: expected {', '.join(_KINDS)}; gaps are included with each"
            )
    if not options.kinds:
        raise ConfigError(f"--kinds is empty: expected one or more of {', '.join(_KINDS)}")
    for name in (options.name, *options.feeds):
        check_name(name)
    begin = parse_start(options.from_, "--from")
    set_umask(options.umask)
    check_writable(options.data_dir)
    return run(partial(_run, options, begin), options, "recorder")


async def _run(options: Options, begin: "str | StreamId", service: Service) -> None:
    keys = Keys(options.prefix, options.shards)
    link = await locate(options.redis).open_checked()
    await check_meta(link, keys)
    identity = await data_folder.claim(options.data_dir, link, keys, options.name, options.redis)
    link.close()
    stores = ShardStores(options.data_dir, keys)
    consumer = ShardConsumer(
        options.redis, keys, options.name,
        StreamFilter.of(options.kinds, options.feeds), options.lease_ttl, start=begin,
        recover=stores.recover, mirror_groups=options.mirror_groups,
        notes={"bus": identity.bus, f"folder:{options.name}": identity.folder},
    )  # fmt: skip
    stores.attach(consumer)
    recorder = Recorder(consumer, keys, options, stores)
    expose(service.meters, recorder)
    async with running(
        service,
        consumer,
        positions=lambda: stores.positions,
        fault=lambda: str(stores.blocked),
        report=lambda: [str(stores.blocked)] if stores.blocked else [],
    ):
        await _check_folder(consumer, identity.folder)
        await recorder.run(service.stopping)


async def _check_folder(consumer: ShardConsumer, folder: str) -> None:
    """ConfigError if another replica announced another folder before this one was seen to be alive."""
    link = await consumer.connect()
    try:
        other = await read_folder(link, consumer.keys, consumer.service)
    finally:
        link.close()
    if other not in ("", folder):
        raise ConfigError(
            f"service {consumer.service!r} is running with another --data-dir, which replicas must share; "
            "use the same folder, or another --name"
        )
