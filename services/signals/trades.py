"""All signals of one trade stream. Pure: entries go in, signals come out.

Time is T, the newest ts_event. Trades that are late, backfilled, cancelled, corrected or off the book, whose
time is not usable, or that have no price or size, are counted and touch nothing. A trade is judged against
the windows before it, then joins them. A hole marks whatever reaches back to it.

    signals = TradeSignals("binance", "BTC-USDT", ParameterSet())
    for id, message in entries:
        for ms, signal in signals.apply(id, message): ...
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from services.signals.aggressor import AggressorIndex, side_of
from services.signals.episode import Episode
from services.signals.finding import Finding
from services.signals.gap_watch import GapWatch
from services.signals.large_trade import LargeTrade
from services.signals.panes import BUYS, COUNT, SELLS, VOLUME, Panes, pane_of
from services.signals.parameters import ParameterSet
from services.signals.sigma import SigmaPrice, SigmaReturn
from services.signals.stream_state import VERSION, HotState, dump, load
from services.signals.surge import PaneSurge
from services.signals.trade_window import TradeWindow
from services.signals.volume_profile import VolumeProfile
from tickbus.errors import WireError
from tickbus.fixed_point import TENS, PrecisionExceeded, ensure_scale, scale_table
from tickbus.protocol.bar_specs import parse_all
from tickbus.protocol.messages import Flag, Gap, Side, Signal, Trade
from tickbus.protocol.names import StreamId
from tickbus.trading_days import has_market, intervals

Emitted = tuple[int, Signal]
"""Bus time in ms of what caused the signal, and the signal."""

_FLAGS = (
    Flag.LATE, Flag.BACKFILLED, Flag.OFF_BOOK, Flag.CANCELLED, Flag.CORRECTED, Flag.FUTURE_TIME,
    Flag.BAD_TIME,
)  # fmt: skip
ASIDE = {flag: (flag.name or "").lower() for flag in _FLAGS}
"""A trade or quote with one of these touches nothing."""
_ASIDE = int(sum(ASIDE))
_DIRECTIONS = {Side.BUY: 1, Side.SELL: -1}
(_DAY,) = parse_all(("time:1d",))


def message_of(finding: Finding, symbol: str, cause: str, params: int) -> Signal:
    """Return a finding as a message."""
    quality = [name for name, holds in (("has_gap", finding.has_gap), ("partial", finding.partial)) if holds]
    return Signal(
        finding.name, finding.value, finding.threshold, finding.window, finding.message, symbol, finding.ts,
        finding.state, finding.direction, finding.unit, tuple(quality), finding.episode, cause, params,
        finding.details,
    )  # fmt: skip


class TradeSignals:
    """Entries must come in stream order, none twice."""

    def __init__(
        self, feed: str, symbol: str, parameters: ParameterSet, state: Mapping[str, bytes] | None = None
    ) -> None:
        """state: the newest of each field that `state()` has returned. WireError if it cannot be read."""
        self._feed, self._symbol = feed, symbol
        self.ignored: Counter[str] = Counter()
        """Trades that touched nothing since creation, by reason."""
        self._prices, self._sizes = scale_table(0), scale_table(0)
        self._ts = 0
        self._gap_at, self._gap_to = -1, -(1 << 62)
        self._last: int | None = None
        self._different: int | None = None
        """The newest price that differs from the last one."""
        self._window, self._panes = TradeWindow(), Panes()
        self._windows: dict[str, tuple[int, int]] = {}
        """Signal -> length of its window of trades, and the number of trades when it began."""
        self._profile: VolumeProfile | None = None
        self._watch: GapWatch | None = None
        self._configure(parameters)
        if state is not None:
            self._restore(state)

    # parameters

    def configure(self, parameters: ParameterSet) -> None:
        """Use other parameters from the next entry on. Windows whose length changed begin anew."""
        episodes = {name: episode.state for name, episode in self._episodes().items()}
        profile: VolumeProfile | None = self._profile
        watch: GapWatch | None = self._watch
        self._configure(parameters)
        for name, episode in self._episodes().items():
            if name in episodes:
                episode.restore(episodes[name])
        if profile is not None and self._profile is not None:
            profile.parameters, self._profile = self._profile.parameters, profile
        self._refill()
        if watch is not None and self._watch is not None:
            self._watch.last_ms = watch.last_ms

    def _configure(self, parameters: ParameterSet) -> None:
        chosen = parameters.of(self._feed, self._symbol)
        self._number = parameters.number
        self._sigmas: list[SigmaPrice] = []
        if chosen.sigma_price.enabled:
            self._sigmas.append(SigmaPrice(chosen.sigma_price))
        if chosen.sigma_return.enabled:
            self._sigmas.append(SigmaReturn(chosen.sigma_return))
        self._large = LargeTrade(chosen.large_trade) if chosen.large_trade.enabled else None
        self._surges = [
            PaneSurge(name, column, one)
            for name, column, one in (
                ("volume_surge", VOLUME, chosen.volume_surge),
                ("trade_rate", COUNT, chosen.trade_rate),
            )
            if one.enabled
        ]
        self._aggressor = AggressorIndex(chosen.aggressor) if chosen.aggressor.enabled else None
        self._profile = (
            VolumeProfile(chosen.volume_profile, intervals(_DAY, self._symbol))
            if chosen.volume_profile.indicator
            else None
        )
        always_open = chosen.gap_watch.always_open
        if always_open is None:
            always_open = not has_market(self._symbol)
        self._watch = GapWatch(chosen.gap_watch, always_open) if chosen.gap_watch.enabled else None
        lengths = {sigma.name: sigma.parameters.n for sigma in self._sigmas}
        if self._large is not None:
            lengths[self._large.name] = self._large.parameters.n
        self._windows = {
            name: self._windows[name] if self._windows.get(name, (0, 0))[0] == n else (n, self._window.count)
            for name, n in lengths.items()
        }

    def _episodes(self) -> dict[str, Episode]:
        found = {sigma.name: sigma.episode for sigma in self._sigmas}
        found |= {surge.name: surge.ratio.episode for surge in self._surges}
        for one in (self._aggressor, self._watch):
            if one is not None:
                found[one.name] = one.episode
        return found

    @property
    def newest_event(self) -> int:
        """The newest ts_event; 0 before the first."""
        return self._ts

    @property
    def episodes(self) -> int:
        """Number of open ones."""
        return sum(episode.start is not None for episode in self._episodes().values())

    @property
    def flat(self) -> int:
        """Evaluations without a decision since creation: all values of the window were equal."""
        return sum(sigma.flat for sigma in self._sigmas) + sum(surge.ratio.flat for surge in self._surges)

    @property
    def suppressed(self) -> int:
        """Starts within a cool-down since creation."""
        return sum(episode.suppressed for episode in self._episodes().values())

    # entries

    @property
    def due_ms(self) -> int | None:
        """Bus time at which a silence begins if nothing else arrives; None if none can."""
        return None if self._watch is None else self._watch.due_ms

    def clock(self, bus_ms: int) -> list[Emitted]:
        """Advance bus time: all entries of this stream with id.ms < bus_ms were applied; no more follow."""
        due = self.due_ms
        if self._watch is None or due is None or due >= bus_ms:
            return []
        return self._messages(self._watch.silent(due, self._ts), due, str(due))

    def apply(self, id: StreamId, message: Trade | Gap) -> list[Emitted]:
        """Apply the next entry of the stream. WireError if its numbers are invalid."""
        emitted = self.clock(id.ms)
        if isinstance(message, Gap):
            return emitted if message.repaired else emitted + self._apply_gap(id, message)
        flags = message.flags & _ASIDE
        if flags:
            self.ignored[next(name for flag, name in ASIDE.items() if flags & flag)] += 1
            return emitted
        try:
            price, size = self._prices[message.price_text], self._sizes[message.size_text]
            middle = None if message.side is not Side.UNKNOWN else self._middle(message)
        except PrecisionExceeded:
            self._raise_scales(message)
            price, size = self._prices[message.price_text], self._sizes[message.size_text]
            middle = None if message.side is not Side.UNKNOWN else self._middle(message)
        if price <= 0 or size <= 0:
            self.ignored["zero"] += 1
            return emitted
        findings = self._take(id.ms, message.ts_event, price, size, _DIRECTIONS.get(message.side, 0), middle)
        return emitted + self._messages(findings, id.ms, str(id))

    def _middle(self, trade: Trade) -> int | None:
        """Return bid plus ask, if the vendor quoted both, and the bid below the ask."""
        if trade.bid_text is None or trade.ask_text is None:
            return None
        try:
            bid, ask = self._prices[trade.bid_text], self._prices[trade.ask_text]
        except WireError:
            return None  # some other program wrote it
        return bid + ask if bid < ask else None

    def _raise_scales(self, trade: Trade) -> None:
        prices, sizes = (
            ensure_scale(self._prices, trade.price_text),
            ensure_scale(self._sizes, trade.size_text),
        )
        for text in (trade.bid_text, trade.ask_text):
            if trade.side is Side.UNKNOWN and text is not None:
                with suppress(WireError):
                    prices = ensure_scale(prices, text)
        price_factor = TENS[prices.scale - self._prices.scale]
        size_factor = TENS[sizes.scale - self._sizes.scale]
        self._prices, self._sizes = prices, sizes
        self._window.scale(price_factor, size_factor)
        self._panes.scale(size_factor)
        for sigma in self._sigmas:
            sigma.scale(price_factor)
        if self._large is not None:
            self._large.scale(size_factor)
        if self._profile is not None:
            self._profile.scale(price_factor, size_factor)
        self._last, self._different = (
            None if price is None else price * price_factor for price in (self._last, self._different)
        )

    def _take(
        self, ms: int, ts: int, price: int, size: int, side: int, middle: int | None
    ) -> Iterator[Finding]:
        ts = max(self._ts, ts)
        if self._watch is not None:
            yield from self._watch.trade(ms, ts)
        now, panes, window = pane_of(ts), self._panes, self._window
        if now != panes.now:
            for end in panes.advance(now):
                yield from self._evaluate(end)
        self._ts = ts
        if price != self._last:
            self._different, self._last = self._last, price
        found_by = None
        if not side:
            side, found_by = side_of(price, middle, self._different)
        since_gap = window.count - self._gap_at if self._gap_at >= 0 else 1 << 62
        for sigma in self._sigmas:
            yield from sigma.trade(window, price, ts, since_gap)
            sigma.add(window, price)
        if self._large is not None:
            yield from self._large.trade(window, size, ts, since_gap, side, self._sizes.scale)
            self._large.add(window, size)
        if self._watch is not None:
            self._watch.add(window, ms)
        if self._profile is not None:
            self._profile.add(price, size, ts)
        window.add(price, size, ms)
        pane = panes.open
        pane[VOLUME] += size
        pane[COUNT] += 1
        if side:
            pane[BUYS if side > 0 else SELLS] += size
        if found_by is not None:
            pane[found_by] += 1

    def _evaluate(self, end: int) -> Iterator[Finding]:
        """A pane was closed."""
        panes, gap_to = self._panes, self._gap_to
        for surge in self._surges:
            yield from surge.pane(panes, end, gap_to, self._sizes.scale)
        if self._aggressor is not None:
            yield from self._aggressor.pane(panes, end, gap_to)
        if self._profile is not None:
            yield from self._profile.pane(end, gap_to, self._prices.scale, self._sizes.scale)

    def _apply_gap(self, id: StreamId, gap: Gap) -> list[Emitted]:
        self._gap_at = self._window.count
        self._gap_to = max(self._gap_to, gap.from_ts, gap.to_ts)
        if self._watch is None:
            return []
        return self._messages(self._watch.gap(gap, self._ts), id.ms, str(id))

    def _messages(self, findings: Iterable[Finding], ms: int, cause: str) -> list[Emitted]:
        return [(ms, message_of(finding, self._symbol, cause, self._number)) for finding in findings]

    # state

    def state(self) -> dict[str, bytes]:
        """Return the fields that changed since the last call; the one without a name always does."""
        window, scales = self._window, (self._prices.scale, self._sizes.scale)
        parts = {f"t{slot}": text for slot, text in window.take_parts(scales).items()}
        parts |= {f"p{slot}": text for slot, text in self._panes.take_parts(scales[1]).items()}
        if self._profile is not None:
            parts |= {f"v{group}": text for group, text in self._profile.take_parts(scales).items()}
        prices = (self._last, self._different)
        hot = HotState(
            VERSION, *scales, self._ts, window.count, window.known, window.tail(), self._panes.hot(),
            self._gap_at, max(self._gap_to, 0),
            tuple(str(price) for price in prices if price is not None),
            {
                name: episode.state
                for name, episode in self._episodes().items()
                if episode.start is not None or episode.ended is not None
            },
            {name: window_ for name, window_ in self._windows.items() if window_[1]},
            "" if self._profile is None else self._profile.hot(),
        )  # fmt: skip
        return dump(hot, parts)

    def _restore(self, stored: Mapping[str, bytes]) -> None:
        hot, parts = load(stored)
        scales = hot.price_scale, hot.size_scale
        self._prices, self._sizes = scale_table(scales[0]), scale_table(scales[1])
        by_kind: dict[str, dict[str, str]] = {"t": {}, "p": {}, "v": {}}
        for name, text in parts.items():
            by_kind.setdefault(name[0], {})[name[1:]] = text
        try:
            self._window.restore(hot.count, hot.tail, _slots(by_kind["t"]), scales)
            self._panes.restore(hot.panes, _slots(by_kind["p"]), scales[1])
            if self._profile is not None and hot.profile:
                self._profile.restore(hot.profile, by_kind["v"], scales)
            self._last, self._different = ([int(price) for price in hot.prices] + [None, None])[:2]
        except (ValueError, IndexError) as error:
            raise WireError(f"cannot decode the stored state of signals: {error}") from None
        self._ts, self._gap_at = hot.ts, hot.gap_at
        self._gap_to = hot.gap_to or -(1 << 62)
        self._windows = {
            name: hot.windows.get(name, (n, 0)) if hot.windows.get(name, (n, 0))[0] == n else (n, hot.count)
            for name, (n, _) in self._windows.items()
        }
        for name, episode in self._episodes().items():
            if name in hot.episodes:
                episode.restore(hot.episodes[name])
        self._refill()

    def _refill(self) -> None:
        """Build what is derived from the window of trades."""
        window = self._window
        for sigma in self._sigmas:
            sigma.refill(window, window.count - self._windows[sigma.name][1])
        if self._large is not None:
            self._large.refill(window, window.count - self._windows[self._large.name][1])
        if self._watch is not None:
            self._watch.refill(window)


def _slots(parts: Mapping[str, str]) -> dict[int, str]:
    return {int(slot): text for slot, text in parts.items()}
