"""The frames that the upstream of the benchmarks sends: trades in a vendor's dialect, as WebSocket frames.

Pure, except for the file. The market is seeded, so every run and every peer gets the same bytes. It is as
repetitive as a real capture: 27 % of the prices and 24 % of the sizes of 9,757 BTCUSDT trades were distinct.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

FIRST_ID = 3_735_683_259
"""Vendor id of each symbol's first trade, as long as a real one."""
FIRST_TIME_MS = 1_723_161_255_343
_CHUNK_BYTES = 256 * 1024


class SyntheticTrade(NamedTuple):
    """One trade of the synthetic market, and what must be stored for it."""

    symbol: str
    id: int
    price: str
    size: str
    seller: bool
    """The aggressor sold."""


@dataclass(frozen=True)
class FrameFile:
    """Pre-rendered frames on disk, to be sent as is."""

    path: Path
    frames: int
    counts: dict[str, int]
    """Number of trades by symbol."""
    last: SyntheticTrade
    sample: list[SyntheticTrade]
    """All trades of the symbol `last.symbol`, in order; they are compared value by value."""


def symbols(count: int) -> list[str]:
    """Return canonical names: `S00000-USDT` and so on."""
    return [f"S{number:05d}-USDT" for number in range(count)]


def market(names: list[str], count: int, seed: int = 7) -> Iterator[SyntheticTrade]:
    """Yield trades of random symbols: ids contiguous per symbol, prices a random walk in steps of 0.01."""
    rng = random.Random(seed)
    draw, below = rng.random, rng.randrange
    cents = {name: below(100_000, 9_000_000) for name in names}
    ids = dict.fromkeys(names, FIRST_ID - 1)
    common_sizes = [f"{below(1, 5_000_000) / 1e5:.8f}" for _ in range(200)]
    for name in rng.choices(names, k=count):
        if draw() < 0.27:
            cents[name] += below(-300, 301)
        ids[name] += 1
        size = common_sizes[below(200)] if draw() < 0.76 else f"{below(1, 500_000_000) / 1e5:.8f}"
        whole, part = divmod(max(cents[name], 1), 100)
        yield SyntheticTrade(name, ids[name], f"{whole}.{part:02d}000000", size, draw() < 0.5)


def binance_text(trade: SyntheticTrade, time: int) -> bytes:
    """Return a combined-stream trade event; `time` in ms (13 digits) or us (16 digits) since the epoch."""
    name = trade.symbol.replace("-", "")
    return (
        f'{{"stream":"{name.lower()}@trade","data":{{"e":"trade","E":{time},"s":"{name}","t":{trade.id},'
        f'"p":"{trade.price}","q":"{trade.size}",'
        f'"T":{time},"m":{"true" if trade.seller else "false"},"M":true}}}}'
    ).encode()


def json_text(trade: SyntheticTrade, time: int) -> bytes:
    """Return a message of the generic feed with one trade; `time` in s, ms, us or ns since the epoch."""
    return (
        f'{{"trades":[{{"symbol":"{trade.symbol}","price":"{trade.price}","volume":"{trade.size}",'
        f'"time":{time}}}]}}'
    ).encode()


def frame(text: bytes) -> bytes:
    """Return a WebSocket text frame as servers send it: final, not masked."""
    if len(text) < 126:
        return bytes((0x81, len(text))) + text
    return b"\x81\x7e" + len(text).to_bytes(2) + text


def render(path: Path, names: list[str], count: int) -> FrameFile:
    """Write `count` Binance trade frames to `path`.

    A second file, `path`.chunks, contains the end offsets of chunks of whole frames.
    """
    counts = dict.fromkeys(names, 0)
    ends: list[int] = []
    size = 0
    by_symbol: dict[str, list[SyntheticTrade]] = {name: [] for name in names}
    last: SyntheticTrade | None = None
    with path.open("wb", buffering=1 << 20) as file:
        for number, trade in enumerate(market(names, count)):
            size += file.write(frame(binance_text(trade, FIRST_TIME_MS + number // 50)))
            counts[trade.symbol] += 1
            by_symbol[trade.symbol].append(trade)
            last = trade
            if size - (ends[-1] if ends else 0) >= _CHUNK_BYTES:
                ends.append(size)
    if not ends or ends[-1] != size:
        ends.append(size)
    path.with_suffix(".chunks").write_text("\n".join(map(str, ends)))
    assert last is not None
    return FrameFile(path, count, counts, last, by_symbol[last.symbol])


def read_chunks(path: Path) -> list[int]:
    """Return the end offsets of the chunks of a file that `render` wrote."""
    return [int(line) for line in path.with_suffix(".chunks").read_text().split()]
