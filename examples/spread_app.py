"""An app that scales: start `python examples/spread_app.py redis://127.0.0.1:6379/0` once or ten times.

It needs only `pip install tickbus`. It keeps the widest spread ever seen per symbol, and writes each new
record to a signal stream. The processes share the symbols; kill any of them at any time: no record is lost,
none is reported twice.
"""

import asyncio
import sys
from decimal import Decimal

import tickbus
from tickbus import Output, Quote, Signal, Stream


async def main(url: str) -> None:
    async with tickbus.connect(url) as bus:
        async for batch in bus.consume("widest", kind="quote"):
            records: dict[Stream, Decimal] = {}
            outputs = []
            for stream, id, quote in batch:  # includes Gaps
                if isinstance(quote, Quote) and quote.bid is not None and quote.ask is not None:
                    record = records.get(stream) or Decimal((batch.state(stream) or b"0").decode())
                    if quote.ask - quote.bid > record:
                        records[stream] = quote.ask - quote.bid
                        signal = Signal(
                            "widest",
                            str(records[stream]),
                            str(record),
                            "",
                            "a wider spread than ever",
                            stream.symbol,
                            quote.ts_event,
                        )
                        outputs.append(Output(Stream("signal", stream.feed, stream.symbol), id.ms, signal))
            await batch.commit(outputs, {stream: str(record).encode() for stream, record in records.items()})


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["redis://127.0.0.1:6379/0"]))
