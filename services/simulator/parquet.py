"""Our own recorded files (docs/files.md) as a market: trades and quotes of all feeds, in the order they were received.

Needs pyarrow, which is loaded on first use.
"""

from collections.abc import Iterator
from pathlib import Path

from services.simulator.source import Recorded
from services.simulator.tick import Tick, key_of
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Quote, Trade


class ParquetTicks(Recorded):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        if not any(path for kind in ("trade", "quote") for path in folder.glob(f"{kind}/date=*")):
            raise ConfigError(f"--source parquet: no trade/date=... or quote/date=... folders under {folder}")

    def __iter__(self) -> Iterator[Tick]:
        try:
            from pyarrow import ArrowException

            from services.archive.reader import read_recorded
        except ImportError:
            raise ConfigError(
                "--source parquet needs pyarrow; pip install 'tickbus-services[recorder]'"
            ) from None
        counters: dict[str, int] = {}
        try:
            for stream, _, message in read_recorded(self._folder):
                assert isinstance(message, Trade | Quote)
                key = key_of(stream.symbol, stream.kind)
                counters[key] = counters.get(key, 0) + 1
                yield Tick(key, stream.symbol, _id(message) or counters[key], message.ts_recv, message)
        except (OSError, ArrowException) as error:
            raise ConfigError(
                f"--source parquet: a file under {self._folder} cannot be read: {error}"
            ) from None


def _id(message: Trade | Quote) -> int:
    """Return the vendor's number of a trade; 0 if it has none."""
    text = message.trade_id if isinstance(message, Trade) else None
    return int(text) if text and text.isdecimal() else 0
