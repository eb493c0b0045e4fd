"""Opens the source that `--source` names."""

from itertools import islice
from pathlib import Path

from services.simulator.capture import Capture
from services.simulator.parquet import ParquetTicks
from services.simulator.source import Source
from services.simulator.synthetic import Synthetic
from services.simulator.tape import TapeTicks
from tickbus.errors import ConfigError

_LISTED_TICKS = 200_000
"""A recording may be as long as it likes: its symbols are those of its first ticks."""


def open_source(
    text: str,
    *,
    seed: int,
    rate: int,
    quotes_per_trade: int,
    symbols: tuple[str, ...],
    symbol: str,
    date: str | None,
    merge_sides: bool,
) -> Source:
    """Return the source for `synthetic`, `capture:FILE,FILE`, `ticks:FILE,FILE` or `parquet:DIR`.

    Raises ConfigError for any other text, and if a file is missing.
    """
    kind, _, rest = text.partition(":")
    paths = [Path(part.strip()) for part in rest.split(",") if part.strip()]
    if kind == "synthetic" and not paths:
        return Synthetic(seed=seed, rate=rate, quotes_per_trade=quotes_per_trade, symbols=symbols)
    if kind == "capture" and paths:
        return Capture(paths)
    if kind == "ticks" and paths:
        return TapeTicks(paths, symbol, merge_sides=merge_sides, date=date)
    if kind == "parquet" and len(paths) == 1:
        return ParquetTicks(paths[0])
    raise ConfigError(
        f"invalid --source {text}: expected synthetic, capture:FILE[,FILE], ticks:FILE[,FILE] or parquet:DIR"
    )


def recorded_symbols(source: Source) -> list[str]:
    """Return the symbols in the first 200,000 ticks of a recording, in the order of their first ticks.

    Raises ConfigError for a file that cannot be read, has no tick, or is no recording.
    """
    if source.live:
        raise ConfigError("--list-symbols requires a recording: --source capture:, ticks: or parquet:")
    ticks = islice(source, _LISTED_TICKS)
    symbols = list(dict.fromkeys(tick.symbol for tick in ticks if tick.message is not None))
    if not symbols:
        raise ConfigError(
            f"no trade or quote in the first {_LISTED_TICKS:,} records: expected a recording of a vendor "
            "that can be played, docs/simulator.md says which"
        )
    return symbols
