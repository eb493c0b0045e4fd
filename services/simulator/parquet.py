"""Files of our own recorder (docs/files.md) as a market: trades and quotes of all feeds, in receive order.

Needs pyarrow, which is loaded on first use.
"""

from collections.abc import Iterator
from pathlib import Path

from services.simulator.source import RecordedSource
from services.simulator.tick import Tick, key_of
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Quote, Trade


class ParquetTicks(RecordedSource):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        if not any(path.is_file() for path in folder.glob("[!_.]*/**/*")) and not any(
            folder.glob("*.parquet")
        ):
            raise ConfigError(
                f"--source parquet: no files in {folder}; expected a folder of tickbus recorder, with "
                "trade/date=... and quote/date=..."
            )

    def __iter__(self) -> Iterator[Tick]:
        try:
            from pyarrow import ArrowException

            from services.archive.reader import read_recorded
        except ImportError:
            raise ConfigError(
                "--source parquet requires pyarrow: pip install 'tickbus-services[recorder]'"
            ) from None
        counters: dict[str, int] = {}
        try:
            for stream, _, message in read_recorded(self._folder):
                assert isinstance(message, Trade | Quote)
                key = key_of(stream.symbol, stream.kind)
                counters[key] = counters.get(key, 0) + 1
                yield Tick(key, stream.symbol, _id(message) or counters[key], message.ts_recv, message)
            if not counters:
                raise ConfigError(f"--source parquet: no recorded trade or quote in {self._folder}")
        except (OSError, ArrowException) as error:
            raise ConfigError(f"--source parquet: cannot read a file under {self._folder}: {error}") from None


def _id(message: Trade | Quote) -> int:
    """Return the vendor's id of a trade; 0 if it has none."""
    text = message.trade_id if isinstance(message, Trade) else None
    return int(text) if text and text.isdecimal() else 0
