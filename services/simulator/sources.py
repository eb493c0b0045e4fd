"""Opens the source that `--source` names."""

from pathlib import Path

from services.simulator.capture import Capture
from services.simulator.parquet import ParquetTicks
from services.simulator.source import Source
from services.simulator.synthetic import Synthetic
from services.simulator.tape import TapeTicks
from tickbus.errors import ConfigError


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
