"""`spread`: the quoted relative spread, against its own last ten minutes. Pure.

x = 2 10^10 (a - b) / (a + b), half-even: millionths of a basis point. One sample a second: the newest spread
at the end of the pane, at most a minute old. It is judged against the 600 samples before it, at least 300.
"""

from collections import deque
from collections.abc import Iterator, Mapping

from services.signals.finding import Finding
from services.signals.moments import Moments, quotient
from services.signals.parameters import Surge
from services.signals.surge import Ratio
from tickbus.fixed_point import divide_half_even
from tickbus.units import SECOND

SAMPLES, MIN_SAMPLES = 600, 300
CARRIED = 60 * SECOND
MOST_AT_ONCE = 300
BLOCK = 20
SLOTS = SAMPLES // BLOCK + 2
_SCALE = 2 * 10**10
_MILLION = 10**6


class Spread:
    """Of one quote stream."""

    name = "spread"

    def __init__(self, parameters: Surge) -> None:
        self.parameters = parameters
        self.ratio = Ratio(self.name, parameters)
        self.now: int | None = None
        self._last = 0
        self._last_ts = 0
        self._samples: deque[tuple[int, int]] = deque()
        """(pane, x)."""
        self._moments = Moments()
        self._count = 0
        """Samples ever taken."""
        self._full: list[int] = []

    def take_over(self, before: "Spread") -> None:
        """Continue with the samples of one with other parameters."""
        self.restore(before.hot(), {})
        self._samples, self._moments = before._samples, before._moments
        self._count, self._full = before._count, before._full
        self.ratio.episode.restore(before.ratio.episode.state)

    def quote(self, bid: int, ask: int, ts: int, gap_to: int) -> Iterator[Finding]:
        """Take a quote with bid < ask, both above zero. ts: the stream's newest time, ns."""
        now = ts // SECOND
        if self.now is not None and now > self.now:
            for pane in range(self.now, min(now, self.now + MOST_AT_ONCE)):
                yield from self._sample(pane, gap_to)
        self.now = now
        self._last, self._last_ts = divide_half_even(_SCALE * (ask - bid), ask + bid), ts

    def _sample(self, pane: int, gap_to: int) -> Iterator[Finding]:
        ts, x, moments = (pane + 1) * SECOND, self._last, self._moments
        if ts - self._last_ts > CARRIED:
            return
        has_gap = gap_to >= (self._samples[0][0] if self._samples else pane) * SECOND
        if moments.n >= MIN_SAMPLES:
            for finding, starts in self.ratio.step(ts, x, moments):
                times = quotient(moments.n * x, moments.s1) if moments.s1 else "0.000000"
                yield finding._replace(
                    value=quotient(x, _MILLION), window=f"{moments.n}s", unit="bp", has_gap=has_gap,
                    partial=moments.n < SAMPLES, details=(("ratio", times), *finding.details),
                    message=f"the spread is {'' if starts else 'back to '}{times[:-4]} times the usual",
                )  # fmt: skip
        self._add(pane, x)
        every = self.parameters.every
        if self.parameters.indicator and not ts % every and self._last_ts >= ts - every:
            value = quotient(x, _MILLION)
            yield Finding(self.name, ts, value, "0", "1s", "bp", f"a spread of {value[:-4]} bp", has_gap)

    def _add(self, pane: int, x: int) -> None:
        self._samples.append((pane, x))
        self._moments.add(x)
        self._count += 1
        if len(self._samples) > SAMPLES:
            self._moments.drop(self._samples.popleft()[1])
        if not self._count % BLOCK:
            self._full.append(self._count // BLOCK - 1)

    # state

    def hot(self) -> str:
        """Return what changes with every quote."""
        tail = min(self._count % BLOCK, len(self._samples))
        now = "" if self.now is None else self.now
        return f"{now}|{self._last}|{self._last_ts}|{self._count}|{self._text(tail, tail)}"

    def take_parts(self) -> dict[int, str]:
        """Return the blocks of samples that were filled since the last call, by slot."""
        full, self._full = self._full, []
        return {
            block % SLOTS: f"{block}|{self._text(self._count - block * BLOCK, BLOCK)}"
            for block in full[-SLOTS:]
            if self._count - block * BLOCK <= len(self._samples)
        }

    def _text(self, ago: int, count: int) -> str:
        begin = len(self._samples) - ago
        return ";".join(f"{pane},{x}" for pane, x in list(self._samples)[begin : begin + count])

    def restore(self, hot: str, parts: Mapping[int, str]) -> None:
        """Continue. ValueError if a text is none of ours."""
        now, last, last_ts, count, tail = hot.split("|")
        self.now, self._last, self._last_ts = int(now) if now else None, int(last), int(last_ts)
        samples, block = _parse(tail), int(count) // BLOCK - 1
        while block >= 0 and len(samples) < SAMPLES:
            number, text = (parts.get(block % SLOTS) or "-1|").split("|")
            if int(number) != block:
                break
            samples[:0] = _parse(text)
            block -= 1
        samples = samples[-SAMPLES:]
        self._count = int(count) - len(samples)
        for sample in samples:
            self._add(*sample)
        self._full = []


def _parse(text: str) -> list[tuple[int, int]]:
    rows = [row.split(",") for row in text.split(";") if row]
    return [(int(pane), int(x)) for pane, x in rows]
