"""A vendor's frames as a style: what its own client would receive from it. Pure.

Gaps cannot be said in it: a hole shows as what the vendor would do, nothing, and is counted. Late ticks are
left out, because a vendor's client takes the newest frame for the newest price.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

from services.frames import text_frame, text_frames
from services.relay.conflation import Entry
from services.relay.styles import Chunk, Style
from services.vendors.dialect import Dialect
from tickbus.protocol.messages import Flag, Quote, Trade
from tickbus.protocol.names import Stream

_LATE = Flag.LATE | Flag.BACKFILLED | Flag.CANCELLED


class DialectStyle(Style):
    """Equal for all clients that get the same bytes: they share them."""

    def __init__(self, dialect: Dialect, spelling: str, sequenced: bool, unsaid: Counter[str]) -> None:
        """spelling: of the symbol, by the client. sequenced: whether the stream has the vendor's own ids.

        unsaid: counts what the vendor's protocol cannot say: gap, late.
        """
        self._dialect = dialect
        self._spelling = spelling
        self._sequenced = sequenced
        self._unsaid = unsaid
        self.key: Hashable = (dialect.style, spelling, sequenced)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DialectStyle) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def element(self, stream: Stream, entry: Entry) -> bytes:
        message = entry.message
        if not isinstance(message, Trade | Quote):
            self._unsaid["gap"] += 1
            return b""
        if message.flags & _LATE:
            self._unsaid["late"] += 1
            return b""
        id = int(entry.cursor.partition("-")[2])
        if self._sequenced and isinstance(message, Trade) and (message.trade_id or "").isdecimal():
            id = int(message.trade_id or 0)
        return self._dialect.render(message, self._spelling, id)

    def join(self, elements: Sequence[bytes]) -> Chunk:
        items = [element for element in elements if element]
        return Chunk(len(items), text_frames(self._dialect.pack(items)))

    def join_chunks(self, chunks: Sequence[Chunk]) -> Chunk:
        return Chunk(sum(chunk.length for chunk in chunks), b"".join([chunk.body for chunk in chunks]))

    def data(self, head: bytes, chunk: Chunk) -> bytes:
        return chunk.body


def reply_frames(replies: Sequence[bytes]) -> bytes:
    """Return a vendor's answers as frames."""
    return b"".join(map(text_frame, replies))
