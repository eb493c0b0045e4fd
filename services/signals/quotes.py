"""All signals of one quote stream: `spread`. Pure: entries go in, signals come out."""

from collections import Counter
from collections.abc import Mapping

from services.signals.parameters import ParameterSet
from services.signals.spread import Spread
from services.signals.stream_state import VERSION, HotState, dump, load
from services.signals.trades import ASIDE, Emitted, message_of
from tickbus.errors import WireError
from tickbus.fixed_point import PrecisionExceeded, ensure_scale, scale_table
from tickbus.protocol.messages import Gap, Quote
from tickbus.protocol.names import StreamId

_ASIDE = int(sum(ASIDE))


class QuoteSignals:
    """Like TradeSignals; a spread has no scale, so nothing is scaled."""

    due_ms = None
    """Nothing begins by the clock."""

    def __init__(
        self, feed: str, symbol: str, parameters: ParameterSet, state: Mapping[str, bytes] | None = None
    ) -> None:
        """state: the newest of each field that `state()` has returned. WireError if it cannot be read."""
        self._feed, self._symbol = feed, symbol
        self.ignored: Counter[str] = Counter()
        """Quotes that touched nothing since creation, by reason."""
        self._table = scale_table(0)
        self._ts, self._gap_to = 0, -(1 << 62)
        self._spread: Spread | None = None
        self.configure(parameters)
        if state is not None:
            self._restore(state)

    def configure(self, parameters: ParameterSet) -> None:
        """Use other parameters from the next entry on."""
        self._number, before = parameters.number, self._spread
        chosen = parameters.of(self._feed, self._symbol).spread
        self._spread = Spread(chosen) if chosen.enabled else None
        if before is not None and self._spread is not None:
            self._spread.take_over(before)

    @property
    def newest_event(self) -> int:
        """The newest ts_event; 0 before the first."""
        return self._ts

    @property
    def episodes(self) -> int:
        """Number of open ones."""
        return int(self._spread is not None and self._spread.ratio.episode.start is not None)

    @property
    def flat(self) -> int:
        """Evaluations without a decision since creation: all values of the window were equal."""
        return 0 if self._spread is None else self._spread.ratio.flat

    @property
    def suppressed(self) -> int:
        """Starts within a cool-down since creation."""
        return 0 if self._spread is None else self._spread.ratio.episode.suppressed

    def clock(self, bus_ms: int) -> list[Emitted]:
        """Advance bus time: nothing depends on it."""
        return []

    def apply(self, id: StreamId, message: Quote | Gap) -> list[Emitted]:
        """Apply the next entry of the stream. WireError if its numbers are invalid."""
        if isinstance(message, Gap):
            if not message.repaired:
                self._gap_to = max(self._gap_to, message.from_ts, message.to_ts)
            return []
        flags = message.flags & _ASIDE
        if flags:
            self.ignored[next(name for flag, name in ASIDE.items() if flags & flag)] += 1
            return []
        if message.bid_text is None or message.ask_text is None:
            self.ignored["one_sided"] += 1
            return []
        try:
            bid, ask = self._table[message.bid_text], self._table[message.ask_text]
        except PrecisionExceeded:
            self._table = ensure_scale(ensure_scale(self._table, message.bid_text), message.ask_text)
            bid, ask = self._table[message.bid_text], self._table[message.ask_text]
        if bid <= 0 or ask <= 0:
            self.ignored["one_sided"] += 1
            return []
        if bid >= ask:
            self.ignored["locked" if bid == ask else "crossed"] += 1
            return []
        self._ts = max(self._ts, message.ts_event)
        if self._spread is None:
            return []
        return [
            (id.ms, message_of(finding, self._symbol, str(id), self._number))
            for finding in self._spread.quote(bid, ask, self._ts, self._gap_to)
        ]

    def state(self) -> dict[str, bytes]:
        """Return the fields that changed since the last call; the one without a name always does."""
        spread, episodes = self._spread, {}
        if spread is not None and spread.ratio.episode.state != (None, None, 0):
            episodes = {spread.name: spread.ratio.episode.state}
        hot = HotState(
            VERSION, self._table.scale, 0, self._ts, panes="" if spread is None else spread.hot(),
            gap_to=max(self._gap_to, 0), episodes=episodes,
        )  # fmt: skip
        parts = {} if spread is None else {f"s{slot}": text for slot, text in spread.take_parts().items()}
        return dump(hot, parts)

    def _restore(self, stored: Mapping[str, bytes]) -> None:
        hot, parts = load(stored)
        self._table, self._ts = scale_table(hot.price_scale), hot.ts
        self._gap_to = hot.gap_to or -(1 << 62)
        if self._spread is None or not hot.panes:
            return
        try:
            self._spread.restore(hot.panes, {int(name[1:]): text for name, text in parts.items()})
        except (ValueError, IndexError) as error:
            raise WireError(f"cannot decode the stored state of signals: {error}") from None
        if self._spread.name in hot.episodes:
            self._spread.ratio.episode.restore(hot.episodes[self._spread.name])
