"""A capture of a vendor's frames as a market. The file is read as the market goes on; decimals stay the text they are."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from services.simulator.files import existing, pieces
from services.simulator.source import Recorded
from services.simulator.tick import RecordedFrame, Tick, key_of
from services.vendors import VENDORS, Vendor
from services.vendors.feed import NO_ID, FeedSetup, Mapper, Rejected
from services.vendors.symbols import AnySymbol
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Trade
from tickbus.units import DAY, Duration

_ANY_TIME = Duration(100 * 365 * DAY)
"""A recording may be older or newer than the clock that received it: no time in it is flagged."""


class Capture(Recorded):
    """`<ns> <frame>` lines; plain or gzip, in the order given. The vendor is the one whose channels the frames name.

    Lines with a frame of no channel (an answer, a snapshot fetched by HTTP) are left out. A line that is none is a ConfigError.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._paths = existing(paths)

    def __iter__(self) -> Iterator[Tick]:
        reader = _FrameReader()
        for path in self._paths:
            done = 0
            for lines in pieces(path):
                for number, line in enumerate(lines, done + 1):
                    try:
                        yield from reader.read(line)
                    except (ValueError, UnicodeDecodeError) as error:
                        raise ConfigError(
                            f"{path}, line {number}: {error}; a capture has lines of `<ns> <frame>`"
                        ) from None
                done += len(lines)


class _FrameReader:
    """Lines of a capture -> ticks, by the mapper of the vendor that they come from."""

    def __init__(self) -> None:
        self._vendor: tuple[str, Vendor, Mapper] | None = None
        self._quotes: dict[str, int] = {}

    def read(self, line: bytes) -> Sequence[Tick]:
        """ValueError or UnicodeDecodeError if it is no line of a capture."""
        receipt, _, frame = line.partition(b" ")
        at = int(receipt)
        if (known := self._known(frame)) is None:
            return ()
        name, channel, spelling, mapper = known
        ticks = mapper.map(frame, at)
        rejected = [notice for notice in mapper.notices if isinstance(notice, Rejected)]
        mapper.notices.clear()
        if rejected:
            raise ValueError(rejected[0].detail)
        recorded = RecordedFrame(name, channel, frame)
        if not ticks:
            return [Tick(f"{name}:{channel}", spelling, 0, at, None, recorded)]
        found = []
        for message, vendor_id in ticks:
            kind = "trade" if isinstance(message, Trade) else "quote"
            key = key_of(message.symbol, kind)
            if vendor_id == NO_ID:
                vendor_id = self._quotes[key] = self._quotes.get(key, 0) + 1
            found.append(
                Tick(key, message.symbol, vendor_id, at, message, recorded if len(ticks) == 1 else None)
            )
        return found

    def _known(self, frame: bytes) -> tuple[str, str, str, Mapper] | None:
        """The vendor's name, the channel of the frame, the symbol in it, and the vendor's mapper."""
        if self._vendor is not None:
            name, vendor, mapper = self._vendor
            found = vendor.channel_of(frame) if vendor.channel_of is not None else None
            return None if found is None else (name, *found, mapper)
        for name, vendor in VENDORS.items():
            if vendor.channel_of is not None and (found := vendor.channel_of(frame)) is not None:
                mapper = vendor.feed(FeedSetup(AnySymbol(), ("trade", "quote"))).mapper(_ANY_TIME)
                self._vendor = (name, vendor, mapper)
                return name, *found, mapper
        return None
