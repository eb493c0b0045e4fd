"""The program `tickbus`: finds the requested command and starts it. A command's module declares its options.

The module has `Options`, `ABOUT` (its --help), `POSITIONALS` and `start(options)`, which returns the exit
code. It is imported only when requested, so that `tickbus tail` does not load pyarrow.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "services.demo.main",
        "everything on this machine: server, simulator, gateway, bars, relay, recorder, live table",
    ),
    "gateway": Command("services.gateway.main", "hold the one upstream connection and publish every tick"),
    "bars": Command("services.bars.main", "build time, tick, volume and value bars from the trades"),
    "signals": Command("services.signals.main", "watch the ticks for what is unusual, and say so"),
    "recorder": Command("services.recorder.main", "write everything to Parquet files, exactly once"),
    "simulate": Command(
        "services.simulator.main", "stand in for a vendor: synthetic or recorded ticks, faults on request"
    ),
    "relay": Command("services.relay.main", "serve the bus to any app, over WebSocket and HTTP"),
    "notify": Command(
        "services.notify.main", "send alerts to a webhook, or by mail and chat through apprise"
    ),
    "want": Command("services.tools.want", "subscribe to symbols of a feed while it runs"),
    "tail": Command("services.tools.tail", "print streams, one message per line"),
    "status": Command("services.tools.status", "show feeds, streams, lag, gaps, retention headroom"),
    "replay": Command("services.tools.replay", "publish recorded ticks onto a bus again"),
}


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # while still loading: a running service shuts down in order
        return 130


def _main(args: list[str]) -> int:
    # imported here: loading them takes longer than an impatient Ctrl-C
    from tickbus.errors import ConfigError, TickbusError
    from tickbus.sanitize import clean_lines

    try:
        if not args or args[0] in ("-h", "--help", "help"):
            return _print(usage())
        if args[0] in ("-V", "--version"):
            return _print(f"tickbus {_version()}")
        if args[0] not in COMMANDS:
            raise ConfigError(f"unknown command {args[0]!r}: expected one of {', '.join(COMMANDS)}")
        return _start(args[0], args[1:])
    except TickbusError as error:
        print(f"tickbus: {clean_lines(error)}", file=sys.stderr)
        return error.exit_code


def _print(text: str) -> int:
    from services.output import pipe_may_close

    with pipe_may_close():
        print(text)
    return 0


def usage() -> str:
    lines = "\n".join(f"  {name:10} {command.summary}" for name, command in COMMANDS.items())
    about = f"tickbus {_version()}: one tick connection in, any number of apps out, nothing lost in silence"
    return f"usage: tickbus COMMAND [options]        tickbus COMMAND --help for details\n\n{lines}\n\n{about}"


def _version() -> str:
    from tickbus.version import VERSION

    return VERSION


def _start(name: str, args: list[str]) -> int:
    from services.output import pipe_may_close
    from tickbus.service.load_options import load

    module = _module(name)
    # the options of all commands are needed only to check the other tables of a file
    tables = (
        {other: _module(other).Options for other in COMMANDS} if _has_file(args) else {name: module.Options}
    )
    options = None
    with pipe_may_close():  # --help
        options = load(
            module.Options, name, args, tables=tables, about=module.ABOUT, positionals=module.POSITIONALS
        )
    return 0 if options is None else int(module.start(options))


def _has_file(args: list[str]) -> bool:
    return "TICKBUS_CONFIG" in os.environ or any(arg.startswith("--config") for arg in args)


def _module(name: str) -> Any:
    return import_module(COMMANDS[name].module)


if __name__ == "__main__":
    raise SystemExit(main())
