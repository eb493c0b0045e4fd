"""Gaps that a reader makes itself: what was trimmed before it was read, and streams that went back. Pure."""

from tickbus.messages import Gap, GapKind, StreamKind
from tickbus.reads import Read
from tickbus.units import MILLISECOND


def trimmed_gap(read: Read, source: str) -> Gap:
    """What retention took before it was read, or that the stream went back, as a Gap; its times are bus time, from the IDs around it."""
    lost = read.lost
    assert lost is not None
    stream = StreamKind[read.stream.kind.upper()]
    begin, end = (ms * MILLISECOND for ms in sorted((lost.after.ms, lost.before.ms)))
    kind, count = (GapKind.RESET, None) if lost.reset else (GapKind.TRIMMED, lost.count)
    return Gap(stream, source, kind, begin, end, count=count, symbol=read.stream.symbol)
