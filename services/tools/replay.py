"""`tickbus replay`: recorded ticks onto a bus again, as a feed of their own."""

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
from tickbus.service.options import Option, WriterOptions
from tickbus.service.runner import Service, run
from tickbus.units import MILLISECOND, MINUTE, SECOND, Duration, parse_time
from tickbus.writer.lease import Lease
from tickbus.writer.publisher import Publisher
from tickbus.writer.retention import Sweeper

ABOUT = """Put recorded ticks onto a bus again, under the feed name replay-NAME, in the order in which they were received.

They keep their own ts_event and ts_recv and are flagged `replayed`; their IDs are of now. Recorded Gaps come along. The bus
clock runs while it plays, so bars close; the last bars close while it lingers. A name that another replay holds is refused.
Its time is that of the recording: for bars of their own, give each replay of the same ticks another --name."""
POSITIONALS = (("data_dir", "?", "DATA_DIR"),)

_AHEAD_MS = 5 * MINUTE // MILLISECOND
_LEASE_SECONDS = 3.0
"""To be told that nobody has the lease takes no longer."""


class Options(WriterOptions, frozen=True, kw_only=True):
    data_dir: Annotated[Path, Option("the folder of a recorder: it holds trade/date=..., quote/date=...")]
    feeds: Annotated[tuple[str, ...], Option("only what came from these feeds")] = ()
    symbols: Annotated[tuple[str, ...], Option("only these symbols")] = ()
    kinds: Annotated[tuple[str, ...], Option("trade, quote or both")] = ("trade", "quote")
    from_: Annotated[
        str | None, Option("only ticks whose ts_event is at or after this time, like 2024-08-09T13:30:00Z")
    ] = None
    to: Annotated[str | None, Option("only ticks before this time")] = None
    speed: Annotated[str, Option("1 = as it was, 10 = ten times faster, max = as fast as Redis takes it")] = (
        "1"
    )
    name: Annotated[str | None, Option("the feed is replay-NAME; default the recorded feed's own name")] = (
        None
    )
    linger: Annotated[
        Duration, Option("let the bus clock run on for so long after the last tick: bars + their grace close")
    ] = Duration(5 * SECOND)
    metrics_port: Annotated[
        int,
        Option(
            "port for /metrics, /healthz and /readyz; 0 picks a free one, -1 switches it off",
            minimum=-1,
            maximum=65535,
        ),
    ] = -1
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option("how much is logged to standard error")
    ] = "warning"


def start(options: Options) -> int:
    for kind in options.kinds:
        if kind not in ("trade", "quote"):
            raise ConfigError(
                f"--kinds {kind}: trade and quote can be replayed; bars are built anew by `tickbus bars`, gaps come with each"
            )
    for symbol in options.symbols:
        check_symbol(symbol)
    recorded, speed = _recorded(options), parse_speed(options.speed)
    feed = check_name(f"replay-{options.name or _only_feed(options)}")
    if (first := next(recorded, None)) is None:
        raise ConfigError(
            f"DATA_DIR {options.data_dir}: nothing that is recorded there fits what is asked for (--feeds, --symbols, --from, --to)"
        )
    return run(partial(_replay, options, chain((first,), recorded), feed, speed), options, "replay")


def parse_speed(text: str) -> float | None:
    """`max` -> None."""
    if text == "max":
        return None
    try:
        speed = Decimal(text)
    except InvalidOperation:
        speed = Decimal(0)
    if not speed.is_finite() or not Decimal("0.001") <= speed <= 1_000_000:
        raise ConfigError(f"--speed {text}: use a number from 0.001 to 1000000, or max")
    return float(speed)


def _recorded(options: Options) -> Iterator[Step]:
    """Of what is asked for; reads nothing but the files' footers yet."""
    try:
        from services.archive.reader import read_recorded
    except ImportError:
        raise ConfigError("replay needs pyarrow; pip install 'tickbus-services[recorder]'") from None
    if not options.data_dir.is_dir():
        raise ConfigError(
            f"DATA_DIR {options.data_dir}: there is no such folder; name the --data-dir of a recorder"
        )
    begin, end = (_time(flag, text) for flag, text in (("--from", options.from_), ("--to", options.to)))
    found = read_recorded(
        options.data_dir, (*options.kinds, "gap"), options.symbols or None, options.feeds or None, begin, end
    )
    return _readable(options.data_dir, steps(found, options.kinds))


def _readable(data_dir: Path, recorded: Iterator[Step]) -> Iterator[Step]:
    from pyarrow import ArrowException

    try:
        yield from recorded
    except (OSError, ArrowException) as error:
        raise ConfigError(f"DATA_DIR {data_dir}: a file cannot be read: {error}") from None


def _time(flag: str, text: str | None) -> int | None:
    try:
        return None if text is None else parse_time(text)
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _only_feed(options: Options) -> str:
    from services.archive.reader import recorded_feeds

    found = sorted(set(options.feeds) or recorded_feeds(options.data_dir, options.kinds))
    if not found:
        raise ConfigError(f"DATA_DIR {options.data_dir}: no {' or '.join(options.kinds)} is recorded there")
    if len(found) > 1:
        raise ConfigError(
            f"DATA_DIR {options.data_dir} holds the feeds {', '.join(found)}: choose one with --feeds, or give the whole a --name"
        )
    return found[0]


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
    await _take(link, keys, lease, feed)
    publisher = Publisher(redis, keys, feed, clock, home=0)
    try:
        await publisher.take_over()
        rewriter = Rewriter(keys, feed, await read_heads(link, keys, range(keys.shards)), publisher.epoch)
        if rewriter.newest_ms > clock.now_ms() + _AHEAD_MS:
            raise RedisMisconfigured(
                f"streams of {feed!r} hold entries ahead of the server's clock; set the clock of the Redis machine, or use another --name"
            )
        clock.not_before(rewriter.newest_ms * MILLISECOND)
        sweeper = Sweeper(feed, options.retention_policy, keys, redis.connect, lambda: rewriter.keys)
        await sweeper.declare()
        player = Player(rewriter, publisher, clock, speed)
        print(f"replaying {options.data_dir} as feed {feed}", file=sys.stderr)
        async with asyncio.TaskGroup() as group:
            others = [
                group.create_task(work) for work in (lease.keep(), sweeper.run(), _tell_progress(player))
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
        print("Redis is away: whether the last ticks are stored is unknown", file=sys.stderr)


async def _take(link: Connection, keys: Keys, lease: Lease, feed: str) -> None:
    """The lease, at once or not at all: a replay does not stand by."""
    held = await link.ask("GET", keys.lease(feed))
    if held is None:
        try:
            async with asyncio.timeout(_LEASE_SECONDS):
                await lease.acquire()
                return
        except TimeoutError:
            held = await link.ask("GET", keys.lease(feed)) or b"somebody"
    raise ConfigError(
        f"feed {feed!r} has a lease, held by {held.decode()}: it is being replayed; wait for its end, or give another --name"
    )


async def _tell_progress(player: Player) -> None:
    """Each second: a line, on a terminal always the same one."""
    watched = sys.stderr.isatty()
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
            f"\r\x1b[K{line}" if watched else line, end="" if watched else "\n", file=sys.stderr, flush=True
        )


def _progress(player: Player, word: str) -> str:
    at = f", up to {readable(player.at)}" if player.at else ""
    return f"{word} {player.ticks:,} ticks and {player.gaps} gaps{at}"
