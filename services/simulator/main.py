"""`tickbus simulate`: a stand-in for a vendor. Options and wiring; docs/simulator.md has them with examples."""

from pathlib import Path
from typing import Annotated, Literal

from services.simulator.console import listen_on_stdin, say
from services.simulator.faults import ACTIONS, parse_faults
from services.simulator.ledger import Ledger
from services.simulator.market import Market, parse_speed
from services.simulator.simulator import Pace, Simulator
from services.simulator.sources import open_source
from services.simulator.tick import is_symbol
from services.trading_hours import TradingHours
from services.vendors import VENDORS
from services.vendors.dialect import VendorLimits
from services.vendors.options import of_vendor, with_vendors
from tickbus.errors import ConfigError
from tickbus.service.options import Option, ServiceOptions
from tickbus.service.runner import Service, run
from tickbus.units import Duration

_FAULTS = "\n".join(
    f"  {name + ('=' + action.value if action.value else ''):26} {action.about}"
    for name, action in ACTIONS.items()
)

_PATHS = "\n".join(f"  {name:26} {', '.join(vendor.paths)}" for name, vendor in VENDORS.items())

ABOUT = f"""Stand in for a vendor: one port, all protocols, chosen by the path that a client asks for:
{_PATHS}
Prints `listening on ws://HOST:PORT`. Standard input takes faults, one line each, and `status`.

Faults, in --faults parted by `;`, each with after=N ticks, at=DURATION or every=N ticks before it as you like:
{_FAULTS}
Faults of ticks take kind=trade|quote and symbol=S too; close takes reason=TEXT at its end."""

POSITIONALS: tuple[tuple[str, str, str], ...] = ()


class SimulatorOptions(ServiceOptions, frozen=True, kw_only=True):
    host: Annotated[str, Option("address to listen on")] = "127.0.0.1"
    port: Annotated[int, Option("port to listen on; 0 picks a free one", minimum=0, maximum=65535)] = 0
    source: Annotated[str, Option("synthetic, capture:FILE[,FILE], ticks:FILE[,FILE] or parquet:DIR")] = (
        "synthetic"
    )
    speed: Annotated[
        str,
        Option("1, 10, 0.5, ... times the recorded (or synthetic) pace, or max: as fast as clients take it"),
    ] = "1"
    seed: Annotated[int, Option("of the synthetic market and of junk")] = 1
    rate: Annotated[
        int, Option("synthetic ticks per second, all symbols together", minimum=1, maximum=10_000_000)
    ] = 100
    symbols: Annotated[
        tuple[str, ...],
        Option("the synthetic market's symbols, as the vendor spells them; without: whatever is asked for"),
    ] = ()
    symbols_count: Annotated[
        int, Option("so many synthetic symbols S00001, S00002, ... instead", minimum=0, maximum=1_000_000)
    ] = 0
    quotes_per_trade: Annotated[
        int, Option("synthetic quotes for each trade; 0 = none", minimum=0, maximum=1000)
    ] = 1
    session: Annotated[
        str,
        Option(
            "when the market is open, like 13:30-20:00 or 'mon-fri 09:30-16:00 America/New_York'; default always"
        ),
    ] = ""
    symbol: Annotated[str, Option("the symbol that the files of ticks: stand for, like BAC.US")] = ""
    date: Annotated[str | None, Option("the day of the files of ticks:, if their names have none")] = None
    merge_sides: Annotated[
        bool, Option("fill the side that a row of recorded quotes leaves out with the one before")
    ] = False
    restamp: Annotated[bool, Option("give recorded ticks the present time")] = False
    loop: Annotated[bool, Option("begin a recording again at its end; ids begin again too")] = False
    limit: Annotated[
        int, Option("stop after so many ticks, connections stay open; 0 = no limit", minimum=0)
    ] = 0
    preload: Annotated[
        int,
        Option(
            "read so many ticks into memory before listening: faster at --speed max",
            minimum=0,
            maximum=100_000_000,
        ),
    ] = 0
    start: Annotated[Literal["first-subscribe", "now"], Option("when the market begins")] = "first-subscribe"
    settle: Annotated[
        Duration, Option("begin, and at --speed max go on, only when no subscription has changed for so long")
    ] = Duration(0)
    ledger: Annotated[
        Path | None, Option("write what was sent, and what happened, to this file as JSON lines")
    ] = None
    faults: Annotated[
        str, Option("faults, counted from the market's start: after=1000 mute=5s; every=500 drop=2")
    ] = ""
    token: Annotated[
        str | None,
        Option("the only token that is accepted, by vendors that want one; default any", secret=True),
    ] = None
    max_connections: Annotated[int, Option("connections per path; 0 = no cap", minimum=0)] = 0
    symbol_cap: Annotated[
        int,
        Option(
            "symbols per connection (streams, where the vendor counts those); 0 = the vendor's own cap",
            minimum=0,
        ),
    ] = 0


_SERVER_OPTIONS = {name: vendor.server_options for name, vendor in VENDORS.items()}
Options = with_vendors(SimulatorOptions, _SERVER_OPTIONS)


def start(options: SimulatorOptions) -> int:
    return run(lambda service: serve(service, options), options, part="simulate")


async def serve(service: Service, options: SimulatorOptions) -> None:
    simulator = build(options)
    async with simulator.listening(options.host, options.port) as port:
        say(f"listening on ws://{options.host}:{port}")
        listen_on_stdin(simulator.command)
        service.ready = True
        await service.until_stopping(simulator.run())


def build(options: SimulatorOptions) -> Simulator:
    """The simulator that the options describe; it does nothing yet. Needs a running loop. ConfigError as it says."""
    symbols = _symbols(options)
    faults = parse_faults(options.faults)
    source = open_source(
        options.source, seed=options.seed, rate=options.rate, quotes_per_trade=options.quotes_per_trade, symbols=symbols,
        symbol=options.symbol, date=options.date, merge_sides=options.merge_sides,
    )  # fmt: skip
    speed = parse_speed(options.speed)
    if options.preload and source.idle:
        raise ConfigError(
            "--preload needs to know the synthetic market's symbols; give --symbols or --symbols-count"
        )
    market = Market(
        source,
        speed,
        limit=options.limit,
        loop=options.loop,
        restamp=options.restamp,
        preload=options.preload,
    )
    pace = Pace(speed is None, options.start == "first-subscribe", options.settle)
    if options.session:
        pace.open_now = TradingHours.parse(options.session).contains
    limits = VendorLimits(options.token, options.symbol_cap, options.max_connections, source.knows)
    of_servers = {name: of_vendor(options, own) for name, own in _SERVER_OPTIONS.items()}
    simulator = Simulator(
        source,
        market,
        pace,
        limits,
        of_servers,
        Ledger(options.ledger) if options.ledger else None,
        options.seed,
    )
    simulator.plan(faults)
    return simulator


def _symbols(options: SimulatorOptions) -> tuple[str, ...]:
    if options.symbols and options.symbols_count:
        raise ConfigError("--symbols and --symbols-count: give one of them")
    for symbol in options.symbols:
        if not is_symbol(symbol):
            raise ConfigError(f"--symbols: {symbol!r} is no symbol; use letters, digits, . _ - (at most 64)")
    return options.symbols or tuple(f"S{number:05d}" for number in range(1, options.symbols_count + 1))
