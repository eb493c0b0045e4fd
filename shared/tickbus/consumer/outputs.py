"""A service's own streams: messages -> entries with dense counters, and the heads that go with them. Pure.

Nothing changes until it is stored: entries are built against a draft of the heads, and `stored` adopts it. So
the entries of a fenced transaction can be rebuilt without using a counter twice.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tickbus.errors import WireError
from tickbus.protocol.codec import FIELDS, Head, decode, encode
from tickbus.protocol.messages import Bar, Gap, Message, Signal
from tickbus.protocol.names import Keys, Stream
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.heads import EMPTY_HEAD, HeadBuilder

_MESSAGE_TYPES: dict[str, tuple[type[Message], ...]] = {"bar": (Bar, Gap), "signal": (Signal, Gap)}


@dataclass(frozen=True)
class Output:
    """A message for one of the service's own streams: a Bar or Signal, or a Gap, of the stream's symbol.

    stream: like `Stream("signal", "my-app", symbol)`.
    message: the Bar, Signal or Gap, of the stream's symbol.

    Errors: ValueError if it would not be a valid entry: readers of the stream rely on that.

        Output(Stream("signal", "my-app", "BTC-USDT"), id.ms, signal)
    """

    stream: Stream
    ms: int
    """Bus time in ms since the epoch, from the ID of what caused it, so that a repeat has the same ID."""
    message: Message

    def __post_init__(self) -> None:
        if not 10**12 <= self.ms < 10**13:  # the time of an ID has 13 digits
            raise ValueError(
                f"{self.stream.name}: invalid bus time {self.ms}: expected ms since the epoch; take it from "
                "the ID of the entry that caused the output"
            )
        self.stream.check()
        if (
            type(self.message) not in _MESSAGE_TYPES.get(self.stream.kind, ())
            or self.message.symbol != self.stream.symbol
        ):
            raise ValueError(
                f"{self.stream.name}: invalid output, a {type(self.message).__name__} of "
                f"{self.message.symbol!r}: expected a bar or signal of the stream's kind and symbol, or a Gap"
            )
        try:
            decode(FIELDS[type(self.message)], encode(self.message))
        except WireError as error:
            raise ValueError(f"{self.stream.name}: {error}") from None


class OutputStreams:
    """The streams that a service writes, in the shards that it owns."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._writers: dict[str, StreamWriter] = {}
        self._heads: dict[str, Head] = {}

    def load(self, heads: Mapping[str, Head]) -> None:
        """Add the existing streams of shards that were taken over."""
        self._heads |= heads
        for name in heads:
            self.writer(Stream.parse(name))

    def forget(self, shards: Collection[int]) -> None:
        """Another process owns these shards now."""
        self._writers = {name: writer for name, writer in self._writers.items() if writer.shard not in shards}
        self._heads = {name: head for name, head in self._heads.items() if name in self._writers}

    def entry(self, output: Output, epoch: int, draft: dict[StreamWriter, HeadBuilder]) -> Entry:
        """Return the next entry of the output's stream, and advance `draft`: the heads as this transaction
        has moved them so far."""
        writer = self.writer(output.stream)
        head = draft.get(writer)
        if head is None:
            head = draft[writer] = HeadBuilder(self._heads.get(writer.name, EMPTY_HEAD))
            head.begin(epoch)
        entry = Entry(
            writer,
            max(output.ms, head.ms),
            head.seq + 1,
            FIELDS[type(output.message)],
            encode(output.message),
        )
        head.add(entry, output.message)
        return entry

    def stored(self, draft: Mapping[StreamWriter, HeadBuilder]) -> None:
        """Adopt the heads of a transaction that was stored."""
        self._heads |= {writer.name: head.build() for writer, head in draft.items()}

    @property
    def keys(self) -> list[bytes]:
        """Keys of all streams, for the retention sweep: found when the shard was taken over, or new since."""
        return [writer.key for writer in self._writers.values()]

    def writer(self, stream: Stream) -> StreamWriter:
        """Return the writer of a stream; the same one each time."""
        writer = self._writers.get(stream.name)
        if writer is None:
            writer = self._writers[stream.name] = StreamWriter(self._keys, stream)
        return writer
