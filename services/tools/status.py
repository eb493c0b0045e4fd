"""`tickbus status`: what is on the bus, which processes use it, their lag, and where the gaps are."""

import asyncio
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from services.output import pipe_may_close, stop_with_pipe
from services.tools.overview import as_object, heading, tables
from services.tools.tables import for_terminal, plain_text, rich_tables
from tickbus.errors import RedisError
from tickbus.monitoring.status import BusStatus, read_status
from tickbus.redis.link import Connection
from tickbus.redis.topology import Redis, locate
from tickbus.sanitize import clean, json_safe, redact
from tickbus.service.options import CommonOptions, Option
from tickbus.service.runner import Service, run
from tickbus.units import SECOND, Duration

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

ABOUT = """Show feeds, services and their lag, streams with gaps, and relays with their clients.

It reads only Redis, so it is right about a stopped process too. Redis refusing writes, a full disk of a
recorder, a vendor's clock that is ahead and keys that other programs wrote are shown first.

Feeds are `up` (connected upstream), `down` (the gateway runs, but is not connected) or `gone` (no gateway
rings the bells). Lag is measured to what a service has committed, so a recorder's lag grows between two
flushes. It covers all streams that the service declares to read.

--json prints one object (with --watch one per line):
  bus, redis, time (ns), shards (null: nothing has been written yet)
  feeds:    name, state, clock_age_seconds, holder, epoch, streams, ticks, last_tick_age_seconds,
            gaps {kind: number}, repaired, missing, silent (number of streams that never had a tick),
            silent_streams (the first 20), standby {holder, differs} (null: no gateway stands by),
            subscriptions {state: number}, refused (the first 20): stream, since, reason
  services: name, epoch (the highest of its shards), streams, lag_ticks, lag_seconds, lost_ticks,
            headroom_seconds, free_shards (without an owner),
            members: member, alive, shards, lag_ticks (of its shards),
            reports: member, text (what only it knows: shards set aside, a vendor's clock that is ahead)
  lags:     the 10 streams furthest behind: service, stream, ticks, seconds, lost, headroom_seconds
  streams:  all streams: stream, id, ticks, last_tick_age_seconds, gaps {kind: number}, repaired, missing,
            forgotten_holes (no longer known, because there were too many)
  relays:   as each relay reports them: relay, url, clients, streams, subscriptions {policy: number},
            in_flight (bytes), listed (the clients furthest behind, at most 100): name (of the token),
            address, protocol, subscriptions, wants, in_flight, oldest (seconds that the oldest bytes in
            flight have waited; null: there are none), dropped
  faults:   what some other program wrote to the keys of the bus, and what mends it
  refusals: why Redis refuses writes now: MISCONF, OOM, READONLY or NOREPLICAS, and what mends it"""
POSITIONALS = ()


class Options(CommonOptions, frozen=True, kw_only=True):
    json: Annotated[bool, Option("print one JSON object")] = False
    watch: Annotated[bool, Option("refresh until Ctrl-C")] = False
    interval: Annotated[Duration, Option("refresh interval of --watch", minimum=SECOND // 10)] = Duration(
        SECOND
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option("lowest level that is logged to standard error")
    ] = "warning"


def start(options: Options) -> int:
    return run(partial(_status, options), options, "status")


async def _status(options: Options, service: Service) -> None:
    redis = locate(options.redis)
    link = await redis.connect()
    with pipe_may_close():
        if options.watch:
            stop_with_pipe(service.stopping)
            await service.until_stopping(_watch(options, redis, link))
        else:
            _print(options, await read_status(link, options.prefix))
    link.close()


async def _watch(options: Options, redis: Redis, link: Connection) -> None:
    screen = _live() if for_terminal() and not options.json else nullcontext(None)
    with screen as live:
        while True:
            try:
                if link.closed:
                    link = await redis.connect()
                status = await read_status(link, options.prefix)
            except RedisError as error:
                if live is not None:
                    live.update(_text(f"{clean(error)}; retrying"), refresh=True)
            else:
                if live is not None:
                    live.update(rich_tables(_heading(options, status), tables(status)), refresh=True)
                else:
                    _print(options, status)
            await asyncio.sleep(options.interval / SECOND)


def _live() -> "Live":
    from rich.live import Live

    return Live(auto_refresh=False)


def _text(line: str) -> "Text":
    from rich.text import Text

    return Text(line)  # not a str, which may contain markup


def _print(options: Options, status: BusStatus | None) -> None:
    if options.json:
        line = msgspec.json.encode(as_object(status, options.prefix, redact(options.redis))).decode()
        print(json_safe(line), flush=True)
    elif for_terminal():
        from rich.console import Console

        Console().print(rich_tables(_heading(options, status), tables(status)))
    else:
        print(plain_text(_heading(options, status), tables(status)), flush=True)


def _heading(options: Options, status: BusStatus | None) -> str:
    return heading(status, options.prefix, redact(options.redis))
