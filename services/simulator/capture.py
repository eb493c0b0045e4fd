"""A capture of a vendor's frames as a market. The file is read as the market advances; decimals stay text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from services.simulator.files import check_files, line_batches
from services.simulator.source import RecordedSource
from services.simulator.tick import RecordedFrame, Tick, key_of
from services.vendors import VENDORS, Vendor
from services.vendors.feed import NO_ID, FeedSetup, Mapper, Rejected
from services.vendors.symbols import AnySymbol
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Trade
from tickbus.units import DAY, Duration

_ANY_TIME = Duration(100 * 365 * DAY)
"""A recording may be older or newer than the clock that received it: none of its times is flagged."""
_NO_OLDEST = -(1 << 63)


class Capture(RecordedSource):
    """Files of `<ns> <frame>` lines, plain or gzip, in the order given.

    The vendor is the one whose channels the frames name. Frames without a channel (an answer, a snapshot
    fetched by HTTP) are skipped. An invalid line raises ConfigError.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._paths = check_files(paths)

    def __iter__(self) -> Iterator[Tick]:
        reader = _FrameReader()
        for path in self._paths:
            lines_read = 0
            for lines in line_batches(path):
                for number, line in enumerate(lines, lines_read + 1):
                    try:
                        yield from reader.read(line)
                    except (ValueError, UnicodeDecodeError) as error:
                        raise ConfigError(
                            f"{path}, line {number}: {error}: expected `<ns> <frame>`"
                        ) from None
                lines_read += len(lines)


class _FrameReader:
    """Reads lines of a capture, using the mapper of the vendor that sent them."""

    def __init__(self) -> None:
        self._vendor: tuple[str, Vendor, Mapper] | None = None
        self._counters: dict[str, int] = {}

    def read(self, line: bytes) -> Sequence[Tick]:
        """Return the ticks of a line. Raises ValueError or UnicodeDecodeError for an invalid line."""
        recv, _, frame = line.partition(b" ")
        if not recv.isdigit():
            raise ValueError(f"{recv[:40]!r} is no time")
        at = int(recv)
        if (identified := self._identify(frame)) is None:
            return ()
        name, channel, spelling, mapper = identified
        ticks = mapper.map(frame, at)
        rejected = [notice for notice in mapper.notices if isinstance(notice, Rejected)]
        mapper.notices.clear()
        if rejected:
            raise ValueError(rejected[0].detail)
        recorded = RecordedFrame(name, channel, frame)
        if not ticks:
            return [Tick(f"{name}:{channel}", spelling, 0, at, None, recorded)]
        result = []
        for message, vendor_id in ticks:
            kind = "trade" if isinstance(message, Trade) else "quote"
            key = key_of(message.symbol, kind)
            if vendor_id == NO_ID:
                vendor_id = self._counters[key] = self._counters.get(key, 0) + 1
            result.append(
                Tick(key, message.symbol, vendor_id, at, message, recorded if len(ticks) == 1 else None)
            )
        return result

    def _identify(self, frame: bytes) -> tuple[str, str, str, Mapper] | None:
        """Return vendor name, channel, symbol in the channel, and mapper; None without a channel."""
        if self._vendor is not None:
            name, vendor, mapper = self._vendor
            channel = vendor.channel_of(frame) if vendor.channel_of is not None else None
            return None if channel is None else (name, *channel, mapper)
        for name, vendor in VENDORS.items():
            if vendor.channel_of is not None and (channel := vendor.channel_of(frame)) is not None:
                setup = FeedSetup(AnySymbol(), ("trade", "quote"), oldest=_NO_OLDEST)
                mapper = vendor.feed(setup).mapper(_ANY_TIME)
                self._vendor = (name, vendor, mapper)
                return name, *channel, mapper
        return None
