"""`tickbus want`: makes a gateway subscribe to symbols while it runs, and shows what becomes of them."""

import asyncio
import sys
import time
from functools import partial
from typing import Annotated, Literal

import tickbus
from services.output import pipe_may_close, stop_with_pipe
from tickbus.errors import RedisError
from tickbus.protocol.names import Keys, check_name
from tickbus.protocol.wants import Topic
from tickbus.redis.registry import read_feed
from tickbus.redis.topology import locate
from tickbus.service.options import CommonOptions, Option
from tickbus.service.runner import Service, run
from tickbus.units import SECOND, Duration
from tickbus.wants import make_topics

ABOUT = """Want symbols of a feed, until Ctrl-C or --for: the gateway subscribes to them meanwhile.

Prints a line for each symbol whenever its state changes: pending, active, refused (and why), lingering."""
POSITIONALS = (("symbols", "+", "SYMBOL"),)
_POLL_SECONDS = 0.5
_UNANSWERED_SECONDS = 5.0

__all__ = ["ABOUT", "POSITIONALS", "Options", "start"]


class Options(CommonOptions, frozen=True, kw_only=True):
    symbols: Annotated[tuple[str, ...], Option("symbols to want, e.g. BTC-USDT AAPL.US")] = ()
    feed: Annotated[str, Option("name of the feed that has them")]
    kind: Annotated[tuple[str, ...], Option("trade, quote or both")] = ("trade",)
    for_: Annotated[Duration | None, Option("end after this time; default: with Ctrl-C")] = None
    name: Annotated[str, Option("begins the name of the holder, for the rules of the gateway's --wants")] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option("lowest level that is logged to standard error")
    ] = "warning"


def start(options: Options) -> int:
    check_name(options.feed)
    make_topics(options.kind, options.symbols)
    return run(partial(_want, options), options, "want")


async def _want(options: Options, service: Service) -> None:
    await _check_feed(options)
    with pipe_may_close():
        stop_with_pipe(service.stopping)
        bus = tickbus.connect(options.redis, prefix=options.prefix)
        wanted = bus.want(options.kind, symbols=options.symbols, feed=options.feed, name=options.name)
        async with bus, wanted:
            await service.until_stopping(_show(bus, options))


async def _check_feed(options: Options) -> None:
    link = await locate(options.redis).connect()
    try:
        known = await read_feed(link, Keys(options.prefix), options.feed)
    finally:
        link.close()
    if known is None:
        print(f"no gateway named {options.feed!r} ever wrote to this bus; waiting for one", file=sys.stderr)


async def _show(bus: tickbus.Bus, options: Options) -> None:
    """Print changes of state, for as long as is asked for."""
    topics = [Topic(kind, symbol) for kind in options.kind for symbol in dict.fromkeys(options.symbols)]
    shown: dict[Topic, tuple[str, str]] = {}
    began = time.monotonic()
    end = None if options.for_ is None else began + options.for_ / SECOND
    while end is None or time.monotonic() < end:
        try:
            states = await bus.subscriptions(options.feed)
        except RedisError as error:
            states = {}
            print(f"Redis is unavailable: {error}", file=sys.stderr)
        by_topic = {Topic(stream.kind, stream.symbol): state for stream, state in states.items()}
        for topic in topics:
            state = by_topic.get(topic)
            if state is None and time.monotonic() - began < _UNANSWERED_SECONDS:
                continue
            now = ("waiting", "no gateway has answered") if state is None else (state.state, state.reason)
            if shown.get(topic) != now:
                shown[topic] = now
                print(f"{topic.kind} {topic.symbol}: {': '.join(filter(None, now))}", flush=True)
        await asyncio.sleep(_POLL_SECONDS)
