"""`tickbus replay`: publishes recorded ticks onto a bus again, as a feed of their own."""

import asyncio
import sys
import time
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from services.tools.lines import readable
from services.tools.player import Player
from services.tools.rewriting import Rewriter, Step, steps
from tickbus.clock import BusClock
from tickbus.errors import ConfigError, RedisMisconfigured
from tickbus.protocol.names import Keys, check_name, check_symbol
from tickbus.redis.link import Connection
from tickbus.redis.registry import check_meta, read_heads, register_feed
from tickbus.redis.topology import locate
from tickbus.sanitize import clean
from tickbus.service.options import Option, WriterOptions
from tickbus.service.runner import Service, run
from tickbus.units import MILLISECOND, MINUTE, SECOND, Duration, parse_time
from tickbus.writer.lease import Lease
from tickbus.writer.publisher import Publisher
from tickbus.writer.retention import Sweeper, stream_keys

ABOUT = """Publish recorded ticks onto a bus again, as feed replay-NAME, in the order they were received.

The ticks keep their ts_event and ts_recv and are flagged `replayed`; their IDs are current. Recorded Gaps are
replayed too. The bus clock runs during the replay, so bars close; the last ones close during --linger. A name
that another replay is using is refused. Event time is that of the recording: to get separate bars, give each
replay of the same ticks another --name."""
POSITIONALS = (("data_dir", "?", "DATA_DIR"),)

_MAX_AHEAD_MS = 5 * MINUTE // MILLISECOND
_LEASE_SECONDS = 3.0
"""Acquiring a free lease takes no longer than this."""


class Options(WriterOptions, frozen=True, kw_only=True):
    data_dir: Annotated[Path, Option("folder of a recorder; contains trade/date=..., quote/date=...")]
    feeds: Annotated[tuple[str, ...], Option("only these feeds")] = ()
    symbols: Annotated[tuple[str, ...], Option("only these symbols")] = ()
    kinds: Annotated[tuple[str, ...], Option("trade, quote or both")] = ("trade", "quote")
    from_: Annotated[
        str | None, Option("only ticks whose ts_event is at or after this time, e.g. 2024-08-09T13:30:00Z")
    ] = None
    to: Annotated[str | None, Option("only ticks before this time")] = None
    speed: Annotated[
        str, Option("1 = as recorded, 10 = ten times faster, max = as fast as Redis accepts them")
    ] = "1"
    name: Annotated[str | None, Option("the feed is replay-NAME; default: the name of the recorded feed")] = (
        None
    )
    linger: Annotated[
        Duration,
        Option("keep the bus clock running this long after the last tick, so that the last bars close"),
    ] = Duration(5 * SECOND)
    metrics_port: Annotated[
        int,
        Option(
            "port for /metrics, /healthz and /readyz; 0 picks a free one, -1 disables it",
            minimum=-1,
            maximum=65535,
        ),
    ] = -1
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option("lowest level that is logged to standard error")
    ] = "warning"


def start(options: Options) -> int:
    for kind in options.kinds:
        if kind not in ("trade", "quote"):
            raise ConfigError(
                f"invalid --kinds {kind}: expected trade or quote; gaps are included, and `tickbus bars` and "
                "`tickbus signals` make theirs again"
            )
    for symbol in options.symbols:
        check_symbol(symbol)
    recorded, speed = _read_steps(options), parse_speed(options.speed)
    feed = check_name(f"replay-{options.name or _only_feed(options)}")
    if (first := next(recorded, None)) is None:
        raise ConfigError(
            f"DATA_DIR {options.data_dir}: no recorded tick matches; check --feeds, --symbols, --from, --to"
        )
    return run(partial(_replay, options, chain((first,), recorded), feed, speed), options, "replay")


def parse_speed(text: str) -> float | None:
    """Return the speed factor; None for `max`. Raises ConfigError if invalid."""
    if text == "max":
        return None
    try:
        speed = Decimal(text)
    except InvalidOperation:
        speed = Decimal(0)
    if not speed.is_finite() or not Decimal("0.001") <= speed <= 1_000_000:
        raise ConfigError(f"invalid --speed {text}: expected a number from 0.001 to 1000000, or max")
    return float(speed)


def _read_steps(options: Options) -> Iterator[Step]:
    """Return the selected steps; until the first one is taken, only the footers of the files are read."""
    try:
        from services.archive.reader import read_recorded
    except ImportError:
        raise ConfigError("replay needs pyarrow; fix: pip install 'tickbus-services[recorder]'") from None
    if not options.data_dir.is_dir():
        raise ConfigError(
            f"DATA_DIR {options.data_dir}: no such folder; expected the --data-dir of a recorder"
        )
    begin, end = (_time(flag, text) for flag, text in (("--from", options.from_), ("--to", options.to)))
    recorded = read_recorded(
        options.data_dir, (*options.kinds, "gap"), options.symbols or None, options.feeds or None, begin, end
    )
    return _with_errors(options.data_dir, steps(recorded, options.kinds))


def _with_errors(data_dir: Path, recorded: Iterator[Step]) -> Iterator[Step]:
    """Yield the steps, and raise ConfigError where a file cannot be read."""
    from pyarrow import ArrowException

    try:
        yield from recorded
    except (OSError, ArrowException) as error:
        raise ConfigError(f"DATA_DIR {data_dir}: cannot read a file: {error}") from None


def _time(flag: str, text: str | None) -> int | None:
    try:
        return None if text is None else parse_time(text)
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _only_feed(options: Options) -> str:
    from services.archive.reader import recorded_feeds

    feeds = sorted(set(options.feeds) or recorded_feeds(options.data_dir, options.kinds))
    if not feeds:
        raise ConfigError(f"DATA_DIR {options.data_dir}: no recorded {' or '.join(options.kinds)}")
    if len(feeds) > 1:
        raise ConfigError(
            f"DATA_DIR {options.data_dir} contains several feeds ({', '.join(feeds)}); "
            "choose one with --feeds, or name the replay with --name"
        )
    return feeds[0]


async def _replay(
    options: Options, recorded: Iterator[Step], feed: str, speed: float | None, service: Service
) -> None:
    redis = locate(options.redis)
    keys = Keys(options.prefix, options.shards)
    clock = BusClock()
    link = await redis.open_checked()
    await check_meta(link, keys)
    await register_feed(link, keys, feed)
    lease = Lease(partial(redis.link, keys.lease(feed)), keys, feed, options.lease_ttl)
    await _acquire(link, keys, lease, feed)
    publisher = Publisher(redis, keys, feed, clock, home=0)
    try:
        await publisher.take_over()
        rewriter = Rewriter(keys, feed, await read_heads(link, keys, range(keys.shards)), publisher.epoch)
        if rewriter.newest_ms > clock.now_ms() + _MAX_AHEAD_MS:
            raise RedisMisconfigured(
                f"streams of feed {feed!r} have entries ahead of the server's clock; "
                "correct the clock of the Redis host, or use another --name"
            )
        clock.not_before(rewriter.newest_ms * MILLISECOND)
        sweeper = Sweeper(
            feed, options.retention_policy, keys, redis.connect, partial(stream_keys, keys=keys, owner=feed)
        )
        await sweeper.announce()
        player = Player(rewriter, publisher, clock, speed)
        print(f"replaying {options.data_dir} as feed {feed}", file=sys.stderr)
        async with asyncio.TaskGroup() as group:
            others = [
                group.create_task(other) for other in (lease.keep(), sweeper.run(), _report_progress(player))
            ]
            service.ready = True
            await service.until_stopping(player.play(recorded, options.linger / SECOND))
            await _close(player, options.stop_deadline / SECOND)
            for task in others:
                task.cancel()
        print(("\r\x1b[K" if sys.stderr.isatty() else "") + _progress(player, "replayed"), file=sys.stderr)
    finally:
        await publisher.release()
        await lease.release()
        publisher.close()
        link.close()


async def _close(player: Player, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await player.close()
    except TimeoutError:
        print("Redis is unavailable: the last ticks may or may not be stored", file=sys.stderr)


async def _acquire(link: Connection, keys: Keys, lease: Lease, feed: str) -> None:
    """Acquire the lease immediately or raise ConfigError: a replay is never a standby."""
    holder = await link.ask("GET", keys.lease(feed))
    if holder is None:
        try:
            async with asyncio.timeout(_LEASE_SECONDS):
                await lease.acquire()
                return
        except TimeoutError:
            holder = await link.ask("GET", keys.lease(feed)) or b"another process"
    raise ConfigError(
        f"feed {feed!r} is already being replayed (lease held by {clean(holder.decode(errors='replace'))}); "
        "wait until it ends, or use another --name"
    )


async def _report_progress(player: Player) -> None:
    """Print a line each second; on a terminal, overwrite the previous one."""
    terminal = sys.stderr.isatty()
    before, since = 0, time.monotonic()
    while True:
        await asyncio.sleep(1.0)
        now = time.monotonic()
        rate = (player.ticks - before) / (now - since)
        before, since = player.ticks, now
        line = f"{_progress(player, 'playing')}, {rate:,.0f} ticks/s" + (
            f", {player.late:.1f} s late" if player.late > 1 else ""
        )
        print(
            f"\r\x1b[K{line}" if terminal else line,
            end="" if terminal else "\n",
            file=sys.stderr,
            flush=True,
        )


def _progress(player: Player, word: str) -> str:
    position = f", up to {readable(player.played_to)}" if player.played_to else ""
    return f"{word} {player.ticks:,} ticks and {player.gaps} gaps{position}"
