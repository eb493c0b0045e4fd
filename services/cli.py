"""The command `tickbus`: finds the part that is asked for and starts it. What a part takes, its own module declares.

A part's module has `Options`, `ABOUT` (its --help), `POSITIONALS` and `start(options) -> exit code`. It is imported only when
it is asked for, so that `tickbus tail` does not load pyarrow.
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
    line: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "services.demo.main",
        "the whole thing on this machine: server, simulator, gateway, bars, recorder, live table",
    ),
    "gateway": Command("services.gateway.main", "hold the one upstream connection and publish every tick"),
    "bars": Command("services.bars.main", "build time, tick, volume and value bars from the trades"),
    "recorder": Command("services.recorder.main", "write everything to Parquet files, exactly once"),
    "simulate": Command(
        "services.simulator.main", "a stand-in for a vendor: synthetic or recorded ticks, faults on request"
    ),
    "tail": Command("services.tools.tail", "print a stream, one message a line"),
    "status": Command("services.tools.status", "feeds, streams, lag, gaps, retention headroom"),
    "replay": Command("services.tools.replay", "put recorded ticks onto a bus again"),
}


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # while it is still loading: a service that runs stops in order
        return 130


def _main(args: list[str]) -> int:
    # imported here: loading them takes longer than an impatient Ctrl-C
    from tickbus.errors import ConfigError, TickbusError

    try:
        if not args or args[0] in ("-h", "--help", "help"):
            return _print(usage())
        if args[0] in ("-V", "--version"):
            return _print(f"tickbus {_version()}")
        if args[0] not in COMMANDS:
            raise ConfigError(f"unknown command {args[0]!r}; there are {', '.join(COMMANDS)}")
        return _start(args[0], args[1:])
    except TickbusError as error:
        print(f"tickbus: {error}", file=sys.stderr)
        return error.exit_code


def _print(text: str) -> int:
    from services.output import pipe_may_close

    with pipe_may_close():
        print(text)
    return 0


def usage() -> str:
    lines = "\n".join(f"  {name:10} {part.line}" for name, part in COMMANDS.items())
    about = f"tickbus {_version()}: one tick connection in, any number of apps out, nothing lost in silence"
    return f"usage: tickbus PART [options]        tickbus PART --help says more\n\n{lines}\n\n{about}"


def _version() -> str:
    from tickbus.version import VERSION

    return VERSION


def _start(name: str, args: list[str]) -> int:
    from services.output import pipe_may_close
    from tickbus.service.load_options import load

    part = _module(name)
    # every part's options are needed only to check a file's other tables
    tables = (
        {other: _module(other).Options for other in COMMANDS} if _has_file(args) else {name: part.Options}
    )
    options = None
    with pipe_may_close():  # --help
        options = load(
            part.Options, name, args, tables=tables, about=part.ABOUT, positionals=part.POSITIONALS
        )
    return 0 if options is None else int(part.start(options))


def _has_file(args: list[str]) -> bool:
    return "TICKBUS_CONFIG" in os.environ or any(arg.startswith("--config") for arg in args)


def _module(name: str) -> Any:
    return import_module(COMMANDS[name].module)


if __name__ == "__main__":
    raise SystemExit(main())
