"""nautilus_trader's TimeBarAggregator on a file of ticks. Runs in nautilus's venv, driven by standard input.

    python nautilus_peer.py TICKS      each line `1m` or `1s` starts one run; prints JSON: seconds, bars

TICKS: `ts_event_ns,price,size` lines. The TradeTick objects are created in batches, untimed. It runs in its
fastest mode: no bars without ticks, and its clock, whose timer builds the bars, advances only where a bar
ends (its own engine advances it with every tick).
"""

# pyright: reportMissingImports=false

import json
import sys
import time
from pathlib import Path
from typing import Any

from nautilus_trader.common.component import TestClock
from nautilus_trader.data.aggregation import TimeBarAggregator
from nautilus_trader.model.data import BarType, TradeTick
from nautilus_trader.model.enums import AggressorSide
from nautilus_trader.model.identifiers import TradeId
from nautilus_trader.model.objects import Price, Quantity
from nautilus_trader.test_kit.providers import TestInstrumentProvider

BATCH = 1024
STEPS = {"1m": ("1-MINUTE", 60_000_000_000), "1s": ("1-SECOND", 1_000_000_000)}


Row = tuple[int, Any, Any, Any]
"""ts_event, price, size, trade id"""


def read(path: Path) -> list[Row]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    return [
        (int(ts), Price.from_str(price), Quantity.from_str(size), TradeId(str(number)))
        for number, (ts, price, size) in enumerate(rows)
    ]


def run(instrument: Any, rows: list[Row], step: str) -> dict[str, float]:
    name, length = STEPS[step]
    clock = TestClock()
    clock.set_time(rows[0][0])
    bars: list[Any] = []
    bar_type = BarType.from_str(f"{instrument.id}-{name}-LAST-INTERNAL")
    aggregator = TimeBarAggregator(
        instrument, bar_type, bars.append, clock, interval_type="right-open", build_with_no_updates=False
    )
    handle, end, spent = aggregator.handle_trade_tick, 0, 0
    for start in range(0, len(rows), BATCH):
        ticks = [
            TradeTick(instrument.id, price, size, AggressorSide.NO_AGGRESSOR, id, ts, ts)
            for ts, price, size, id in rows[start : start + BATCH]
        ]
        started = time.process_time_ns()
        for tick in ticks:
            ts = tick.ts_event
            if ts >= end:
                for event in clock.advance_time(ts):
                    event.handle()
                end = ts - ts % length + length
            handle(tick)
        spent += time.process_time_ns() - started
    return {"seconds": spent / 1e9, "bars": len(bars)}


def main() -> None:
    instrument = TestInstrumentProvider.equity("SPY", "ARCA")
    rows = read(Path(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(instrument, rows, line.strip())), flush=True)


if __name__ == "__main__":
    main()
