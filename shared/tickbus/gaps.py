"""Gaps that a reader makes itself: what retention took before it was read."""

from tickbus.messages import Gap, GapKind, StreamKind
from tickbus.reader import Read
from tickbus.units import MILLISECOND


def trimmed_gap(read: Read, source: str) -> Gap:
    """What retention took before it was read, as a Gap; its times are bus time, from the IDs around it."""
    assert read.lost is not None
    kinds = {"trade": StreamKind.TRADE, "quote": StreamKind.QUOTE}
    return Gap(
        kinds.get(read.stream.kind, StreamKind.BAR), source, GapKind.TRIMMED,
        read.lost.after.ms * MILLISECOND, read.lost.before.ms * MILLISECOND, count=read.lost.count, symbol=read.stream.symbol,
    )  # fmt: skip
