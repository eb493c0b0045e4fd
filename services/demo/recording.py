"""What the demo plays instead of the synthetic market: a recorded day, read by the simulator."""

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from services.demo.children import child_environment
from tickbus.errors import ConfigError

_TAPE_SUFFIXES = (".csv", ".zip")
_PLAYED = ("--restamp", "--settle", "1500ms")
"""The gateway subscribes to trades and, a second later, to quotes: it must not miss the first of them."""


def recording_options(paths: Sequence[Path]) -> list[str]:
    """Return the simulator's options that play a recording as if it happened now.

    A folder is one of our recorder; csv and zip files are of the US tape and named like
    `bac_20131009_trade.zip`, which names their symbol too; any others are captures of frames. Raises
    ConfigError if a path does not exist.
    """
    for path in paths:
        if not path.exists():
            raise ConfigError(f"--capture: no such file: {path}")
    listed = ",".join(map(str, paths))
    if any(path.is_dir() for path in paths):
        return ["--source", f"parquet:{listed}", *_PLAYED]
    if any(path.suffix in _TAPE_SUFFIXES for path in paths):
        symbol = paths[0].name.partition("_")[0].upper()
        if not re.fullmatch(r"[A-Z0-9.-]+", symbol):
            raise ConfigError(f"--capture {paths[0]}: no symbol in its name: expected bac_20131009_trade.zip")
        return ["--source", f"ticks:{listed}", "--symbol", symbol, "--merge-sides", *_PLAYED]
    return ["--source", f"capture:{listed}", *_PLAYED]


async def recorded_symbols(options: Sequence[str]) -> tuple[str, ...]:
    """Return the symbols of a recording that the simulator plays with these options.

    Raises ConfigError, in the simulator's words, if it cannot.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "simulate", *options, "--list-symbols"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=child_environment(),
    )
    output, errors = await process.communicate()
    if process.returncode:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError(f"cannot play the recording: {last.removeprefix('tickbus: ')}")
    return tuple(output.decode().split())
